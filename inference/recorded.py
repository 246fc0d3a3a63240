"""Programs whose particles keep their past."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from posterity.ppl import component
from posterity.ppl.program import Program
from posterity.ppl.transform import Transformed, active, bound


class Trajectory(NamedTuple):
    """Particles with their past. A particle's past is its entries 0..steps; later entries mean nothing.

    Every leaf of `now`, [n, ...], has its history in `states`, [n, length + 1, ...]; one that all particles share
    (a scalar: the time of a program driven by xs) has [n, length + 1], the same in every row. So row i of `states`
    at t is the particle alone; `at` gives the inner particles of a past time.
    """

    now: Any  # the inner program's particles
    states: Any  # those after 0, 1, .. steps of the particle's own; steps in which it stood still do not count
    log_potentials: Array  # [n, length + 1], nats: of the initial law, the first step, ..
    steps: Array  # [n] int32, how many steps the particle has made
    time: Array  # [n] int32, how many it was asked to make, those included in which it was done already


@struct.dataclass
class Recorded(Transformed):
    """A program whose particles keep their past; see `recorded`."""

    def __repr__(self) -> str:
        return f"<{self.inner} recorded>"

    def init(self, key: Array, n: int) -> tuple[Trajectory, Array]:
        now, log_potential = self.inner.init(key, n)
        _check(self.inner, now, n)
        times = self.length + 1
        states = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None] if x.ndim else x, (n, times, *x.shape[1:])), now)
        log_potentials = jnp.zeros((n, times), log_potential.dtype).at[:, 0].set(log_potential)
        none = jnp.zeros(n, jnp.int32)
        return Trajectory(now, states, log_potentials, none, none), log_potential

    def step(self, key: Array, particles: Trajectory, *, where: Array | None = None) -> tuple[Trajectory, Array]:
        moved = active(self, particles, where)
        now, log_potential = self.inner.step(key, particles.now, where=where)
        steps = particles.steps + moved
        n, times = particles.log_potentials.shape

        def write(history: Array, x: Array) -> Array:
            return history.at[jnp.arange(n), jnp.where(moved, steps, times)].set(x, mode="drop")  # what stands still would write beyond the end

        states, log_potentials = jax.tree.map(write, particles.states, now), write(particles.log_potentials, log_potential)
        return Trajectory(now, states, log_potentials, steps, particles.time + (1 if where is None else where)), log_potential


def recorded(program: Program) -> Recorded:
    """The program with its past kept in the particles: every state, every log potential, and how many steps there were.

    The meaning and the value are the program's. This is the traced representation of Ścibior et al. (2018), from which
    moves on whole trajectories start: `Trajectory` fixes what is kept, and how.

    Raises:
      TypeError: when `program` is no program; from `init`, when its particles are not arrays with leading axis n (or scalars
        that all share): a language model's text keeps its past in a cache that is shared.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> program = po.recorded(walk(jnp.array([1.0, 2.0])))
    >>> particles, _ = program.init(jax.random.key(0), 5)
    >>> particles, log_potential = program.step(jax.random.key(1), particles)
    >>> particles.states.carry[0].shape, particles.log_potentials.shape, int(particles.steps[0])
    ((5, 3), (5, 3), 1)
    """
    return Recorded(bound("recorded", program))


def at(particles: Trajectory, time: Array | int) -> Any:
    """The inner particles as they were after `time` steps of their own, an int for all or one for each, [n].

    Raises:
      ValueError: when particles that share a leaf (driven by xs, they move together) are asked for different times.
    """
    time, rows = jnp.asarray(time), jnp.arange(particles.steps.shape[0])
    if time.ndim and any(x.ndim == 0 for x in jax.tree.leaves(particles.now)):
        raise ValueError("at: these particles move together, so that time must be one int for all")
    return jax.tree.map(lambda history, x: history[rows, time] if x.ndim else history[0, time], particles.states, particles.now)


def _check(program: Program, particles: Any, n: int) -> None:
    for leaf in jax.tree.leaves(particles, is_leaf=lambda x: isinstance(x, component.State)):
        if isinstance(leaf, component.State):
            raise TypeError(f"recorded: {program} has a {type(leaf).__name__} in its particles, which shares its past between them; only arrays are recorded")
        if jnp.shape(leaf) and jnp.shape(leaf)[0] != n:
            raise TypeError(f"recorded: {program} has an array of shape {jnp.shape(leaf)} in its {n} particles; each needs a leading axis of {n}, or none")
