"""Enumeration of a chain: all branches of a step at once, then branches with the same future merged.

A chain is a beginning, steps while not done, and an end; each may draw. Its law is carried as rows: states with log
weights. One step turns m rows into m·K, K the number of its branches; rows that agree in all that the rest of the chain
depends on become one, so that a hidden Markov model costs a forward recursion and not a tree.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from posterity.inference.enumeration.script import Script

_BLOCK, _FEW = 2**18, 2**12  # branches evaluated in one call: at most, and without regret
# Compilation takes longest: of an algorithm under check 1.8 s of CPU so, 4.7 s by default. A long chain runs no slower for it.
_QUICK_TO_BUILD = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class Branch(NamedTuple):
    """Where one branch of one row leads."""

    state: Any  # a result, at the end
    log_weight: Array  # its log probability and potentials, nats
    done: Array  # bool []: no steps follow
    choices: list[tuple[str, int]]  # the draws on the way: names and sizes of supports


class Chain(NamedTuple):
    """Functions of (args, state, key, code): `args`, a program say, is what all rows share; `code` says which branch.

    The key is for code that asks for one; nothing may depend on it.
    """

    init: Callable[..., Branch]  # its state is None
    step: Callable[..., Branch]
    final: Callable[..., Branch]


class Rows(NamedTuple):
    """A finite measure: leaves [m, ...] of states or results, log weights [m] (nats), and which are done [m]."""

    leaves: list[np.ndarray]
    log_weights: np.ndarray
    done: np.ndarray

    def at(self, chosen: Any) -> "Rows":
        return Rows([x[chosen] for x in self.leaves], self.log_weights[chosen], self.done[chosen])

    def where(self, mask: np.ndarray) -> "Rows":
        return self if mask.all() else self.at(mask)


class Law(NamedTuple):
    """The law of a chain's result."""

    values: Any  # distinct results, a pytree with leading axis m (NumPy)
    log_weights: np.ndarray  # [m] nats, not normalised
    branches: int  # how many were looked at


def law(chain: Chain, args: Any, limit: int) -> Law:
    """Runs the chain through all its branches.

    Raises:
      ValueError: when one step would have more than `limit` branches, a draw has no finite support, a potential is NaN
        or +inf, or something depends on a random key: a draw was made that no handler saw.
    """
    shared, tree = jax.tree.flatten(jax.tree.map(_wide, args))
    init, step, final = _stages(chain, tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in shared))
    rows = init.expand(shared, Rows([], np.zeros(1), np.zeros(1, bool)), limit, "the beginning")
    branches, ended = init.size, []
    for time in itertools.count(1):
        ended.append(rows.where(rows.done))
        rows = _merged(rows.where(~rows.done))
        if not len(rows.done):
            break
        branches += len(rows.done) * step.size
        rows = step.expand(shared, rows, limit, f"step {time}")
    rows = _merged(_joined(ended))
    branches += len(rows.done) * (final.size - 1)
    rows = _merged(final.expand(shared, rows, limit, "the end"))
    return Law(jax.tree.unflatten(jax.tree.structure(final.out), rows.leaves), rows.log_weights, branches)


@functools.lru_cache(maxsize=64)
def _stages(chain: Chain, tree: Any, shapes: tuple) -> tuple["_Stage", "_Stage", "_Stage"]:
    """The chain's three functions, traced once for all arguments of these shapes."""
    args = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes])
    init = _Stage(chain.init, args, None)
    step, final = _Stage(chain.step, args, init.out), _Stage(chain.final, args, init.out)
    live, before = final.needs([True] * final.width), []
    while live != before:
        live, before = [a or b for a, b in zip(live, step.needs(live), strict=True)], live
    init.compile([], live)
    step.compile(live, live)
    final.compile(live, [True] * final.width)
    return init, step, final


@functools.cache
def _quick_to_build() -> dict[str, Any]:
    """The options that this version of the compiler knows."""
    known = {}
    for name, value in _QUICK_TO_BUILD.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
            known[name] = value
    return known


