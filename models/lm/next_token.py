"""The law of the next token, and the changes of it by which people sample: temperature, top-k, top-p, min-p.

A changed law is part of what a program means: `po.sample("token", text.next(top_p=0.9))` asks about texts of the truncated
model. With p the model's own law and q the changed one, `law.correction(token)` is log p - log q: with it as a potential
tokens are drawn from q, and the program means the model's own law wherever q reaches.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from jax.core import Tracer
from jaxtyping import Bool, Float, Int
from numpyro.distributions import constraints

from posterity.models.lm.tokenizer import Tokenizer

BLOCK = 128  # tokens whose probabilities are summed first when one is drawn
ROUNDING = 4 * 2.0**-23  # by which sums of probabilities in float32 are off; top_p is reached when it is to within this


class NextToken(dist.CategoricalLogits):
    """A next-token law: a categorical that samples by inverting its distribution function.

    One uniform a draw instead of one Gumbel variate a token: 28 times faster (11 to 37) for 64 draws over 49,152 tokens on two CPU
    cores (benchmarks/next_token.py).
    A logit of -inf forbids a token. `model_logits` are those of the law that this one is a change of; left out, it is no change.
    """

    arg_constraints = {"logits": constraints.dependent(is_discrete=False, event_dim=1)}  # noqa: RUF012 - NumPyro's own declaration; real_vector refuses -inf
    pytree_data_fields = ("model_logits",)
    pytree_aux_fields = ("tokenizer",)

    def __init__(self, logits: Array, tokenizer: Tokenizer | None = None, model_logits: Array | None = None, *, validate_args: bool | None = None):
        self.tokenizer = tokenizer
        self.model_logits = logits if model_logits is None else model_logits
        super().__init__(logits, validate_args=validate_args)

    def correction(self, token: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """log p(token) - log q(token), nats: p the model's own law, q this one; +inf for a token that q never draws and p may.

        The law that it brings back: E_q[exp(correction) f] is the sum of p f over the tokens that q can draw. After a change of
        temperature these are all, and the program means what the model's own law means, evidence included. After a truncation they
        are those kept: the program then means the model's law on the texts that are made of kept tokens only, its evidence is the
        model's own probability of those, and its posterior the model's law given them.

        >>> law = next_token(jnp.log(jnp.array([0.5, 0.3, 0.2])), top_k=2)
        >>> [round(float(p), 4) for p in jnp.exp(law.log_prob(jnp.arange(2)))]
        [0.625, 0.375]
        >>> [round(float(p), 4) for p in jnp.exp(law.log_prob(jnp.arange(2)) + law.correction(jnp.arange(2)))]
        [0.5, 0.3]
        """
        log_p = NextToken(self.model_logits).log_prob(token)
        return jnp.where(jnp.isneginf(log_p), -jnp.inf, log_p - self.log_prob(token))

    def words(self, value: Array) -> str:
        """The token's text in quotes, a special token by its name; its number when the tokenizer is not known."""
        if self.tokenizer is None:
            return str(int(value))
        text = self.tokenizer.decode([int(value)])
        return repr(text) if text else str(self.tokenizer.backend.id_to_token(int(value)))

    def sample(self, key: Array, sample_shape: tuple = ()) -> Array:
        vocab = jnp.shape(self.logits)[-1]
        size = min(BLOCK, vocab)
        logits = jnp.asarray(self.logits, jnp.float32).reshape(-1, vocab)
        logits = jnp.pad(logits, ((0, 0), (0, -vocab % size)), constant_values=-jnp.inf).reshape(logits.shape[0], -1, size)
        highest = jnp.max(logits, axis=(1, 2), keepdims=True)
        # A block of tokens first, by the blocks' sums, then one of its tokens: the sums of the whole vocabulary cost ten times as much.
        sums = jnp.sum(jnp.exp(logits - highest), axis=-1)
        u = jax.random.uniform(key, sample_shape + self.batch_shape).reshape(*sample_shape, logits.shape[0])
        block, rest = _inverse(sums, u * jnp.sum(sums, axis=-1))
        rows = jnp.arange(logits.shape[0])
        token, _ = _inverse(jnp.exp(logits[rows, block] - highest[:, 0]), rest)
        return jnp.minimum(block * size + token, vocab - 1).reshape(sample_shape + self.batch_shape)


