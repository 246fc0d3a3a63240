"""Particle Gibbs and particle-independent Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010): chains on whole trajectories."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from posterity.inference import blocks
from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc.chain import Chain, chain
from posterity.inference.mcmc.pmmh import pmmh
from posterity.inference.smc import conditional, smc
from posterity.inference.smc.backward import smoothed
from posterity.inference.smc.resampling import Ancestors
from posterity.ppl.effects import isolated, loop
from posterity.ppl.program import Program, as_program, program
from posterity.ppl.recorded import Recorded, Trajectory, recorded
from posterity.ppl.retraced import retraced


def particle_gibbs(
    key: Array,
    program: Program,
    *,
    n: int,
    draws: int,
    warmup: int = 0,
    ancestors: str = "ancestor",
    resampling: str | type[Ancestors] = "multinomial",
) -> Chain:
    """The posterior of whole trajectories by a chain whose every step is a conditional SMC given the trajectory before.

    Leaves the posterior of trajectories invariant for every n of at least 2 and all options. With ancestor or backward sampling it moves all
    of a trajectory also when it is long and n small; with "trace" its early part stays where n is small beside the number of steps.

    Args:
      key: a `jax.random.key`.
      program: one made of a function (`retraced`); with `ancestors="trace"` any whose particles can be recorded.
      n: the number of particles of each conditional SMC, the present trajectory's included.
      draws: how many states of the chain to keep.
      warmup: how many to throw away before them; the first comes from an SMC of n particles.
      ancestors, resampling: as in `conditional_smc`.

    Returns:
      A `Chain` of `Smoothed` (`value`, and `path`: the value at every time); accepted are the draws of which a part is new.

    Raises:
      TypeError: when `program` is no program, or none that `retraced` takes where that is needed.
      ValueError: when n < 2, draws < 1, warmup < 0, on other ancestors or resampling, or when a potential is NaN or +inf.

    Source: Andrieu, Doucet and Holenstein (2010); Lindsten, Jordan and Schön (2014); Whiteley (2010).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> posterior = po.particle_gibbs(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), n=8, draws=1_000)
    >>> bool(jnp.all(abs(posterior["path"].expect() - jnp.array([0.0, 0.99, 1.94, 2.79])) < 0.1))
    True
    """
    check_key(key)
    check_counts(draws=(draws, 1), warmup=(warmup, 0))
    kept = recorded(program if ancestors == "trace" else retraced(program))
    conditional.checked(kept, ancestors, resampling)
    result = _compiled(key, kept, n, draws, warmup, ancestors, resampling)
    if not isinstance(result.invalid, Tracer) and int(result.invalid):
        raise ValueError(f"{kept.inner}: in {int(result.invalid)} moves a log potential was NaN or +inf; each must be finite or -inf")
    return result


@functools.partial(jax.jit, static_argnames=("n", "draws", "warmup", "ancestors", "resampling"))
def _compiled(key: Array, program: Recorded, n: int, draws: int, warmup: int, ancestors: str, resampling: Any) -> Chain:
    start_key, chain_key = jax.random.split(key)

    def read(state: tuple[Trajectory, Array]) -> tuple[Any, Array]:
        states = jax.tree.map(lambda x, now: jnp.swapaxes(x, 0, 1) if now.ndim else x[0], state[0].states, state[0].now)
        return jax.tree.map(lambda x: x[0], smoothed(program.inner, states)), state[1]

    def step(key: Array, state: tuple[Trajectory, Array]) -> tuple[tuple[Trajectory, Array], blocks.Moved]:
        particles, moved = conditional.move(key, program, state[0], n=n, ancestors=ancestors, resampling=resampling)
        return (particles, allowed(particles)), moved

    with isolated():
        start = first(start_key, program, n)
        return chain(chain_key, (start, allowed(start)), step, read, draws=draws, warmup=warmup)


def first(key: Array, program: Recorded, n: int) -> Trajectory:
    """A trajectory to begin with: one of an SMC of n particles, run to the last step."""
    spawn_key, run_key, last_key = jax.random.split(key, 3)
    population = blocks.spawn(spawn_key, program, n)

    def again(state):
        time, population = state
        return time + 1, smc.step(jax.random.fold_in(run_key, time), program, population)[0]

    if program.length:
        population = loop(lambda state: state[0] < program.length, again, (jnp.zeros((), jnp.int32), population), limit=program.length)[1]
    return program.select(population.particles, blocks.collapse(last_key, population)[None])


def allowed(particles: Trajectory) -> Array:
    """Whether one trajectory is possible at all: [] bool."""
    made = jnp.arange(particles.log_potentials.shape[1]) <= particles.steps[0]
    return jnp.all(jnp.where(made, particles.log_potentials[0], 0.0) > -jnp.inf)


def pimh(
    key: Array, program: Program, *, n: int, draws: int, warmup: int = 0, resampling: str | type[Ancestors] = "systematic", threshold: float = 0.5
) -> Chain:
    """The posterior of a program by a chain that proposes one particle of a fresh SMC, and accepts it by the ratio of the evidence estimates.

    Particle-independent Metropolis-Hastings: PMMH without parameters. Leaves the posterior invariant for every n: min(1, Z' / Z) makes up for what
    n particles are too few for. It works for every program, and is best where Z_hat varies by less than a nat or two.

    Args:
      key: a `jax.random.key`.
      program: any program.
      n: the number of particles of each SMC.
      draws, warmup: as in `particle_gibbs`.
      resampling, threshold: of the SMC, as in `smc`.

    Returns:
      A `Chain` of the program's values.

    Raises:
      TypeError: when `program` is no program.
      ValueError: when n or draws is less than 1, warmup less than 0, on an unknown scheme or threshold, or when a potential is NaN or +inf.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def sixes():
    ...     def step(total, _):
    ...         die = po.sample("die", dist.DiscreteUniform(1, 6))
    ...         po.factor("more than once", jnp.where(die > 1, 0.0, -jnp.inf))
    ...         return total + die
    ...     return po.scan(step, 0, length=3)
    >>> bool(abs(po.pimh(jax.random.key(0), sixes(), n=8, draws=2_000).expect() - 12) < 0.3)
    True
    """
    found = pmmh(
        key,
        nothing.bind(),
        jax.tree_util.Partial(given_program, as_program(program)),
        n=n,
        draws=draws,
        warmup=warmup,
        resampling=resampling,
        threshold=threshold,
    )
    return replace(found, values=found.values.value)


@program
def nothing():
    """No parameters."""
    return jnp.zeros(())  # an array tells how many particles there are


def given_program(program: Program, _: Array) -> Program:
    """The program, whatever the parameters."""
    return program
