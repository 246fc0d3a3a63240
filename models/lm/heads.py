"""Classifiers of texts, such as reward models: a decoder whose head scores labels instead of tokens.

A head for token classification scores every position, one for sequence classification is read at the last token. Both are
the same computation, so any classifier gives both.
"""

from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax import Array

from posterity.models.lm.decoder import Decoder
from posterity.models.lm.tokenizer import Tokenizer

BUCKET = 16  # tokens: texts are padded to multiples of it, so that texts of other lengths share compiled code


def hidden_states(decoder: Decoder, tokens: Array) -> Array:
    """What a decoder's head reads of whole texts [n, t]: its last hidden states, after the norm, [n, t, hidden]."""
    return decoder.norm(decoder(tokens)[0])


def token_scores(decoder: Decoder, tokens: Array) -> Array:
    """The labels' scores after each token of whole texts [n, t], [n, t, labels] float32."""
    hidden, _ = decoder(tokens)
    return decoder.logits(hidden).astype(jnp.float32)


def sequence_scores(decoder: Decoder, tokens: Array, lengths: Array) -> Array:
    """The labels' scores of whole texts, the first `lengths` [n] of `tokens` [n, t]: those after the last token, [n, labels] float32."""
    hidden, _ = decoder(tokens)
    return decoder.logits(hidden[jnp.arange(tokens.shape[0]), lengths - 1]).astype(jnp.float32)


@struct.dataclass
class Classifier:
    """A decoder with a head for labels, and its tokenizer. A pytree whose leaves are the weights: pass it to programs as an argument."""

    weights: Any
    graph: Any = struct.field(pytree_node=False)
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)

    @classmethod
    def of(cls, decoder: Decoder, tokenizer: Tokenizer, name: str) -> Self:
        """A classifier of a decoder with labels and the tokenizer it was trained with.

        Raises:
          ValueError: when the vocabularies differ in size, or the decoder has no labels.
        """
        if tokenizer.vocab_size != decoder.config.vocab_size:
            raise ValueError(f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, the decoder {decoder.config.vocab_size}")
        if not decoder.config.labels:
            raise ValueError(f"{name}: this decoder has no head for classification; it is a language model")
        graph, weights = nnx.split(decoder)
        return cls(nnx.to_pure_dict(weights), graph, tokenizer, name)

    def __repr__(self) -> str:
        return f"Classifier({self.name!r}, labels={self.labels})"

    @property
    def decoder(self) -> Decoder:
        return nnx.merge(self.graph, self.weights)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.decoder.config.labels

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """The labels' scores of whole texts, [n, labels]: logits, or for a reward model with its one label, rewards.

        Raises:
          ValueError: for a text without tokens, or with more than the model's context.
        """
        return np.asarray(_sequence_scores(self, *self._batch(texts)))

    def scores_by_token(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The labels' scores after each token of each text, n times [tokens, labels].

        Raises:
          ValueError: as `scores`.
        """
        tokens, lengths = self._batch(texts)
        return [row[:length] for row, length in zip(np.asarray(_token_scores(self, tokens)), lengths, strict=True)]

    def _batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts, str):
            raise ValueError(f"{self.name}: give a list of texts, not one text")
        encoded, context = [self.tokenizer.encode(text) for text in texts], self.decoder.config.context_length
        for text, ids in zip(texts, encoded, strict=True):
            if not 0 < len(ids) <= context:
                raise ValueError(f"{self.name}: each text must have 1 to {context} tokens; {text[:40]!r} has {len(ids)}")
        lengths = np.array([len(ids) for ids in encoded], np.int32)
        padded = min(-(-lengths.max(initial=1) // BUCKET) * BUCKET, context)
        return np.array([np.pad(ids, (0, padded - len(ids))) for ids in encoded], np.int32).reshape(-1, padded), lengths


@jax.jit
def _sequence_scores(classifier: Classifier, tokens: Array, lengths: Array) -> Array:
    return sequence_scores(classifier.decoder, tokens, lengths)


@jax.jit
def _token_scores(classifier: Classifier, tokens: Array) -> Array:
    return token_scores(classifier.decoder, tokens)
