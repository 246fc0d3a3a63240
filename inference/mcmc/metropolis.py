"""Metropolis-Hastings moves on the trajectories of any program: redraw from some step on, accept or stay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from posterity.inference.blocks import Moved
from posterity.inference.recorded import Recorded, Trajectory, at
from posterity.ppl.effects import draw, loop


def suffix_mh(key: Array, program: Recorded, particles: Trajectory, *, time: Array | int | None = None) -> tuple[Trajectory, Moved]:
    """Redraws every particle from a position of its own to the end of its run, by the program's law; accepts or stays.

    A trajectory x of n(x) positions (the initial law, then its steps) gets one of them uniformly; the new one x' is accepted
    with probability min(1, G(x') n(x) / (G(x) n(x'))), G being the product of all potentials. Leaves the law of trajectories of
    `time` steps invariant, early endings included: without n(x) / n(x') short ones would come up too seldom.

    Args:
      key: a `jax.random.key`.
      program: a recorded program.
      particles: what is to be moved, each on its own; not only steps, but endings may change.
      time: how many steps they have been run for (those that ended earlier counted as waiting); by default to the end.

    Source: Green (1995); Wingate, Stuhlmueller and Goodman (2011) for the factor; as "mh" in Ścibior et al. (2018).
    """
    position_key, redraw_key, accept_key = jax.random.split(key, 3)
    possible = jnp.where(made(particles), 0.0, -jnp.inf)
    position = draw(position_key, "position", dist.CategoricalLogits(possible, validate_args=False))
    proposed = redraw(redraw_key, program, particles, position, program.length if time is None else time)
    before, after = [jnp.sum(made(p), axis=1).astype(float) for p in (particles, proposed)]
    moved = accept(accept_key, log_potential(proposed), log_potential(particles), jnp.log(before / after))
    return where(moved.accepted, proposed, particles), moved


def redraw(key: Array, program: Recorded, particles: Trajectory, position: Array, time: Array | int) -> Trajectory:
    """Every particle's past before its `position` [n] (0: nothing, not even the initial law), continued afresh to `time` steps."""
    init_key, step_key = jax.random.split(key)
    fresh, _ = program.init(init_key, position.shape[0])

    def again(state):
        t, fresh = state
        stepped, _ = program.step(jax.random.fold_in(step_key, t), fresh)
        return t + 1, where(t + 1 < position, upto(particles, t + 1, stepped), stepped)

    fresh = where(position > 0, upto(particles, 0, fresh), fresh)
    start = (jnp.zeros((), jnp.int32), fresh)
    return fresh if program.length == 0 else loop(lambda state: state[0] < time, again, start, limit=program.length)[1]


def upto(particles: Trajectory, time: Array | int, like: Trajectory) -> Trajectory:
    """The particles as they were after `time` steps, which each of them that counts has made; `like` is any run as far as that."""
    now = jax.tree.map(lambda past, x: past if x.ndim else x, at(particles, time), like.now)
    return particles._replace(now=now, steps=jnp.full_like(particles.steps, time), time=like.time)


def made(particles: Trajectory) -> Array:
    """Which positions a trajectory has, bool [n, length + 1]: the initial law, and its steps."""
    return jnp.arange(particles.log_potentials.shape[1]) <= particles.steps[:, None]


def log_potential(particles: Trajectory) -> Array:
    """The log potentials of every particle's whole past, summed: [n], nats; NaN when one of them is invalid before any is -inf."""
    log_potentials = jnp.where(made(particles), particles.log_potentials, 0.0)
    forbidden = jnp.cumsum(jnp.isneginf(log_potentials), axis=1) > 0  # what comes after may be anything
    return jnp.where(forbidden[:, -1], -jnp.inf, 0.0) + jnp.sum(jnp.where(forbidden, 0.0, log_potentials), axis=1)


def accept(key: Array, log_new: Array, log_old: Array, log_factor: Array | float = 0.0) -> Moved:
    """Accepts with probability min(1, factor * new / old), each of [n]. 0/0 is 0: what is forbidden is never taken, and always left for what is not."""
    invalid = jnp.isnan(log_new) | jnp.isposinf(log_new)
    log_ratio = jnp.where(jnp.isneginf(log_new) | jnp.isneginf(log_factor) | invalid, -jnp.inf, log_new - log_old + log_factor)
    return Moved(draw(key, "accept", dist.Bernoulli(probs=jnp.exp(jnp.minimum(log_ratio, 0.0)))) == 1, invalid)


def where(condition: Array, new: Any, old: Any) -> Any:
    """For every particle the new one where `condition` [n] holds, else the old; what all share is as in the new."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b) if a.ndim else a, new, old)
