"""In which type of number a model computes."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

TYPES = ("float32", "bfloat16")


def cast(weights: Any, dtype: Any) -> Any:
    """The weights in another type: what is computed with them, and kept, is of that type; sums, norms, softmaxes and probabilities are float32 in any case.

    Raises:
      ValueError: for a type that models are not computed in.
    """
    if dtype not in TYPES and getattr(jnp.dtype(dtype), "name", None) not in TYPES:
        raise ValueError(f"astype: dtype must be one of {', '.join(map(repr, TYPES))}, got {dtype!r}")
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, weights)


def fastest(weights: Any, n: int) -> str:
    """The type in which n rows times the largest matrix are computed faster here; measured once for a shape, in some tenths of a second.

    Raises:
      ValueError: for weights without a matrix.
    """
    matrices = [x.shape for x in jax.tree.leaves(weights) if x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.floating)]
    if not matrices:
        raise ValueError("fastest: the model has no matrices whose products could be timed")
    return _fastest(n, *sorted(max(matrices, key=lambda shape: shape[0] * shape[1])))


@functools.cache
def _fastest(n: int, inputs: int, outputs: int, repeats: int = 5) -> str:
    """Of the types, by the smallest of `repeats` times each, taken in turns: what else the machine does only adds to them."""
    multiply = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))
    factors = {dtype: (jnp.ones((n, inputs), dtype), jnp.ones((inputs, outputs), dtype)) for dtype in TYPES}
    times: dict[str, list[float]] = {dtype: [] for dtype in TYPES}
    for _ in range(repeats + 1):
        for dtype, (x, y) in factors.items():
            start = time.perf_counter()
            jax.block_until_ready(multiply(x, y))
            times[dtype].append(time.perf_counter() - start)
    return min(TYPES, key=lambda dtype: min(times[dtype][1:]))
