"""Attention as pure functions: over whole sequences, and over parts of a memory whose reads are merged exactly.

A softmax over several stretches of keys is the mean of the softmaxes within them, weighted by their sums (Milakov and
Gimelshein 2018; Dao et al. 2022). So a prompt that all particles share is read by one matrix product, a particle's own
tokens from wherever they lie, and nothing is put side by side. Scores and softmax are float32 whatever keys and values are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LOWEST = float(jnp.finfo(jnp.float32).min)  # stands for -inf where a difference of two would be NaN


class KeysValues(NamedTuple):
    """Keys and values of one layer, [..., tokens, kv heads, head dim]."""

    keys: Array
    values: Array


class Read(NamedTuple):
    """What heads read from a stretch of memory, and how much of their attention lies there."""

    mean: Array  # [n, heads, size] float32, the values' mean under the softmax within the stretch; zeros where nothing is seen
    log_weight: Array  # [n, heads], log of the sum of the exponentiated scores, nats; -inf where nothing is seen


def whole(query: Array, kv: KeysValues, *, scale: float, window: int | None = None, softcap: float | None = None) -> Array:
    """Causal attention over whole sequences: queries [batch, tokens, heads, size] read [batch, tokens, heads * size].

    Query heads are grouped over the key heads; with a `window` each token sees itself and the `window - 1` before it; a
    `softcap` c bounds scores to c * tanh(score / c).
    """
    batch, tokens, heads, size = query.shape
    grouped = query.reshape(batch, tokens, kv.keys.shape[2], -1, size)
    positions = jnp.arange(tokens)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, kv.keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen(positions[:, None], positions, window), capped(scores * scale, softcap), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(kv.values.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, kv.values).reshape(batch, tokens, heads * size).astype(query.dtype)


def shared(query: Array, keys: Array, values: Array, visible: Array, *, scale: float, softcap: float | None = None) -> Read:
    """Queries [n, heads, size] over one stretch of P tokens that all n share: a matrix product a key head.

    Keys are [kv heads, size, P] and values [kv heads, P, size], as the products want them; `visible` is [n or 1, P].
    """
    n, heads, size = query.shape
    kv_heads = keys.shape[0]
    rows = query.reshape(n, kv_heads, -1, size).swapaxes(0, 1).reshape(kv_heads, -1, size)
    scores = jnp.einsum("krd,kdp->krp", rows, keys, preferred_element_type=jnp.float32).reshape(kv_heads, n, -1, keys.shape[2])
    scores = jnp.where(visible[:, None], capped(scores * scale, softcap), -jnp.inf)
    highest = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), LOWEST)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1)
    read = jnp.einsum("krp,kpd->krd", weights.reshape(kv_heads, -1, keys.shape[2]).astype(values.dtype), values, preferred_element_type=jnp.float32)
    mean = read.reshape(kv_heads, n, -1, size) / _positive(total)[..., None]
    return Read(mean.swapaxes(0, 1).reshape(n, heads, size), (highest[..., 0] + jnp.log(total)).swapaxes(0, 1).reshape(n, heads))


def in_stretches(
    query: Array, stretch: Callable[[Array], tuple[Array, Array, Array]], count: Array | int, kv_heads: int, *, scale: float, softcap: float | None = None
) -> Read:
    """Queries [n, heads, size] over `count` stretches of their own, one after the other, so that only as many are read as there are.

    `stretch(j)` gives keys and values [n, kv heads, tokens, size], and which tokens are visible [n, tokens].
    """
    n, heads, size = query.shape
    grouped = query.reshape(n, kv_heads, -1, size)

    def body(j, carry):
        highest, total, read = carry
        keys, values, visible = stretch(j)
        scores = jnp.einsum("nkgd,nktd->nkgt", grouped, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(visible[:, None, None], capped(scores * scale, softcap), -jnp.inf)
        now = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights, before = jnp.exp(scores - now[..., None]), jnp.exp(highest - now)
        new = jnp.einsum("nkgt,nktd->nkgd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return now, total * before + jnp.sum(weights, axis=-1), read * before[..., None] + new

    none = jnp.zeros(grouped.shape[:-1], jnp.float32)
    highest, total, read = jax.lax.fori_loop(0, count, body, (none + LOWEST, none, jnp.zeros(grouped.shape, jnp.float32)))
    return Read((read / _positive(total)[..., None]).reshape(query.shape), (highest + jnp.log(total)).reshape(n, heads))


def itself(query: Array, keys: Array, values: Array, *, scale: float, softcap: float | None = None) -> Read:
    """Queries [n, heads, size] over the one token they belong to, with keys and values [n, kv heads, size]."""
    n, heads, size = query.shape
    grouped = query.reshape(n, keys.shape[1], -1, size)
    scores = capped(jnp.einsum("nkgd,nkd->nkg", grouped, keys, preferred_element_type=jnp.float32) * scale, softcap)
    mean = jnp.broadcast_to(values[:, :, None].astype(jnp.float32), grouped.shape)
    return Read(mean.reshape(query.shape), scores.reshape(n, heads))


def merge(reads: Sequence[Read]) -> Array:
    """What heads read over all stretches together, [n, heads, size] float32; at least one must be seen."""
    # Not as a softmax of what is stacked: XLA on CPUs stacks anew for every number that is multiplied by a share.
    highest = functools.reduce(jnp.maximum, (read.log_weight for read in reads))
    shares = [jnp.exp(read.log_weight - highest) for read in reads]
    total = functools.reduce(jnp.add, shares)
    return functools.reduce(jnp.add, ((share / total)[..., None] * read.mean for share, read in zip(shares, reads, strict=True)))


def seen(query: Array, key: Array, window: int | None = None) -> Array:
    """Whether a token at position `query` sees the one at `key`: those before it and itself, the last `window` of them."""
    causal = key <= query
    return causal if window is None else causal & (query - key < window)


def capped(scores: Array, softcap: float | None) -> Array:
    """Scores bounded to (-softcap, softcap), as Gemma 2 has them."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _positive(total: Array) -> Array:
    return jnp.where(total > 0, total, 1.0)
