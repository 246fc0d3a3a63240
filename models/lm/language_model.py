"""A language model as part of a program: weights, tokenizer, and the texts it starts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax import Array
from jax.sharding import Mesh, NamedSharding

from posterity.models.lm import precision, sharding
from posterity.models.lm.cache import CachedDecoder
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.model import Model
from posterity.models.lm.text import Text, TextSource
from posterity.models.lm.tokenizer import Tokenizer

PROMPT_BUCKET = 16  # tokens: prompts are padded to multiples of it, so that prompts of other lengths share compiled code


@struct.dataclass
class Prompt:
    """A prompt's token ids, padded: an array argument of a program, so that another prompt does not recompile it."""

    tokens: Array | np.ndarray  # [padded] int32
    length: Array | np.ndarray | np.int32  # [] int32, how many of them count


@struct.dataclass
class LanguageModel:
    """A model with its tokenizer. A pytree whose leaves are the weights: pass it to programs as an argument."""

    weights: Any  # of a module, its parameters; any other model itself
    graph: Any = struct.field(pytree_node=False)  # of a module, its structure; else None
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    extract: Callable[[str], str] = struct.field(pytree_node=False, default=str.strip)  # the answer in a generated text
    rows: NamedSharding | None = struct.field(pytree_node=False, default=None)  # how texts lie on many devices

    @classmethod
    def of(cls, model: Decoder | Model, tokenizer: Tokenizer, name: str, extract: Callable[[str], str] = str.strip) -> Self:
        """A language model of a decoder, or any other `Model`, and the tokenizer it was trained with.

        Raises:
          ValueError: when the vocabularies differ in size.
        """
        size = model.config.vocab_size if isinstance(model, Decoder) else model.vocab_size
        if tokenizer.vocab_size != size:
            raise ValueError(f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, the {'decoder' if isinstance(model, Decoder) else 'model'} {size}")
        if not isinstance(model, nnx.Module):
            return cls(model, None, tokenizer, name, extract)
        graph, weights = nnx.split(model)
        return cls(nnx.to_pure_dict(weights), graph, tokenizer, name, extract)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.parameters:,} parameters, {self.tokenizer.vocab_size:,} tokens)"

    @property
    def decoder(self) -> Any:
        """The model as it was given: a `Decoder`, or what else it is."""
        return self.weights if self.graph is None else nnx.merge(self.graph, self.weights)

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    @property
    def context_length(self) -> int:
        """The largest number of tokens that a text may have, prompt included."""
        return self.model().context_length

    def model(self, pool: int | None = None) -> Model:
        """The model with its memory; a decoder's is a cache whose pool has room for `pool` generated tokens.

        Raises:
          ValueError: for a pool that is not positive, or for a model that has none.
        """
        decoder = self.decoder
        if pool is not None and pool < 1:
            raise ValueError(f"{self.name}: pool must be at least 1 token, got {pool}")
        if isinstance(decoder, Decoder):
            return CachedDecoder(decoder, pool)
        if pool is not None:
            raise ValueError(f"{self.name}: a {type(decoder).__name__} has no pool of tokens; leave pool out")
        return decoder

    @property
    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.weights))

    def astype(self, dtype: Any) -> Self:
        """The model in another type of number, "float32" or "bfloat16"; see `precision.cast`.

        >>> import posterity as po
        >>> po.load("abacus").astype("bfloat16").weights["norm"]["scale"].dtype
        dtype(bfloat16)
        """
        return replace(self, weights=precision.cast(self.weights, dtype))

    def fastest(self, n: int) -> Self:
        """The model in the type of number in which this machine computes faster with n particles: measured, not looked up. bfloat16 rounds to three digits."""
        return self.astype(precision.fastest(self.weights, n))

    def shard(self, mesh: Mesh, *, particles: str | None = None, heads: str | None = None) -> Self:
        """The model on many devices: texts over the axis `particles` of a mesh, attention heads and feed-forward columns over `heads`, either or both.

        Programs of it run as they are, `po.smc(key, program(lm.shard(mesh, particles="particles")), n=n)`, with n a multiple of the devices
        along `particles`, and do what they do on one device, up to rounding. See docs/engine.md.

        Raises:
          TypeError: when `mesh` is no mesh.
          ValueError: for axes that it does not have, that are the same, or that heads and columns cannot be split over.
        """
        weights, rows = sharding.placed(f"{self.name}.shard", self.weights, self.config, mesh, particles, heads)
        return replace(self, weights=weights, rows=rows)

    def prompt(self, text: str) -> Prompt:
        """A prompt ready to be passed to a program.

        Raises:
          ValueError: when the text has no tokens, tokens that the vocabulary lacks, or so many that the model's context has no room for one more.
        """
        return jax.tree.map(lambda x: x[0], self.prompts([text]))

    def prompts(self, texts: Sequence[str]) -> Prompt:
        """Prompts side by side, leading axis texts, for `jax.vmap`: many particle sets in one compiled program, whose products they share.

        Raises:
          ValueError: for no texts, and as `prompt`.

        >>> import jax, posterity as po
        >>> lm = po.load("abacus")
        >>> @po.program
        ... def sums(lm, prompt):
        ...     return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=4)
        >>> posterior = jax.vmap(lambda prompt: po.smc(jax.random.key(0), sums(lm, prompt), n=4))(lm.prompts(["1+1=", "12*(3+4)="]))
        >>> posterior.log_weights.shape
        (2, 4)
        """
        rows = [self._encoded(text) for text in texts]
        if not rows:
            raise ValueError(f"{self.name}: give at least one prompt")
        padded = min(-(-max(map(len, rows)) // PROMPT_BUCKET) * PROMPT_BUCKET, self.context_length)
        tokens = np.stack([np.pad(np.asarray(row, np.int32), (0, padded - len(row))) for row in rows])
        return Prompt(tokens, np.array([len(row) for row in rows], np.int32))

    def _encoded(self, text: str) -> list[int]:
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise ValueError(f"{self.name}: the prompt is empty; give at least one token of text")
        if len(tokens) >= self.context_length:
            context = f"the model's context of {self.context_length}"
            wrong = f"more than {context}" if len(tokens) > self.context_length else f"which fill {context}, with no room for one more"
            raise ValueError(f"{self.name}: the prompt has {len(tokens)} tokens, {wrong}")
        return tokens

    def start(self, prompt: str | Prompt, *, pool: int | None = None) -> Text:
        """A text that begins with `prompt`: the state component of a program's scan.

        Args:
          prompt: a text, or what `lm.prompt` made of one (an array argument, so that another prompt does not recompile).
          pool: for how many generated tokens, of all particles together, there is memory. By default for all that could be: particles times
            steps. Resampled particles share their pasts and need much less (`text.memory()` of a finished text says how much);
            a run that needs more than it was given stops before the step, with an error that says what it would need.

        Raises:
          ValueError: for a prompt that does not fit, or a pool that the model has no use for.

        >>> import jax, posterity as po
        >>> lm = po.load("abacus")
        >>> @po.program
        ... def sums(lm, prompt):
        ...     def step(text, _):
        ...         return text.push(po.sample("token", text.next()))
        ...     return po.scan(step, lm.start(prompt), length=8)
        >>> posterior = po.smc(jax.random.key(0), sums(lm, lm.prompt("2+3=")), n=8)
        >>> max(posterior.answers())
        '5'
        """
        if isinstance(prompt, str):
            prompt = self.prompt(prompt)
        self.model(pool)
        return TextSource(self, prompt, pool).begin()

    def tokens_containing(self, text: str) -> Array:
        """Which tokens write `text` (as bytes), bool [vocab]."""
        if not text:
            raise ValueError("tokens_containing: text must not be empty")
        return jnp.asarray(_tokens_containing(self.tokenizer, text.encode()))


@functools.lru_cache(maxsize=256)
def _tokens_containing(tokenizer: Tokenizer, text: bytes) -> np.ndarray:
    mask = np.array([text in token for token in tokenizer.token_bytes])
    mask.flags.writeable = False
    return mask
