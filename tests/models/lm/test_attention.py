"""Attention in parts against one softmax over everything, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterity.models.lm import attention
from posterity.models.lm.attention import KeysValues

HEADS, KV_HEADS, SIZE = 6, 2, 8
OPTIONS = [{}, {"window": 5}, {"softcap": 1.5}, {"window": 3, "softcap": 0.7}]


def made(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(query, keys, values, position, *, scale, window=None, softcap=None):
    """One query [heads, size] at `position` over keys [tokens, kv heads, size], the plain way."""
    read = np.zeros(query.shape)
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = keys[:, group].astype(float) @ query[head] * scale
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        places = np.arange(len(keys))
        scores[(places > position) | (places <= position - (window or len(keys) + 1))] = -np.inf
        weights = np.exp(scores - scores.max())
        read[head] = weights / weights.sum() @ values[:, group]
    return read


@pytest.mark.parametrize("options", OPTIONS)
def test_whole_sequences_are_read_causally(options):
    query, keys, values = made(0, 2, 9, HEADS, SIZE), made(1, 2, 9, KV_HEADS, SIZE), made(2, 2, 9, KV_HEADS, SIZE)
    read = attention.whole(query, KeysValues(keys, values), scale=0.4, **options).reshape(2, 9, HEADS, SIZE)
    for b in range(2):
        for t in range(9):
            np.testing.assert_allclose(read[b, t], reference(query[b, t], keys[b], values[b], t, scale=0.4, **options), atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_reads_of_a_shared_prompt_of_own_stretches_and_of_oneself_merge_to_one_softmax(options):
    n, room, lengths, prompt = 3, 8, np.array([0, 3, 8]), 4  # of 7, the rest is padding
    window, softcap = options.get("window"), options.get("softcap")
    query, shared_k, shared_v = made(0, n, HEADS, SIZE), made(1, 7, KV_HEADS, SIZE), made(2, 7, KV_HEADS, SIZE)
    own_k, own_v, new_k, new_v = made(3, n, room, KV_HEADS, SIZE), made(4, n, room, KV_HEADS, SIZE), made(5, n, KV_HEADS, SIZE), made(6, n, KV_HEADS, SIZE)

    def stretch(j):
        keys, values = (jax.lax.dynamic_slice_in_dim(jnp.asarray(x), 4 * j, 4, 1).swapaxes(1, 2) for x in (own_k, own_v))
        positions = 4 * j + jnp.arange(4)
        own = (positions < lengths[:, None]) & attention.seen(lengths[:, None], positions, window)
        return keys, values, own

    visible = attention.seen(prompt + lengths[:, None], jnp.arange(7), window) & (jnp.arange(7) < prompt)
    reads = [
        attention.shared(query, shared_k.transpose(1, 2, 0), shared_v.swapaxes(0, 1), visible, scale=0.4, softcap=softcap),
        attention.in_stretches(query, stretch, jnp.asarray(2), KV_HEADS, scale=0.4, softcap=softcap),
        attention.itself(query, new_k, new_v, scale=0.4, softcap=softcap),
    ]
    merged = attention.merge(reads)
    for i, length in enumerate(lengths):
        keys = np.concatenate([shared_k[:prompt], own_k[i, :length], new_k[i : i + 1]])
        values = np.concatenate([shared_v[:prompt], own_v[i, :length], new_v[i : i + 1]])
        np.testing.assert_allclose(merged[i], reference(query[i], keys, values, prompt + length, scale=0.4, **options), atol=1e-5)


def test_a_stretch_of_which_nothing_is_seen_weighs_nothing():
    query, keys = made(0, 2, HEADS, SIZE), made(1, KV_HEADS, SIZE, 3)
    read = attention.shared(query, keys, keys.swapaxes(1, 2), np.zeros((2, 3), bool), scale=1.0)
    assert (read.log_weight == -jnp.inf).all()
    assert (read.mean == 0).all()


def test_the_softmax_is_float32_whatever_keys_are():
    # 400 tokens of equal weight: in bfloat16 a sum of ones stands still at 256.
    keys = jnp.zeros((KV_HEADS, SIZE, 400), jnp.bfloat16)
    read = attention.shared(jnp.ones((1, HEADS, SIZE), jnp.bfloat16), keys, jnp.ones((KV_HEADS, 400, SIZE), jnp.bfloat16), np.ones((1, 400), bool), scale=1.0)
    assert read.log_weight.dtype == read.mean.dtype == jnp.float32
    np.testing.assert_allclose(read.log_weight, np.log(400), rtol=1e-6)
    np.testing.assert_allclose(read.mean, 1, rtol=1e-2)
