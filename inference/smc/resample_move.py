"""Resample-move SMC (Gilks and Berzuini 2001): after resampling, MCMC moves make copies differ again."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.blocks import Kernel, advance, move, resample_below, spawn
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, check_counts, drive
from posterity.inference.mcmc.metropolis import suffix_mh
from posterity.inference.population import Population, effective_sample_size
from posterity.inference.posterior import Posterior
from posterity.inference.recorded import recorded
from posterity.inference.smc.resampling import Ancestors, Systematic, scheme
from posterity.inference.smc.smc import share
from posterity.inference.smc.waste_free import resample_chains
from posterity.ppl.effects import cond
from posterity.ppl.program import Program


def rejuvenate(
    key: PRNGKeyArray,
    program: Program,
    population: Population,
    *,
    kernel: Kernel,
    time: Array | int,
    moves: int,
    threshold: Float[Array, ""] | float = 0.5,
    resampling: type[Ancestors] = Systematic,
    waste_free: bool = False,
) -> tuple[Population, Info]:
    """Resample when the effective sample size falls below `threshold * n`, and move; or, waste-free, resample few, move them and keep all."""
    if waste_free:
        return resample_chains(key, program, population, kernel=kernel, time=time, moves=moves, resampling=resampling)
    resample_key, move_key = jax.random.split(key)
    population, info = resample_below(threshold, resample_key, program, population, resampling)
    population, accepted = move(move_key, program, population, kernel, time, moves)
    return population, info._replace(accepted=accepted)


def step(
    key: PRNGKeyArray,
    program: Program,
    population: Population,
    *,
    kernel: Kernel,
    moves: int,
    threshold: Float[Array, ""] | float = 0.5,
    resampling: type[Ancestors] = Systematic,
    waste_free: bool = False,
) -> tuple[Population, Info]:
    """One generation: resample and move, advance."""
    rejuvenate_key, advance_key = jax.random.split(key)
    time = jnp.max(population.particles.time)
    options = {"kernel": kernel, "time": time, "moves": moves, "threshold": threshold, "resampling": resampling, "waste_free": waste_free}
    refresh = functools.partial(rejuvenate, rejuvenate_key, program, **options)
    # At time 0 particles are independent draws: chains of a few of them would be less. (That is for time to decide, not for the particles.)
    population, info = cond(time > 0, refresh, _as_they_are, population) if waste_free else refresh(population)
    return advance(advance_key, program, population), info


def _as_they_are(population: Population) -> tuple[Population, Info]:
    ess, none = effective_sample_size(population.log_weights), jnp.zeros((), bool)
    return population, Info(ess, none, jnp.arange(population.size, dtype=jnp.int32), jnp.full((), jnp.nan))


def resample_move(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    moves: int = 1,
    waste_free: bool = False,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    history: bool | str = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """The posterior of a program by SMC whose particles are moved before every step, each over its whole past.

    A move redraws the trajectory from a random position on and accepts or stays (`mcmc.metropolis.suffix_mh`), so that
    resampled copies differ again and the past is not lost. Properly weighted, like `smc`, for every `n` and `moves`. Moves are made at
    every step, resampled or not, and a program whose particles may end early is run to its last step: were either
    decided by the particles, the result would be biased. A move costs as many steps as were made: the whole costs length^2.

    Args:
      key: a `jax.random.key`.
      program: what to infer; its particles must be recordable (`recorded`).
      n: the number of particles; a multiple of moves + 1 when `waste_free`.
      moves: how many moves before each step; with 0 this is `smc`.
      waste_free: keep all states of n / (moves + 1) chains, from the second step on, in place of the last states of n chains (Dau and Chopin 2022).
        Resamples at each of these steps, whatever the threshold.
      resampling, threshold, history, progress, checkpoint: as in `smc`.

    Raises:
      TypeError: when `program` is no program, or its particles cannot be recorded.
      ValueError: as `smc`; when moves is less than 0, or n does not fit them.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def drift(ys):  # an unknown constant: resampling alone only ever loses values of it
    ...     x = po.sample("x", dist.Normal(0.0, 1.0))
    ...     def step(x, y):
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, x, ys)
    >>> posterior = po.resample_move(jax.random.key(0), drift(jnp.ones(8)), n=500, moves=3)
    >>> bool(abs(posterior.expect() - 32 / 33) < 0.05)
    True
    """
    return rejuvenated(
        key,
        recorded(program),
        jax.tree_util.Partial(suffix_mh),
        n=n,
        moves=moves,
        waste_free=waste_free,
        resampling=resampling,
        threshold=threshold,
        history=history,
        progress=progress,
        checkpoint=checkpoint,
    )


def rejuvenated(
    key: PRNGKeyArray,
    program: Program,
    kernel: jax.tree_util.Partial,
    *,
    n: int,
    moves: int,
    waste_free: bool = False,
    resampling: str | type[Ancestors],
    threshold: float,
    history: bool | str,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Posterior:
    """Resample-move by any kernel of the program's own particles, which count their `time`."""
    check_chains(n, moves, waste_free)
    options = {"kernel": kernel, "threshold": share(threshold)}
    step = jax.tree_util.Partial(_step_with(scheme(resampling), moves, waste_free), **options)
    return drive(key, program, n, spawn, step, history=history, progress=progress, moves=True, checkpoint=checkpoint)


def check_chains(n: int, moves: int, waste_free: bool) -> None:
    """Raises ValueError when moves is less than 0, or n particles are no whole number of chains."""
    check_counts(moves=(moves, 0))
    if waste_free and isinstance(n, int) and n % (moves + 1):
        raise ValueError(f"waste_free keeps the moves + 1 = {moves + 1} states of each chain: n must be a multiple of that, got {n}")


@functools.cache
def _step_with(resampling: type[Ancestors], moves: int, waste_free: bool) -> Callable:
    """One object for each scheme and number of moves: jit knows compiled code again by it."""
    return functools.partial(step, resampling=resampling, moves=moves, waste_free=waste_free)
