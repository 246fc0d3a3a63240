"""N-grams counted from texts, as finite automata: a state is the longest end of the text so far that was seen while counting."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.tabular.columns import language_model
from posterity.models.lm.tabular.symbols import are_spaced, log

ENTRIES = 2**27  # states times tokens: a gigabyte of tables in float32
DISCOUNT = 0.75  # of absolute discounting, as Chen and Goodman (1998) find it for texts of any size

Counts = Mapping[tuple[int, ...], Mapping[int, int]]  # context: {token: how often it followed}


@struct.dataclass
class Automaton:
    """A law and the next state for each state and token; it starts in state 0."""

    log_probs: Float[Array | np.ndarray, "states vocab"]  # nats
    following: Int[Array | np.ndarray, "states vocab"]

    def first(self, capacity: int) -> Int[Array, ""]:
        return jnp.zeros((), self.following.dtype)

    def read(self, columns: Int[Array, " positions"], position: Int[Array, ""], token: Int[Array, ""]) -> Int[Array, ""]:
        return self.following[columns[position], token]

    def next(self, column: Int[Array, ""]) -> Float[Array, " vocab"]:
        return self.log_probs[column]


def ngram(
    texts: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    order: int = 3,
    smoothing: Literal["witten-bell", "kneser-ney"] | float = "witten-bell",
    words: bool = False,
    name: str = "ngram",
) -> LanguageModel:
    """The language model in which a token depends on the `order - 1` before it, as often as in `texts`.

    Every text is counted with its beginning and its end, so that the model begins and ends texts too.

    Args:
      texts: a text, several, or several lists of tokens.
      order: 1 for tokens that are independent of each other, 2 for bigrams, and so on.
      smoothing: how the law after a context is mixed with that after the shorter one, down to uniform: "witten-bell" (Witten and
        Bell 1991) or "kneser-ney" (interpolated, Chen and Goodman 1998); or a number that is added to each count, 0 for the
        frequencies themselves, in which after a context that was never seen a text can only end.
      words: texts are split into words, at white space, in place of characters.
      name: what the model is called.

    Raises:
      ValueError: for texts without any token, an order below 1, another smoothing, or so many contexts that the tables
        would take more than a gigabyte.

    >>> import posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> lm = ngram(["the dog barks", "the cat sleeps", "the dog sleeps", "the dog barks"], order=2, smoothing=0.0, words=True)
    >>> texts = po.exact(generate(lm, "the", max_tokens=3))
    >>> {text: round(estimate.value, 4) for text, estimate in texts.answers().items()}
    {'dog barks': 0.5, 'cat sleeps': 0.25, 'dog sleeps': 0.25}
    """
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"ngram: order must be a whole number from 1 on, got {order!r}")
    if smoothing not in ("witten-bell", "kneser-ney") and not (isinstance(smoothing, (int, float)) and 0 <= smoothing < math.inf):
        raise ValueError(f"ngram: smoothing must be 'witten-bell', 'kneser-ney', or a number from 0 on that is added to counts, got {smoothing!r}")
    split = [_tokens(text, words) for text in ([texts] if isinstance(texts, str) else texts)]
    symbols = list(dict.fromkeys(token for tokens in split for token in tokens))
    if not symbols:
        raise ValueError(f"ngram: there is nothing to count: {len(split)} texts without any token")
    numbers = {symbol: i for i, symbol in enumerate(symbols)}
    end, start = len(symbols), len(symbols) + 1
    counts = count([[numbers[token] for token in tokens] for tokens in split], order, start, end)
    if len(counts) * (len(symbols) + 2) > ENTRIES:
        gigabytes = 8e-9 * len(counts) * (len(symbols) + 2)
        raise ValueError(f"ngram: {len(counts):,} contexts of {len(symbols):,} tokens make tables of {gigabytes:.1f} GB; choose an order below {order}")
    automaton = Automaton(log(laws(counts, order, len(symbols), smoothing)), transitions(counts, order, len(symbols) + 2))
    return language_model(automaton, symbols, name, spaced=words or are_spaced(symbols))


def count(texts: Sequence[Sequence[int]], order: int, start: int, end: int) -> Counts:
    """What follows each context of up to `order - 1` tokens in texts that begin with as many starts; the longest first context comes first."""
    found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for tokens in texts:
        padded = [start] * (order - 1) + list(tokens) + [end]
        for i in range(order - 1, len(padded)):
            for k in reversed(range(order)):
                found[tuple(padded[i - k : i])][padded[i]] += 1
    return found


def laws(counts: Counts, order: int, symbols: int, smoothing: str | float) -> np.ndarray:
    """The probabilities of the next token after each context, [contexts, vocab]; rows of zeros where nothing is known."""
    numbers, vocab = {context: i for i, context in enumerate(counts)}, symbols + 2
    uniform = np.append(np.full(symbols + 1, 1 / (symbols + 1)), 0.0)  # nothing ever writes the start
    if isinstance(smoothing, str):
        used = _continuations(counts, order) if smoothing == "kneser-ney" else counts
        found = np.zeros((len(counts), vocab))
        for context in sorted(counts, key=len):
            row, shorter = _row(used[context], vocab), found[numbers[context[1:]]] if context else uniform
            total, kinds = row.sum(), np.count_nonzero(row)
            if smoothing == "witten-bell":
                found[numbers[context]] = (row + kinds * shorter) / (total + kinds)
            else:
                found[numbers[context]] = (np.maximum(row - DISCOUNT, 0.0) + DISCOUNT * kinds * shorter) / total
        return found
    # A shorter context is where a text stands whose last order - 1 tokens were never seen together.
    rows = np.stack([_row(counts[context], vocab) if len(context) == order - 1 else np.zeros(vocab) for context in counts])
    rows = rows + smoothing * (uniform > 0)
    return rows / np.maximum(rows.sum(axis=1, keepdims=True), np.finfo(float).tiny)


def transitions(counts: Counts, order: int, vocab: int) -> np.ndarray:
    """The context that each token leads to from each context: the longest end of both that is one, [contexts, vocab] int32."""
    numbers = {context: i for i, context in enumerate(counts)}
    following = np.full((len(counts), vocab), numbers[()], np.int32)
    for length in range(1, order):
        contexts = [context for context in counts if len(context) == length]
        for context in contexts:
            following[numbers[context[:-1]], context[-1]] = numbers[context]
        for context in contexts:
            following[numbers[context]] = following[numbers[context[1:]]]
    return following


def _continuations(counts: Counts, order: int) -> Counts:
    """Counts for contexts of full length; for shorter ones, after how many different tokens the context and its next one were seen together."""
    found: dict[tuple[int, ...], Counter[int]] = {context: Counter(row) if len(context) == order - 1 else Counter() for context, row in counts.items()}
    for context, row in counts.items():
        if context:
            found[context[1:]].update(dict.fromkeys(row, 1))
    return found


def _row(counts: Mapping[int, int], vocab: int) -> np.ndarray:
    row = np.zeros(vocab)
    row[list(counts.keys())] = list(counts.values())
    return row


def _tokens(text: str | Sequence[str], words: bool) -> list[str]:
    if isinstance(text, str):
        return text.split() if words else list(text)
    return list(text)