class _Stage:
    """One function of a chain, traced; `compile` fixes which leaves of the rows are kept."""

    def __init__(self, function: Callable[..., Branch], args: Any, state: Any):
        def traced(args, state, key, code):
            with jax.disable_jit():  # so that draws in code that is compiled apart are met here
                branch = function(args, state, key, code)
            self.choices = branch.choices
            return branch[:3]

        self.choices: list[tuple[str, int]] = []
        inputs = (args, state, jax.eval_shape(lambda: jax.random.key(0)), jnp.zeros((), jnp.uint64))
        self.jaxpr, (self.out, *_) = jax.make_jaxpr(traced, return_shape=True)(*inputs)
        self.given, self.shared, self.width = len(jax.tree.leaves(state)), len(jax.tree.leaves(args)), len(jax.tree.leaves(self.out))
        self.size = math.prod(size for _, size in self.choices)

    def needs(self, live: list[bool]) -> list[bool]:
        """On which leaves of the state the weight, `done` and the `live` leaves of the outcome depend."""
        return dce_jaxpr(self.jaxpr.jaxpr, [*live, True, True])[1][self.shared : self.shared + self.given]

    def compile(self, live_in: list[bool], live_out: list[bool]) -> None:
        jaxpr, used = dce_jaxpr(self.jaxpr.jaxpr, [*live_out, True, True])
        if used[-2]:
            raise ValueError("enumeration: something is drawn from a random key directly; draw it by po.sample or ppl.effects.draw, where a handler can see it")
        function = jaxpr_as_fun(self.jaxpr.replace(jaxpr=jaxpr))

        def branch(shared, leaves, before, code):
            rest = iter(leaves)
            state = [next(rest) if live else None for live in live_in]
            *out, log_weight, done = function(*itertools.compress([*shared, *state, None, code], used))
            return Rows(out, before + log_weight, done)

        self.run = jax.jit(jax.vmap(jax.vmap(branch, (None, None, None, 0)), (None, 0, 0, None)), compiler_options=_quick_to_build())

    def expand(self, shared: list, rows: Rows, limit: int, where: str) -> Rows:
        """All branches of positive weight of every row."""
        m = len(rows.done)
        if m * self.size > limit:
            sizes = ", ".join(f"{name!r} {size}" for name, size in self.choices)
            raise ValueError(
                f"enumeration: {where} has {m * self.size:.4g} branches, {m:,} states times the sizes of the supports ({sizes}); the limit is {limit:,}"
            )
        codes, together = min(self.size, _BLOCK), _power_of_two(_BLOCK // self.size)  # codes beyond the last have probability zero
        starts = itertools.product(range(0, max(m, 1), together), range(0, self.size, codes))
        return _joined([self._block(shared, rows.at(slice(i, i + together)), np.arange(k, k + codes, dtype=np.uint64), together) for i, k in starts])

    def _block(self, shared: list, rows: Rows, codes: np.ndarray, together: int) -> Rows:
        m = len(rows.done)
        padded = min(max(8 ** math.ceil(round(math.log(max(m, 1), 8), 9)), _power_of_two(_FEW // len(codes))), together)  # few shapes: few compilations
        leaves, before, _ = jax.tree.map(lambda x: np.resize(x, (padded, *x.shape[1:])), rows)
        found = jax.tree.map(lambda x: x[:m].reshape(-1, *x.shape[2:]), jax.device_get(self.run(shared, leaves, before, codes)))
        if np.any(np.isnan(found.log_weights) | np.isposinf(found.log_weights)):
            raise ValueError("enumeration: a log potential is NaN or +inf (each must be finite or -inf), or the probabilities of a choice do not sum to one")
        return found.where(found.log_weights > -np.inf)


def scripted(function: Callable[[], tuple[Any, Array, Array]], code: Array) -> Branch:
    """The branch `code` of a function that draws, and gives a state, a log potential and whether that is the end."""
    with Script(code) as script:
        state, log_potential, done = function()
    return Branch(state, weigh(script.log_prob, log_potential), done, script.choices)


def weigh(log_prob: Array, log_potential: Array) -> Array:
    """Their sum; what stands on branches of probability zero may be anything."""
    return jnp.where(jnp.isneginf(log_prob), -jnp.inf, log_prob + log_potential)


def _power_of_two(most: int) -> int:
    return 1 << (max(1, most).bit_length() - 1)


def _joined(parts: list[Rows]) -> Rows:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts) if len(parts) > 1 else parts[0]


def _merged(rows: Rows) -> Rows:
    """Equal rows as one, with the sum of their weights."""
    if len(rows.done) < 2:
        return rows
    first, group = groups(rows.leaves, len(rows.done))
    largest = np.full(len(first), -np.inf)
    np.maximum.at(largest, group, rows.log_weights)
    total = np.bincount(group, weights=np.exp(rows.log_weights - largest[group]), minlength=len(first))
    return Rows([x[first] for x in rows.leaves], largest + np.log(total), rows.done[first])


def groups(leaves: list[np.ndarray], m: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each kind, and each row's kind [m]."""
    columns = [np.ascontiguousarray(column) for x in leaves if x.size for column in _words(x.reshape(m, -1)).T]
    columns = [column for column in columns if np.any(column != column[0])]
    if not columns:
        return np.arange(min(m, 1)), np.zeros(m, int)
    _, first, group = np.unique(_hash(columns), return_index=True, return_inverse=True)
    if len(first) < m and any(np.any(column[first][group] != column) for column in columns):  # two kinds with one hash: slowly then
        _, first, group = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


def _words(x: np.ndarray) -> np.ndarray:
    """Numbers as 64-bit words, equal where the numbers are (0 and -0 are)."""
    if np.issubdtype(x.dtype, np.floating):
        return (x.astype(np.float64) + 0.0).view(np.uint64)
    return x.astype(np.int64, copy=False).view(np.uint64)


def _hash(columns: list[np.ndarray]) -> np.ndarray:
    """One word for each row of words, [m]: the sum of the mixed words (the mixer of SplitMix64)."""
    total = np.zeros_like(columns[0])
    for i, column in enumerate(columns, 1):
        x = column + np.uint64(i * 0x9E3779B97F4A7C15 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += x ^ (x >> np.uint64(31))
    return total


def _wide(leaf: Any) -> Any:
    """In 64 bits: results are as exact as the numbers that went in."""
    wider = {np.dtype(np.float32): np.float64, np.dtype(np.int32): np.int64}.get(getattr(leaf, "dtype", None))
    return leaf if wider is None else jnp.asarray(leaf, wider)