def _inverse(weights: Float[Array, "*batch k"], target: Float[Array, "*batch"]) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The first entry at which the running sum of weights exceeds the target, and what the target is beyond the entries before it.

    The entries of a parallel sum round differently, so that steps of width zero come out wider: only possible entries are looked
    at. Where the target was rounded up to the end, it is the last of them.
    """
    possible, sums = weights > 0, jnp.cumsum(weights, axis=-1)
    reached = possible & (sums > target[..., None])
    last = possible.shape[-1] - 1 - jnp.argmax(possible[..., ::-1], axis=-1)
    found = jnp.where(jnp.any(reached, axis=-1), jnp.argmax(reached, axis=-1), last)
    before = jnp.sum(jnp.where(jnp.arange(weights.shape[-1]) < found[..., None], weights, 0.0), axis=-1)
    return found, jnp.maximum(target - before, 0.0)


def next_token(
    logits: Float[Array, "*batch vocab"],
    tokenizer: Tokenizer | None = None,
    *,
    temperature: Array | float = 1.0,
    top_k: Array | int | None = None,
    top_p: Array | float | None = None,
    min_p: Array | float | None = None,
) -> NextToken:
    """The law of the next token with the changes that are given, one after the other in this order (as `transformers` makes them).

    Tokens of equal probability stay or go together, so that the law does not depend on the order of the vocabulary.

    Args:
      logits: the model's, of any scale; -inf forbids.
      tokenizer: for words in place of numbers, where choices are shown.
      temperature: logits are divided by it.
      top_k: keeps the k most probable tokens, and those as probable as the last of them; all where k is the vocabulary or more.
      top_p: keeps the smallest set of most probable tokens whose probability is at least this (Holtzman et al. 2020, nucleus
        sampling); 1 keeps all.
      min_p: keeps the tokens at least this times as probable as the most probable (Nguyen et al. 2024); 0 keeps all.

    Raises:
      ValueError: for options out of range, where their values are known (as a program's arguments they are not).

    >>> jnp.exp(next_token(jnp.log(jnp.array([0.4, 0.2, 0.2, 0.1, 0.1])), top_p=0.5).logits).round(1)
    Array([0.4, 0.2, 0.2, 0. , 0. ], dtype=float32)
    """
    checked_law("text.next()", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    changed = logits / temperature
    if top_k is not None:
        changed = _where(most_probable(changed, 1, top_k), changed)
    if top_p is not None:
        probabilities, wanted = jax.nn.softmax(changed, axis=-1), jnp.asarray(top_p)
        changed = _where(most_probable(probabilities, probabilities, jnp.where(wanted < 1, wanted - ROUNDING, jnp.inf)), changed)
    if min_p is not None:
        changed = _where(changed >= jnp.max(changed, axis=-1, keepdims=True) + jnp.log(min_p), changed)
    return NextToken(changed, tokenizer, logits)


def most_probable(scores: Float[Array, "*batch vocab"], weights: Array | int, wanted: Array | int) -> Bool[Array, "*batch vocab"]:
    """The smallest set of tokens of best scores, ties together, whose weights sum to `wanted` at least; all tokens where none does.

    By bisection over the floats that could be the lowest score in it, each turn a comparison and a sum over the vocabulary. For 64 x
    49,152 tokens on two CPU cores an eighth of the time of a sort, or of `lax.top_k` (benchmarks/next_token.py).
    """
    scores, weights = lax.stop_gradient((scores, weights))  # the set is constant but where it jumps

    def halve(bounds):
        low, high = bounds  # the rank of the lowest score lies between them
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        total = jnp.sum(jnp.where(scores >= _score(middle, scores.dtype), weights, 0), axis=-1, keepdims=True)
        return jnp.where(total >= wanted, middle, low), jnp.where(total > wanted, high, jnp.where(total < wanted, middle - 1, middle))

    ends = _rank(jnp.min(scores, axis=-1, keepdims=True)), _rank(jnp.max(scores, axis=-1, keepdims=True))
    low, _ = lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, ends)
    return scores >= _score(low, scores.dtype)


def checked_law(name: str, *, temperature: Any = 1.0, top_k: Any = None, top_p: Any = None, min_p: Any = None) -> dict[str, Any]:
    """The options of `next_token` as numbers that are data of a program: another value compiles nothing anew.

    Raises:
      ValueError: in the name of `name`, for values out of range. Traced ones pass.
    """

    def known(value: Any) -> bool:
        return value is not None and not isinstance(value, Tracer)

    if known(temperature) and not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"{name}: temperature must be positive{' and finite' if temperature > 0 else ''}, got {temperature}")
    if known(top_k) and (not _is_whole(top_k) or top_k < 1):
        raise ValueError(f"{name}: top_k must be a whole number from 1 on, got {top_k!r}; leave it out to keep all tokens")
    if known(top_p) and not 0 < top_p <= 1:
        raise ValueError(f"{name}: top_p must lie above 0 and be at most 1, got {top_p}")
    if known(min_p) and not 0 <= min_p <= 1:
        raise ValueError(f"{name}: min_p must lie in [0, 1], got {min_p}")
    kinds = {"temperature": (float, temperature), "top_k": (np.int32, top_k), "top_p": (float, top_p), "min_p": (float, min_p)}
    return {option: kind(value) if known(value) else value for option, (kind, value) in kinds.items()}


def _is_whole(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def _where(kept: Bool[Array, "*batch vocab"], logits: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
    return jnp.where(kept | jnp.isnan(logits), logits, -jnp.inf)  # a broken model stays visible


def _rank(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Whole numbers in the order of floats: their bits, those of negative ones reversed."""
    whole = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    return _turned(lax.bitcast_convert_type(x, whole))


def _score(rank: Int[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """The float of a rank."""
    return lax.bitcast_convert_type(_turned(rank), dtype)


def _turned(bits: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
