"""Particle Gibbs and particle-independent Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010): chains on whole trajectories."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial

from posterity.inference.blocks import Moved, run
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.mcmc.chain import Chain, chain
from posterity.inference.mcmc.metropolis import accept, log_potential
from posterity.inference.mcmc.pmmh import pmmh
from posterity.inference.recorded import Recorded, Trajectory, recorded
from posterity.inference.retraced import retraced
from posterity.inference.smc import conditional
from posterity.inference.smc.backward import smoothed
from posterity.inference.smc.resampling import Ancestors
from posterity.ppl.effects import draw, particle_map
from posterity.ppl.program import Program, as_program, program


def particle_gibbs(
    key: Array,
    program: Program,
    *,
    n: int,
    draws: int,
    warmup: int = 0,
    ancestors: str = "ancestor",
    resampling: str | type[Ancestors] = "multinomial",
    exponents: Sequence[float] = (1.0,),
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """The posterior of whole trajectories by a chain whose every step is a conditional SMC given the trajectory before.

    Leaves the posterior of trajectories invariant for every n of at least 2 and all options. With ancestor or backward sampling it moves all
    of a trajectory also when it is long and n small; with "trace" its early part stays where n is small beside the number of steps.

    Args:
      key: a `jax.random.key`.
      program: one made of a function (`retraced`); with `ancestors="trace"` any whose particles can be recorded.
      n: the number of particles of each conditional SMC, the present trajectory's included.
      draws: how many states of the chain to keep.
      warmup: how many to throw away before them; the first is a move from a draw of the prior.
      ancestors, resampling: as in `conditional_smc`.
      exponents: with more than one, parallel tempering: a copy of the chain for each, its potentials raised to it; after every move neighbours may
        exchange their trajectories, by the ratio of what these would weigh. They fall from 1, the chain that is kept, and stay above 0.
      progress, checkpoint: as in `smc`; a move of the chain is a step.

    Returns:
      A `Chain` of `Smoothed` (`value`, and `path`: the value at every time); accepted are the draws of which a part is new.

    Raises:
      TypeError: when `program` is no program, or none that `retraced` takes where that is needed.
      ValueError: when n < 2, draws < 1, warmup < 0, on other ancestors, resampling or exponents, or when a potential is NaN or +inf.

    Source: Andrieu, Doucet and Holenstein (2010); Lindsten, Jordan and Schön (2014); Whiteley (2010); for the exchange, Geyer (1991).

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
    kept = recorded(program if ancestors == "trace" else retraced(program))
    conditional.checked(kept, ancestors, resampling)
    ladder = np.asarray(exponents, float)
    if ladder.ndim != 1 or ladder[:1].tolist() != [1.0] or not (np.diff(ladder) < 0).all() or not ladder[-1] > 0:
        raise ValueError(f"exponents must fall from 1 and stay above 0, got {exponents!r}")
    step = Partial(_step_with(n, ancestors, resampling), kept, jnp.asarray(ladder, float))
    start, read = Partial(_start, kept, jnp.asarray(ladder, float)), Partial(_read, kept)
    return chain(key, kept.inner, start, step, read, draws=draws, warmup=warmup, progress=progress, checkpoint=checkpoint)


def _start(program: Recorded, exponents: Array, init_key: Array, run_key: Array) -> Trajectory:
    return run(run_key, program, program.init(init_key, exponents.shape[0])[0], program.length)


@functools.cache
def _step_with(n: int, ancestors: str, resampling: Any) -> Callable:
    """One object for these options: jit knows compiled code again by it."""
    return functools.partial(_step, n=n, ancestors=ancestors, resampling=resampling)


def _step(program: Recorded, exponents: Array, key: Array, particles: Trajectory, **options: Any) -> tuple[Trajectory, Moved]:
    return move(key, program, particles, exponents, **options)


def _read(program: Recorded, particles: Trajectory) -> tuple[Any, Array]:
    states = jax.tree.map(lambda x, now: jnp.swapaxes(x, 0, 1) if now.ndim else x[0], particles.states, particles.now)
    return jax.tree.map(lambda x: x[0], smoothed(program.inner, states)), log_potential(particles)[0] > -jnp.inf


def move(key: Array, program: Recorded, particles: Trajectory, exponents: Array, **options: Any) -> tuple[Trajectory, Moved]:
    """A conditional SMC for each of some trajectories, whose potentials are raised to its exponent [copies]; then neighbours may exchange theirs.

    Leaves the product of their laws invariant.
    """
    move_key, swap_key = jax.random.split(key)
    copies = exponents.shape[0]

    def one(key: Array, which: Array, exponent: Array) -> tuple[Trajectory, Moved]:
        return conditional.move(key, program, program.select(particles, which[None]), exponent=exponent, **options)

    batches, moved = particle_map(one, (0, 0, 0), (0, 0))(jax.random.split(move_key, copies), jnp.arange(copies), exponents)
    particles = jax.tree.map(lambda x, like: x[:, 0] if like.ndim else x[0], batches, particles)
    moved = Moved(*(x[:, 0] for x in moved))
    if copies == 1:
        return particles, moved
    order = exchanged(swap_key, log_potential(particles), exponents)
    return program.select(particles, order), moved._replace(accepted=moved.accepted[order] | (order != jnp.arange(copies)))


def exchanged(key: Array, log_likelihood: Array, exponents: Array) -> Array:
    """Where each copy's trajectory comes from, [copies]: every second pair of neighbours, from a random first, exchanges theirs or not."""
    start_key, swap_key = jax.random.split(key)
    pair = jnp.arange(exponents.shape[0] - 1)
    steps = exponents[:-1] - exponents[1:]
    swaps = accept(swap_key, steps * log_likelihood[1:], steps * log_likelihood[:-1]).accepted
    swaps = swaps & (pair % 2 == draw(start_key, "first pair", dist.Bernoulli(probs=0.5)))
    return jnp.arange(exponents.shape[0]) + jnp.append(swaps, False) - jnp.append(jnp.zeros(1, bool), swaps)


def pimh(
    key: Array,
    program: Program,
    *,
    n: int,
    draws: int,
    warmup: int = 0,
    chains: int = 1,
    thinning: int = 1,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """The posterior of a program by a chain that proposes one particle of a fresh SMC, and accepts it by the ratio of the evidence estimates.

    Particle-independent Metropolis-Hastings: PMMH without parameters. Leaves the posterior invariant for every n: min(1, Z' / Z) makes up for what
    n particles are too few for. It works for every program, and is best where Z_hat varies by less than a nat or two.

    Args:
      key: a `jax.random.key`.
      program: any program.
      n: the number of particles of each SMC.
      draws, warmup, chains, thinning: as in `pmmh`.
      progress, checkpoint: as in `particle_gibbs`.
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
        chains=chains,
        thinning=thinning,
        resampling=resampling,
        threshold=threshold,
        progress=progress,
        checkpoint=checkpoint,
    )
    return replace(found, values=found.values.value)


@program
def nothing():
    """No parameters."""
    return jnp.zeros(())  # an array tells how many particles there are


def given_program(program: Program, _: Array) -> Program:
    """The program, whatever the parameters."""
    return program
