"""A language model as part of a program: weights, tokenizer, and the texts it starts."""

import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax import Array

from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.text import Text, TextSource
from posterity.models.lm.tokenizer import Tokenizer

PROMPT_BUCKET = 16  # tokens: prompts are padded to multiples of it, so that prompts of other lengths share compiled code


@struct.dataclass
class Prompt:
    """A prompt's token ids, padded: an array argument of a program, so that another prompt does not recompile it."""

    tokens: Array | np.ndarray  # [padded] int32
    length: Array | np.int32  # [] int32, how many of them count


@struct.dataclass
class LanguageModel:
    """A decoder with its tokenizer. A pytree whose leaves are the weights: pass it to programs as an argument."""

    weights: Any
    graph: Any = struct.field(pytree_node=False)
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    extract: Callable[[str], str] = struct.field(pytree_node=False, default=str.strip)  # the answer in a generated text

    @classmethod
    def of(cls, decoder: Decoder, tokenizer: Tokenizer, name: str, extract: Callable[[str], str] = str.strip) -> Self:
        """A language model of a decoder and the tokenizer it was trained with.

        Raises:
          ValueError: when the vocabularies differ in size.
        """
        if tokenizer.vocab_size != decoder.config.vocab_size:
            raise ValueError(f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, the decoder {decoder.config.vocab_size}")
        graph, weights = nnx.split(decoder)
        return cls(nnx.to_pure_dict(weights), graph, tokenizer, name, extract)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.parameters:,} parameters, {self.config.vocab_size:,} tokens)"

    @property
    def decoder(self) -> Decoder:
        return nnx.merge(self.graph, self.weights)

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    @property
    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.weights))

    def prompt(self, text: str) -> Prompt:
        """A prompt ready to be passed to a program.

        Raises:
          ValueError: when the text has no tokens, tokens that the vocabulary lacks, or so many that the model's context has no room for one more.
        """
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise ValueError(f"{self.name}: the prompt is empty; give at least one token of text")
        if len(tokens) >= self.config.context_length:
            context = f"the model's context of {self.config.context_length}"
            wrong = f"more than {context}" if len(tokens) > self.config.context_length else f"which fill {context}, with no room for one more"
            raise ValueError(f"{self.name}: the prompt has {len(tokens)} tokens, {wrong}")
        padded = min(-(-len(tokens) // PROMPT_BUCKET) * PROMPT_BUCKET, self.config.context_length)
        return Prompt(np.pad(np.asarray(tokens, np.int32), (0, padded - len(tokens))), np.int32(len(tokens)))

    def start(self, prompt: str | Prompt) -> Text:
        """A text that begins with `prompt`: the state component of a program's scan.

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
        return TextSource(self, prompt).begin()

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
