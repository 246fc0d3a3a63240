"""What `benchmarks/decode.py` times of Posterity, one system a process: `python benchmarks/texts.py SYSTEM MODEL DTYPE PROMPT LETTER`.

Answers as `benchmarks/peers_lm.py` does. "products" are the matrix products of a step and nothing else, on the same weights: what they alone would allow.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import posterity as po
from posterity.benchmarks import dense, peers_lm
from posterity.models.lm.decoder import product
from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.tokenizer import Tokenizer


@po.program
def plain(lm, prompt, tokens):
    """Texts as the model writes them."""
    return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=tokens)


@po.program
def without(lm, prompt, forbidden, tokens):
    """Texts without forbidden tokens [vocab]."""

    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("allowed", jnp.where(forbidden[token], -jnp.inf, 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=tokens)


def endless(lm: LanguageModel) -> LanguageModel:
    """The model with no token that ends a text: all systems write equally many."""
    return lm.replace(tokenizer=Tokenizer(lm.tokenizer.backend, size=lm.tokenizer.vocab_size, eos_token=lm.tokenizer.eos_token))


def padded(ids: list[int]) -> Prompt:
    return Prompt(np.pad(np.asarray(ids, np.int32), (0, -len(ids) % 16)), np.int32(len(ids)))


def unshared(lm: LanguageModel) -> LanguageModel:
    """The model with the dense cache."""
    return LanguageModel.of(dense.DenseModel(lm.weights, lm.graph), lm.tokenizer, lm.name)


def sampling(lm: LanguageModel, prompt: Prompt, letter: str) -> Callable:
    return lambda n, tokens, seed: counted(po.importance(jax.random.key(seed), plain(lm, prompt, tokens), n=n, history=False))


def smc(lm: LanguageModel, prompt: Prompt, letter: str) -> Callable:
    forbidden = lm.tokens_containing(letter)
    return lambda n, tokens, seed: counted(po.smc(jax.random.key(seed), without(lm, prompt, forbidden, tokens), n=n, threshold=1.0, history=False))


def counted(posterior: po.Posterior) -> dict[str, float]:
    """Tokens that all texts have, and the bytes of the memory behind them."""
    held = posterior.values.memory()
    return {"tokens": int(posterior.values.generated.sum()), "cache": held["reserved"], "peak": held["peak"]}


def products(lm: LanguageModel, prompt: Prompt, letter: str) -> Callable:
    """The products of `tokens` steps of n rows: those of a step follow one another as they do in a decoder, with one addition between them."""
    dtype = jax.tree.leaves(lm.weights)[0].dtype
    layers, head = matrices(lm.config, dtype)

    @jax.jit
    def step(x, layers, head):
        for queries, output, gates, down in layers:
            read, rest = jnp.split(multiplied(x, queries), [output.shape[0]], axis=-1)
            x = x + multiplied(read + jnp.mean(rest, axis=-1, keepdims=True), output)
            gate, passed = jnp.split(multiplied(x, gates), 2, axis=-1)
            x = x + multiplied(gate * passed, down)
        return x, multiplied(x, head)

    def run(n: int, tokens: int, seed: int) -> int:
        x = jnp.zeros((n, lm.config.hidden_size), dtype)
        for _ in range(tokens):
            x, logits = step(x, layers, head)
        jax.block_until_ready(logits)
        return n * tokens

    return run


def multiplied(x: jax.Array, y: jax.Array) -> jax.Array:
    return product(x, y, (((1,), (0,)), ((), ())))


def matrices(config, dtype) -> tuple[list, jax.Array]:
    """Random ones of a decoder's shapes, stored as (in, out): queries, keys and values side by side, and a gate beside what it lets through."""
    keys = iter(jax.random.split(jax.random.key(0), 4 * config.num_layers + 1))
    make = lambda *shape: jax.random.normal(next(keys), shape, dtype)  # noqa: E731
    hidden, read, kept, inner = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_size
    layers = [(make(hidden, read + 2 * kept), make(read, hidden), make(hidden, 2 * inner), make(inner, hidden)) for _ in range(config.num_layers)]
    return layers, make(hidden, config.vocab_size)


def square(lm: LanguageModel, prompt: Prompt, letter: str, size: int = 2048) -> Callable:
    """One large matrix product; its count is of operations."""
    x = jax.random.normal(jax.random.key(0), (size, size), jax.tree.leaves(lm.weights)[0].dtype)
    multiply = jax.jit(multiplied)
    return lambda n, tokens, seed: (jax.block_until_ready(multiply(x, x)), 2 * size**3)[1]


def copying(lm: LanguageModel, prompt: Prompt, letter: str, size: int = 2**27) -> Callable:
    """Adding 1, in place; its count is of bytes, read and written."""
    add, kept = jax.jit(lambda x: x + 1, donate_argnums=0), [jnp.zeros(size, jnp.float32)]

    def run(n: int, tokens: int, seed: int) -> int:
        kept[0] = jax.block_until_ready(add(kept[0]))
        return 2 * kept[0].nbytes

    return run


SYSTEMS = {"sampling": sampling, "SMC": smc, "dense": smc, "products": products, "GEMM": square, "copy": copying}


def main() -> None:
    system, spec, dtype, prompt, letter = sys.argv[1:]
    lm = endless(po.load(spec)).astype(dtype)
    lm = unshared(lm) if system == "dense" else lm
    peers_lm.serve(SYSTEMS[system](lm, padded(peers_lm.prompt_ids(lm.tokenizer.backend, int(prompt))), letter))


if __name__ == "__main__":
    main()
