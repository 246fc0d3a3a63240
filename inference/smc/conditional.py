"""Conditional SMC (Andrieu, Doucet and Holenstein 2010): a kernel on trajectories, by an SMC in which one particle keeps the given path."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.blocks import Moved
from posterity.inference.drive import Generations
from posterity.inference.recorded import Recorded, Trajectory, at
from posterity.inference.retraced import Retraced, go_on, lasting
from posterity.inference.smc.backward import by_weight, log_suffix, replay, simulate
from posterity.inference.smc.resampling import CONDITIONAL, Ancestors
from posterity.ppl.effects import draw, loop
from posterity.ppl.program import Program
from posterity.ppl.transform import active, times

ANCESTORS = ("trace", "ancestor", "backward")


class Cloud(NamedTuple):
    """A conditional SMC under way."""

    time: Int[Array, ""]
    now: Generations  # particles and their last log potentials; number 0 is the given path's
    steps: Int[Array, " n"]  # how many each particle has made
    past: Generations  # all so far
    ancestors: Int[Array, "length n"]
    invalid: Bool[Array, ""]  # a potential was NaN or +inf
    held: Bool[Array, ""]  # whether particle 0 is on the given path; it is let go when that is found to be impossible


def conditional_smc(
    key: PRNGKeyArray, program: Recorded, particles: Trajectory, *, n: int, ancestors: str = "trace", resampling: str | type[Ancestors] = "multinomial"
) -> Trajectory:
    """A new trajectory given one: SMC with `n` particles of which number 0 follows the given path, then one drawn by the final weights.

    Leaves the law of the program's trajectories invariant, for every n of at least 2 and whatever the options. Particles are resampled
    before every step, particle 0 apart: what it descends from is a choice.

    Args:
      key: a `jax.random.key`.
      program: a recorded program; for ancestors other than "trace", `po.recorded(po.retraced(p))`.
      particles: one trajectory of it, run to its end (a batch of one).
      n: the number of particles, the given one included.
      ancestors: "trace" lets particle 0 keep its own ancestors, and the result is traced back along those of the run: its early part seldom changes
        when the run is long. "ancestor" draws, before every step, an ancestor for the rest of the given path by weight times the density of that
        rest (ancestor sampling; Lindsten, Jordan and Schön 2014). "backward" draws the result backwards from all generations
        (backward sampling; Whiteley 2010), as `backward_simulation` does, at its cost.
      resampling: of the others, given that particle 0 keeps its place: "multinomial", "systematic", "stratified", "residual", "ssp", "killing", or a class of
        `inference.smc.resampling.conditional`.

    Raises:
      TypeError: when other ancestors than "trace" are asked for and the program is not retraced.
      ValueError: when n is less than 2, more than one trajectory is given, or on other ancestors or resampling.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> program = po.recorded(walk(jnp.array([1.0, 2.0])))
    >>> path, _ = program.init(jax.random.key(0), 1)
    >>> for key in jax.random.split(jax.random.key(1), 2):
    ...     path, _ = program.step(key, path)
    >>> path = jax.jit(po.conditional_smc, static_argnames="n")(jax.random.key(2), program, path, n=10)
    >>> path.states.carry[0].shape  # one trajectory of the initial state and two steps
    (1, 3)
    """
    return move(key, program, particles, n=n, ancestors=ancestors, resampling=resampling)[0]


def move(
    key: PRNGKeyArray, program: Recorded, particles: Trajectory, *, n: int, ancestors: str, resampling: str | type[Ancestors], exponent: Array | float = 1.0
) -> tuple[Trajectory, Moved]:
    """`conditional_smc` for the program with its potentials raised to the exponent (above 0), and whether anything of the path has changed."""
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be at least 2 particles (one keeps the path), got {n!r}")
    scheme = checked(program, ancestors, resampling)
    if particles.steps.shape != (1,):
        raise ValueError(f"particles must be one trajectory, a batch of one, got {particles.steps.shape[0]}")
    _, _, last_key, back_key = jax.random.split(key, 4)
    inner: Any = program.inner
    cloud = around(key, program, particles, n, ancestors, scheme, exponent)
    if ancestors == "backward":
        return rerun(back_key, inner, cloud, exponent)
    return traced(draw(last_key, "chosen", by_weight(exponent * cloud.now.log_weights)), cloud)


def around(
    key: PRNGKeyArray, program: Recorded, particles: Trajectory, n: int, ancestors: str, scheme: type[Ancestors], exponent: Array | float = 1.0
) -> Cloud:
    """All particles of an SMC of n in which number 0 follows the given path."""
    init_key, loop_key, _, _ = jax.random.split(key, 4)
    inner: Any = program.inner
    length = program.length
    live = lasting(inner, particles.now) if ancestors == "ancestor" else []

    def turn(cloud: Cloud) -> Cloud:
        ancestor_key, others_key, step_key = jax.random.split(jax.random.fold_in(loop_key, cloud.time), 3)
        log_weights, held, first = exponent * cloud.now.log_weights, cloud.held, jnp.zeros((), jnp.int32)
        if ancestors == "ancestor":
            drawn = jax.tree.map(lambda x: x[0], particles.states.drawn)
            rest = times(log_weights, log_suffix(inner, live, cloud.now.particles, drawn, cloud.time, particles.steps[0], exponent))
            first, held = draw(ancestor_key, "ancestor", by_weight(rest)), held & jnp.any(rest > -jnp.inf)
        # Schemes keep particle 0. What they keep may be any, since their law is the same when the particles are rotated.
        usable = jnp.where(jnp.any(log_weights > -jnp.inf), log_weights, 0.0)
        parents = (draw(others_key, "ancestors", scheme(jnp.roll(usable, -first))) + first) % n
        chosen, steps = inner.select(cloud.now.particles, parents), cloud.steps[parents]
        steps = steps + active(inner, chosen, None)
        after, log_potential = inner.step(step_key, chosen)
        if ancestors == "ancestor":
            drawn = jax.tree.map(lambda x: x[:, cloud.time + 1], particles.states.drawn)
            kept, _, log_kept = go_on(inner, inner.select(chosen, jnp.zeros(1, jnp.int32)), drawn)
        else:
            kept, log_kept = at(particles, cloud.time + 1), particles.log_potentials[:, cloud.time + 1]
        return grown(cloud, after, log_potential, kept, log_kept, held & (cloud.time < particles.steps[0]), steps, parents)._replace(held=held)

    fresh, log_potential = inner.init(init_key, n)
    past = jax.tree.map(lambda x: jnp.zeros((length + 1, *x.shape), x.dtype), Generations(fresh, log_potential))
    blank = Cloud(jnp.asarray(-1), past, jnp.zeros(n, jnp.int32), past, jnp.zeros((length, n), jnp.int32), jnp.zeros((), bool), jnp.ones((), bool))
    cloud = grown(blank, fresh, log_potential, at(particles, 0), particles.log_potentials[:, 0], jnp.ones((), bool), blank.steps, None)
    return loop(lambda cloud: cloud.time < length, turn, cloud, limit=length) if length else cloud


def log_evidence(cloud: Cloud) -> Float[Array, ""]:
    """The evidence estimate of all particles, the given path's included, nats.

    Law: E[exp(-log_evidence)] is one over the evidence when the given path is a draw of the posterior (Andrieu, Doucet and Holenstein 2010).
    """
    return jnp.sum(jax.scipy.special.logsumexp(cloud.past.log_weights, axis=1) - jnp.log(cloud.past.log_weights.shape[1]))


def grown(cloud: Cloud, particles: Any, log_potential: Array, kept: Any, log_kept: Array, given: Array, steps: Array, parents: Array | None) -> Cloud:
    """The cloud after a step, with `kept` (a batch of one) for particle 0 where the path is `given`."""
    time = cloud.time + 1
    particles = jax.tree.map(lambda x, one: x.at[0].set(jnp.where(given, one[0], x[0])) if x.ndim else x, particles, kept)
    log_potential = log_potential.at[0].set(jnp.where(given, log_kept[0], log_potential[0]))
    wrong = jnp.isnan(log_potential) | jnp.isposinf(log_potential)
    now = Generations(particles, jnp.where(wrong, -jnp.inf, log_potential))
    past = jax.tree.map(lambda rows, row: rows.at[time].set(row), cloud.past, now)
    ancestors = cloud.ancestors if parents is None else cloud.ancestors.at[cloud.time].set(parents.astype(jnp.int32))
    return Cloud(time, now, steps, past, ancestors, cloud.invalid | jnp.any(wrong), cloud.held)


def traced(last: Int[Array, ""], cloud: Cloud) -> tuple[Trajectory, Moved]:
    """The trajectory of a last particle, along its ancestors."""

    def parent(index: Array, row: Array) -> tuple[Array, Array]:
        return row[index], row[index]

    last = last.astype(jnp.int32)
    before = lax.scan(parent, last, cloud.ancestors, reverse=True)[1] if cloud.ancestors.shape[0] else jnp.zeros(0, jnp.int32)
    path = jnp.append(before, last)
    moments = jnp.arange(path.shape[0])
    states = jax.tree.map(lambda x: x[moments, path][None] if x.ndim > 1 else x[None], cloud.past.particles)
    now = jax.tree.map(lambda x: x[last][None] if x.ndim else x, cloud.now.particles)
    trajectory = Trajectory(now, states, cloud.past.log_weights[moments, path][None], cloud.steps[last][None], jnp.full(1, cloud.time, jnp.int32))
    return trajectory, Moved(jnp.any(path != 0)[None], cloud.invalid[None])


def rerun(key: PRNGKeyArray, program: Retraced, cloud: Cloud, exponent: Array | float) -> tuple[Trajectory, Moved]:
    """A trajectory drawn backwards from all generations, and run again."""
    traces = simulate(key, program, cloud.past, cloud.time, 1, exponent)
    states, log_potentials = replay(program, traces, cloud.past)
    log_potentials = log_potentials.at[0].set(cloud.past.log_weights[0, traces.path[:, 0]])
    own = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1) if x.ndim > 1 else x[None], states)
    now = jax.tree.map(lambda x: x[-1], states)
    trajectory = Trajectory(now, own, log_potentials.T, traces.steps, jnp.full(1, cloud.time, jnp.int32))
    return trajectory, Moved(jnp.any(traces.path != 0, axis=1), cloud.invalid[None])


def checked(program: Program, ancestors: str, resampling: str | type[Ancestors]) -> type[Ancestors]:
    """The conditional scheme, when all options are what they may be."""
    if not isinstance(program, Recorded):
        raise TypeError(f"program must be one made by po.recorded, got {program!r}")
    if ancestors not in ANCESTORS:
        raise ValueError(f"ancestors must be one of {', '.join(ANCESTORS)}, got {ancestors!r}")
    if ancestors != "trace" and not isinstance(program.inner, Retraced):
        raise TypeError(f"ancestors={ancestors!r} needs the density of steps: program must be po.recorded(po.retraced(p)), got {program!r}")
    if isinstance(resampling, type) and issubclass(resampling, tuple(CONDITIONAL.values())):
        return resampling
    if not isinstance(resampling, str) or resampling not in CONDITIONAL:
        raise ValueError(f"resampling must be one of {', '.join(CONDITIONAL)} or one of their classes, got {resampling!r}")
    return CONDITIONAL[resampling]
