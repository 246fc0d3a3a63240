"""One key for a batch of particles: a draw that all of them make is one draw of many bits, not a key for every particle."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.extend.core import Jaxpr, Literal
from jax.extend.core.primitives import jit_p, random_bits_p, random_fold_in_p, random_split_p, reshape_p, slice_p, squeeze_p

from posterity.ppl.effects import followed

# What makes keys of keys, or picks them out, by constants alone: its results are shared as what it is given.
_OF_KEYS = {random_split_p, random_fold_in_p, slice_p, squeeze_p, reshape_p}


def with_own_key(function: Callable) -> Callable:
    """`function(key, *args)` of one particle as `run(key, index, *args)`, for `jax.vmap` over the index, every particle's own number, but not over the key.

    The particles' draws are independent: the function is traced once, and where all particles draw bits with a key that they
    share, the batch draws them at once. Wherever else a shared key is used (in a branch, a loop, a rejection sampler), the
    particle's index is folded in first, so that it has a key of its own from there on. By itself this changes no law: bits
    of one key and one shape are independent, and so are keys with different numbers folded in. Without `jax.vmap` too the
    index is folded in.

    Importance sampling with one normal a step takes a fifth of the time that a key for each particle takes (n = 10^5).
    """

    def run(key: Array, index: Array, *args: Any) -> Any:
        if followed():  # the draws are decided by who follows them, one particle after another
            return function(jax.random.fold_in(key, index), *args)
        key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
        closed, shape = jax.make_jaxpr(function, return_shape=True)(key, *args)
        leaves = [key, *jax.tree.leaves(args)]
        results, shared = _evaluate(closed.jaxpr, closed.consts, leaves, [True] + [False] * (len(leaves) - 1), index)
        return jax.tree.unflatten(jax.tree.structure(shape), [_own(x, index) if s else x for x, s in zip(results, shared, strict=True)])

    return run


def _evaluate(jaxpr: Jaxpr, consts: list, args: list, shared_args: list[bool], index: Array) -> tuple[list, list[bool]]:
    """The results, and which of them are keys that all particles share."""

    def read(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else values[x]

    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    shared = {x for x, is_shared in zip(jaxpr.invars, shared_args, strict=True) if is_shared}
    for equation in jaxpr.eqns:
        given, primitive, parameters = list(map(read, equation.invars)), equation.primitive, equation.params
        with_all = [not isinstance(x, Literal) and x in shared for x in equation.invars]
        with equation.ctx.manager:
            if primitive is jit_p and any(with_all):
                inner = parameters["jaxpr"]
                results, mask = _evaluate(inner.jaxpr, inner.consts, given, with_all, index)
            elif primitive is random_bits_p and with_all[0] and given[0].ndim == 0:
                results, mask = [_bits(parameters["bit_width"], parameters["shape"])(given[0], index)], [False]
            else:
                stays = with_all[:1] == [True] and primitive in _OF_KEYS and all(isinstance(x, Literal) for x in equation.invars[1:])
                given = given if stays else [_own(x, index) if s else x for x, s in zip(given, with_all, strict=True)]
                results = primitive.bind(*given, **primitive.get_bind_params(parameters))
                results = results if primitive.multiple_results else [results]
                mask = [stays] * len(results)
        values.update(zip(equation.outvars, results, strict=True))
        shared.update(itertools.compress(equation.outvars, mask))
    return list(map(read, jaxpr.outvars)), [not isinstance(x, Literal) and x in shared for x in jaxpr.outvars]


def _own(keys: Array, index: Array) -> Array:
    """A particle's own keys in place of keys that all share."""
    fold_in = lambda key: jax.random.fold_in(key, index)  # noqa: E731
    return functools.reduce(lambda function, _: jax.vmap(function), range(keys.ndim), fold_in)(keys)


@functools.cache
def _bits(bit_width: int, shape: tuple[int, ...]) -> Callable[[Array, Array], Array]:
    """Random bits for a particle, by a shared key."""

    @custom_vmap
    def bits(key: Array, index: Array) -> Array:
        return random_bits_p.bind(jax.random.fold_in(key, index), bit_width=bit_width, shape=shape)

    @bits.def_vmap
    def _(size: int, batched: list[bool], key: Array, index: Array) -> tuple[Array, bool]:
        if batched[0]:  # by another `vmap`: that of a batch of keys
            return jax.vmap(bits.fun, [0 if b else None for b in batched])(key, index), True
        # Both words of each hash are used; the default keeps one, which lets a compiler shard this array, and takes twice the time.
        with jax.threefry_partitionable(False):
            return random_bits_p.bind(key, bit_width=bit_width, shape=(size, *shape)), True

    return bits
