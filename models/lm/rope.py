"""Rotary positions (Su et al. 2021), and the ways in which checkpoints stretch them to longer contexts.

Every way is one divisor for the frequency of each pair of channels: `linear`, `llama3` and `yarn` give them, [head dim / 2].
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from posterity.models.lm.config import DecoderConfig


class Turn(NamedTuple):
    """The angles by which a layer turns its channels: [t, 1, head dim / 2] or [n, t, 1, head dim / 2]."""

    cos: Array
    sin: Array


def turns(positions: Array, config: DecoderConfig, dtype: DTypeLike) -> list[Turn | None]:
    """Each layer's, at positions [t] or [n, t]; None where positions are learned."""
    if config.positions != "rotary":
        return [None] * config.num_layers

    @functools.cache
    def turn(local: float | None) -> Turn:
        frequency, magnitude = frequencies(config.head_dim, local or config.rope_theta), 1.0
        if local is None:
            magnitude = config.rope_magnitude
            frequency = frequency / np.asarray(config.rope_divisors or 1.0)
        angle = positions[..., None, None] * frequency.astype(np.float32)
        # Unless held, XLA on CPUs computes them again for every layer and head: a thirtieth of a step.
        return Turn(*lax.optimization_barrier(((jnp.cos(angle) * magnitude).astype(dtype), (jnp.sin(angle) * magnitude).astype(dtype))))

    return [turn(config.local_rope_theta if config.window(layer) is not None else None) for layer in range(config.num_layers)]


def rotate(x: Array, turn: Turn | None) -> Array:
    """The channels of x [n, t, heads, size], turned in pairs of one from each half; the identity without a turn."""
    if turn is None:
        return x
    cos, sin = turn
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def frequencies(size: int, theta: float) -> np.ndarray:
    """Of each pair of `size` channels, in radians a token, [size / 2]."""
    return theta ** (-np.arange(0, size, 2) / size)


def linear(size: int, factor: float) -> np.ndarray:
    """Every angle divided alike (Chen et al. 2023, position interpolation).

    >>> linear(4, 8.0)
    array([8., 8.])
    """
    return np.full(size // 2, float(factor))


def llama3(size: int, theta: float, *, factor: float, low: float, high: float, context: int) -> np.ndarray:
    """Llama 3.1's: pairs with more than `high` turns within the original context stay, below `low` turns they are divided by `factor`, between they blend.

    >>> llama3(4, 10_000.0, factor=8.0, low=1.0, high=4.0, context=128).round(3)
    array([1., 8.])
    """
    turns = context * frequencies(size, theta) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - kept) / factor + kept)


def yarn(size: int, theta: float, *, factor: float, context: int, fast: float = 32.0, slow: float = 1.0) -> np.ndarray:
    """YaRN's blend (Peng et al. 2023, section 3.2): a ramp over the pairs, from `fast` turns within the original context to `slow` ones.

    >>> yarn(4, 10_000.0, factor=8.0, context=256).round(3)
    array([1., 8.])
    """

    def pair(turns: float) -> float:
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), size - 1)
    stretched = np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return 1.0 / (stretched / factor + 1.0 - stretched)


def yarn_magnitude(factor: float) -> float:
    """What YaRN multiplies queries and keys by (Peng et al. 2023, equation 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
