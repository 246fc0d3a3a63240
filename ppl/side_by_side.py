"""Loops over many problems that `jax.vmap` runs side by side."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_batching.custom_vmap
def anywhere(going: Array) -> Array:
    """`going`, a truth value; under `vmap` whether it holds for any of the mapped ones, one for all of them.

    As a loop's condition it makes one loop for all, in which those that have finished stand still by themselves: its body must leave
    them as they are. A condition of their own would have JAX choose between the old and the new carry, each turn a copy of all there is.

    >>> jax.vmap(lambda n: jax.lax.while_loop(lambda i: anywhere(i < n), lambda i: jnp.minimum(i + 1, n), 0))(jnp.array([1, 5]))
    Array([1, 5], dtype=int32)
    """
    return going


@anywhere.def_vmap
def _any_of(size: int, batched: list, going: Array) -> tuple[Array, bool]:
    return (jnp.any(going, axis=0), False) if batched[0] else (going, False)
