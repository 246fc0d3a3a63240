"""`benchmarks/decode.py --large`: a Llama of a billion random parameters in bfloat16, whose texts are many, on an accelerator.

Its shapes are those of Llama 3.2 1B. The bound beside each rate (the roofline) is that of the slower of two: the operations of a step at the rate of a
large matrix product, and the bytes it must move at the rate of a copy, both measured in the same run.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tokenizers
from flax import nnx
from jax import Array
from tokenizers.pre_tokenizers import ByteLevel

import posterity as po
from posterity.benchmarks.decode import work
from posterity.benchmarks.particles import inner, table
from posterity.benchmarks.peers_lm import prompt_ids
from posterity.benchmarks.texts import copying, endless, padded, plain, square, without
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.tokenizer import Tokenizer

BILLION = DecoderConfig(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, context_length=4096, rope_theta=5e5
)
TOY = dataclasses.replace(BILLION, vocab_size=257, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)


def random(config: DecoderConfig, dtype=jnp.bfloat16) -> LanguageModel:
    """A model of random weights, drawn in their type and where they stay."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))

    @jax.jit
    def draw(key):
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree, [0.02 * jax.random.normal(k, x.shape, dtype) if len(x.shape) > 1 else jnp.ones(x.shape, dtype) for k, x in zip(keys, leaves)]
        )

    return LanguageModel.of(nnx.merge(graph, draw(jax.random.key(0))), of_bytes(config.vocab_size), "random")


def of_bytes(size: int) -> Tokenizer:
    """A token for each byte, and one that ends texts."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, end_ids=(256,), size=size, eos_token="<end>")


def seconds(run: Callable, repeats: int) -> list[float]:
    """Wall seconds of each run; the first, which compiles, is not counted."""
    times = []
    for seed in range(repeats + 1):
        start = time.perf_counter()
        run(seed)
        times.append(time.perf_counter() - start)
    return times[1:]


def timed(lm: LanguageModel, start: Prompt, forbidden: Array, n: int, tokens: int, repeats: int) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """Seconds of runs of plain sampling and of SMC, and what their memories came to."""
    held = {}

    def sampling(seed: int) -> None:
        posterior = po.importance(jax.random.key(seed), plain(lm, start, tokens), n=n, history=False)
        held["sampling"] = posterior.values.memory()

    def smc(seed: int) -> None:
        posterior = po.smc(jax.random.key(seed), without(lm, start, forbidden, tokens), n=n, threshold=1.0, history=False)
        held["SMC"] = posterior.values.memory()

    return {"sampling": seconds(sampling, repeats), "SMC": seconds(smc, repeats)}, held


def report(options: argparse.Namespace) -> None:
    """Tokens a second, share of the roofline, what SMC costs, and memory, at every number of particles."""
    device = jax.devices()[0]
    if device.platform == "cpu" and not options.quick:
        print("--large needs an accelerator, and JAX sees none here: skipped (with --quick a toy runs)")
        return
    config, sizes, tokens, repeats = (TOY, [2, 4], 4, 2) if options.quick else (BILLION, [64, 256, 1024, 4096], 256, options.repeats)
    lm = endless(random(config))
    start = padded(prompt_ids(lm.tokenizer.backend, options.prompt))
    forbidden = jax.random.bernoulli(jax.random.key(1), 0.3, (config.vocab_size,))
    side, width = (256, 2**16) if options.quick else (8192, 2**29)
    rates = {}
    for name, make, size in (("product", square, side), ("copy", copying, width)):
        once = make(lm, start, "", size)
        count = once(1, 1, 0)
        rates[name] = count / statistics.median(seconds(lambda seed, once=once: once(1, 1, seed), 10))
    print(f"{lm!r} in bfloat16 on {device.device_kind}, JAX {jax.__version__}: {rates['product'] / 1e12:.1f} TFLOP/s in a product of {side} x {side}, ", end="")
    print(f"{rates['copy'] / 1e9:.0f} GB/s in a copy; {options.prompt} + {tokens} tokens")
    rows, kept = [], []
    for n in sizes:
        operations, moved = work(config, options.prompt, tokens, n, 2)
        bound = max(operations / rates["product"], moved / rates["copy"])
        times, held = timed(lm, start, forbidden, n, tokens, repeats)
        for name, each in times.items():
            step = statistics.median(each) / tokens
            low, high = (n * tokens / x for x in reversed(inner(each)))
            over = statistics.median(each) / statistics.median(times["sampling"]) - 1
            achieved = [f"{bound / step:.0%}", f"{operations / step / 1e12:.1f}", f"{moved / step / 1e9:.0f}", f"{over:+.1%}"]
            memory = [f"{held[name][what] / 2**20:,.0f}" for what in ("peak", "bound", "dense")]
            rows.append([f"{n:,}", name, f"{n / step:,.0f}", f"{low:,.0f}-{high:,.0f}", *achieved, *memory])
            kept.append({"n": n, "system": name, "seconds": each, "bound": bound * tokens, "memory": held[name]})
        rows.append(None)
    table("medians", ["n", "", "tokens/s", "inner range", "of the roofline", "TFLOP/s", "GB/s", "over sampling", "MiB used", "bound", "dense"], rows)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "large.json").write_text(json.dumps({"device": device.device_kind, "rates": rates, "rows": kept}, indent=1))
