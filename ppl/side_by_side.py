"""Loops over many problems that `jax.vmap` runs side by side."""

from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_batching.custom_vmap
def anywhere(going: Array) -> Array:
    """`going`, a truth value; under `vmap` whether it holds for any of the mapped ones, one for all of them.

    As a loop's condition it makes one loop for all, in which those that have finished stand still by themselves: its body must leave
    them as they are, or give back what they were by `held`. A condition of their own would have JAX choose between the old and the new carry,
    each turn a copy of all there is.

    >>> jax.vmap(lambda n: jax.lax.while_loop(lambda i: anywhere(i < n), lambda i: jnp.minimum(i + 1, n), 0))(jnp.array([1, 5]))
    Array([1, 5], dtype=int32)
    """
    return going


@anywhere.def_vmap
def _any_of(size: int, batched: list, going: Array) -> tuple[Array, bool]:
    return (jnp.any(going, axis=0), False) if batched[0] else (going, False)


@runtime_checkable
class Shared(Protocol):
    """A part of a carry that knows better than to choose between all of its arrays: a capability."""

    def held(self, going: Array, before: Self) -> Self:
        """What means the same as this where `going`, and as `before` elsewhere."""
        ...


def held(going: Array, new: Any, old: Any) -> Any:
    """`new`, in the body of a loop that goes on; under `vmap`, where the loop goes on `anywhere`, `old` where it has ended by itself.

    >>> turn = lambda i, n: held(i < n, i + 1, i)
    >>> jax.vmap(lambda n: jax.lax.while_loop(lambda i: anywhere(i < n), lambda i: turn(i, n), 0))(jnp.array([1, 5])).tolist()
    [1, 5]
    """
    shared = lambda x: isinstance(x, Shared)  # noqa: E731
    (news, tree), olds = jax.tree.flatten(new, is_leaf=shared), jax.tree.leaves(old, is_leaf=shared)
    plain = [i for i, x in enumerate(news) if not shared(x)]
    found = dict(zip(plain, _held(going, [news[i] for i in plain], [olds[i] for i in plain]), strict=True))
    return tree.unflatten(found[i] if i in found else x.held(going, olds[i]) for i, x in enumerate(news))


@jax.custom_batching.custom_vmap
def _held(going: Array, new: list[Array], old: list[Array]) -> list[Array]:
    return new


@_held.def_vmap
def _chosen(size: int, batched: list, going: Array, new: list[Array], old: list[Array]) -> tuple[list[Array], list[bool]]:
    if not batched[0]:
        return new, batched[1]
    axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched[1:])
    choose = lambda going, new, old: jax.tree.map(lambda new, old: jnp.where(going, new, old), new, old)  # noqa: E731
    return jax.vmap(choose, in_axes=(0, *axes), axis_size=size)(going, new, old), [True] * len(new)
