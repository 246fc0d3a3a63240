"""Mixtures of programs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import struct
from jax import Array

from posterity.ppl.effects import draw
from posterity.ppl.program import Program
from posterity.ppl.transform import bound, known


class Mixed(NamedTuple):
    """Particles of several programs at once, of which each counts in one."""

    component: Array  # [n] int32, in which
    parts: tuple[Any, ...]  # every program's particles; what goes on in a part that does not count is never looked at


@struct.dataclass
class Mixture:
    """A weighted sum of programs; see `mixture`."""

    programs: tuple[Program, ...]
    weights: Array  # [programs]

    def __repr__(self) -> str:
        return f"<mixture of {', '.join(map(repr, self.programs))}>"

    @property
    def length(self) -> int:
        return max(program.length for program in self.programs)

    def init(self, key: Array, n: int) -> tuple[Mixed, Array]:
        component_key, *keys = jax.random.split(key, 1 + len(self.programs))
        component = draw(component_key, "component", dist.CategoricalLogits(jnp.log(self.weights)).expand([n])).astype(jnp.int32)
        parts, log_potentials = zip(*(program.init(key, n) for program, key in zip(self.programs, keys, strict=True)), strict=True)
        return Mixed(component, parts), _chosen(component, log_potentials) + jnp.log(jnp.sum(self.weights))

    def step(self, key: Array, particles: Mixed, *, where: Array | None = None) -> tuple[Mixed, Array]:
        keys = jax.random.split(key, len(self.programs))
        stepped = [program.step(key, part, where=where) for program, part, key in zip(self.programs, particles.parts, keys, strict=True)]
        parts, log_potentials = zip(*stepped, strict=True)
        return particles._replace(parts=parts), _chosen(particles.component, log_potentials)

    def select(self, particles: Mixed, ancestors: Array) -> Mixed:
        parts = tuple(program.select(part, ancestors) for program, part in zip(self.programs, particles.parts, strict=True))
        return Mixed(particles.component[ancestors], parts)

    def done(self, particles: Mixed) -> Array:
        return _chosen(particles.component, [program.done(part) for program, part in zip(self.programs, particles.parts, strict=True)])

    def value(self, particles: Mixed) -> Any:
        values = [program.value(part) for program, part in zip(self.programs, particles.parts, strict=True)]
        _check_alike(self.programs, values)
        return jax.tree.map(lambda *xs: _chosen(particles.component, xs), *values)

    def choices(self, particles: Mixed) -> dict[str, Any]:
        return {"component": particles.component}


def mixture(programs: Sequence[Program], weights: Array | Sequence[float] | None = None) -> Mixture:
    """The program that means sum_i w_i ⟦p_i⟧: each particle draws one of the programs and runs it.

    Which one it was is the choice "component" of the initial law: `posterior["component"]` compares the programs as models, whose
    prior the weights are. Weights need not sum to one: their sum is part of the evidence. The value is that of the program drawn.
    All programs run for all particles, so a step costs the sum of theirs.

    Args:
      programs: one or more, whose values have the same structure, shapes and dtypes.
      weights: a positive number for each, leaves of the program; by default equal ones that sum to one.

    Raises:
      TypeError: when one of the programs is none.
      ValueError: when there are no programs, weights are not one finite positive number for each, or (from `value`) when values differ in shape.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(p):
    ...     po.observe("toss", dist.Bernoulli(p), 1)
    ...     return 0
    >>> posterior = po.importance(jax.random.key(0), po.mixture([coin(0.25), coin(0.75)]), n=2_000)
    >>> bool(abs(posterior["component"].expect() - 0.75) < 0.05)
    True
    """
    programs = tuple(bound("mixture", program) for program in programs)
    if not programs:
        raise ValueError("mixture: give at least one program")
    weights = jnp.full(len(programs), 1 / len(programs)) if weights is None else weights
    if not (np.shape(weights) == (len(programs),) and known(weights, lambda row: (np.isfinite(row) & (row > 0)).all())):
        raise ValueError(f"mixture: weights must be {len(programs)} finite positive numbers, one for each program, got {weights}")
    return Mixture(programs, jnp.asarray(weights, float))


def _chosen(component: Array, batches: Sequence[Array]) -> Array:
    """Row i from batch number component[i]."""
    return jnp.stack(batches)[component, jnp.arange(component.shape[0])]


def _check_alike(programs: Sequence[Program], values: Sequence[Any]) -> None:
    kinds = [(jax.tree.structure(value), [(jnp.result_type(x).name, jnp.shape(x)[1:]) for x in jax.tree.leaves(value)]) for value in values]
    for program, kind in zip(programs, kinds, strict=True):
        if kind != kinds[0]:
            raise ValueError(f"mixture: values must be alike; {programs[0]} has {kinds[0]}, {program} has {kind}")
