"""SMC samplers by tempering (Neal 2001; Del Moral, Doucet and Jasra 2006): from the prior to the posterior, one power of the likelihood after another."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Bool, Float, PRNGKeyArray

from posterity.inference import checkpoint as checkpoints
from posterity.inference import drive
from posterity.inference.blocks import Kernel, spawn, weigh
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, check_counts, check_key
from posterity.inference.mcmc import kernels
from posterity.inference.mcmc.parameters import function_program
from posterity.inference.mcmc.paths import Path as Path
from posterity.inference.mcmc.paths import Tempered as Tempered
from posterity.inference.population import Population, normalise
from posterity.inference.posterior import Posterior
from posterity.inference.smc.resample_move import check_chains, rejuvenate
from posterity.inference.smc.resampling import Ancestors, scheme
from posterity.inference.smc.smc import share
from posterity.ppl.effects import followed, loop
from posterity.ppl.program import FunctionProgram
from posterity.ppl.transform import known

HALVINGS = 40  # of the interval in which the next exponent is sought


@struct.dataclass
class Annealed(Posterior):
    """A posterior with the path that led to it: at `exponents[k]` the run resampled (`ess_history[k]`, `resampled[k]`) and moved (`acceptance[k]`)."""

    exponents: Float[Array, " stages"] | None = None  # increasing; NaN for stages not needed
    arrived: Bool[Array, ""] | None = None  # False when all stages were made and the last exponent is below 1; log_evidence is then -inf

    @property
    def ladder(self) -> np.ndarray:
        """The exponents of the stages made, as a ladder for another run."""
        exponents = np.asarray(self.exponents)
        return exponents[~np.isnan(exponents)]

    __repr__ = Posterior.__repr__


def climb(path: Path, population: Population, *, ladder: Float[Array, " stages"] | None, ess: Float[Array, ""] | float) -> Population:
    """The population weighed for the next exponent: the next one of the ladder, or `next_exponent`."""
    particles = population.particles
    exponent = particles.exponent[0]
    if ladder is None:
        higher = next_exponent(population.log_weights, particles.log_likelihood, exponent, ess)
    else:
        higher = jnp.min(jnp.where(ladder > exponent, ladder, 1.0))
    return weigh(population, *path.raised(particles, higher))


def next_exponent(log_weights: Float[Array, " n"], log_likelihood: Float[Array, " n"], exponent: Array, ess: Float[Array, ""] | float) -> Float[Array, ""]:
    """The exponent at which the conditional effective sample size is `ess` times that of weights that stay as they are; 1 if that is further. By bisection.

    Particles of likelihood zero are lost at any exponent, and not counted. Source: Jasra et al. (2011); Zhou, Johansen and Aston (2016).
    """
    possible = log_likelihood > -jnp.inf
    log_weights = normalise(jnp.where(possible, log_weights, -jnp.inf))
    log_likelihood = jnp.where(possible, log_likelihood, 0.0)

    def remains(rise):
        first, second = (jax.scipy.special.logsumexp(log_weights + power * rise * log_likelihood) for power in (1, 2))
        return jnp.exp(2 * first - second)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = remains(middle) >= ess
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rest = 1.0 - exponent
    with jax.disable_jit(False):  # nothing is drawn: enumeration, which goes without jit, need not unroll this
        _, rise = lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(rest), rest))
    return jnp.where(remains(rest) < ess, jnp.minimum(exponent + rise, 1.0), 1.0)  # to 1 where nothing is possible


def step(
    key: PRNGKeyArray,
    path: Path,
    population: Population,
    *,
    kernel: Kernel,
    moves: int,
    resampling: type[Ancestors],
    waste_free: bool,
    threshold: Float[Array, ""] | float,
    ladder: Float[Array, " stages"] | None,
    ess: Float[Array, ""] | float,
) -> tuple[Population, Info]:
    """One stage: resample and move for the present exponent, weigh for the next."""
    options = {"kernel": kernel, "moves": moves, "threshold": threshold, "resampling": resampling, "waste_free": waste_free}
    population, info = rejuvenate(key, path, population, time=0, **options)
    return climb(path, population, ladder=ladder, ess=ess), info


def tempering(
    key: PRNGKeyArray,
    program: Any,
    *,
    n: int,
    ladder: Any = None,
    ess: float = 0.5,
    stages: int = 100,
    kernel: Kernel | None = None,
    moves: int = 5,
    waste_free: bool = False,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 1.0,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Annealed:
    """The posterior of a program without scan by an SMC sampler: particles of its prior are weighed, resampled and moved as the likelihood comes in.

    It comes in by its powers: the targets are prior * likelihood^exponent, with exponents up to 1. With a given `ladder`, and a kernel
    that leaves these targets invariant, properly weighted for every n and every number of moves. A ladder found on the way depends on
    the particles, and so does a kernel that learns from them: then the result is consistent as n grows, but at finite n not exactly unbiased. To
    be so, run again with another key on the `ladder` of the first result.

    Args:
      key: a `jax.random.key`.
      program: a static program: its choices have a prior, all that it observes is the likelihood.
      n: the number of particles; a multiple of moves + 1 when `waste_free`.
      ladder: [stages] increasing exponents, the first above 0, the last 1; by default each is found from the particles (`next_exponent`).
      ess: of a ladder that is to be found, in (0, 1): the share of the effective sample size that a stage may leave.
      stages: of a ladder that is to be found, the largest number of exponents.
      kernel: one of `po.kernels`, or another of that kind; by default `random_walk` on real choices and `uniform` on finite ones.
      moves: how many moves a stage; none are made before the first exponent, nor after the last.
      waste_free: keep all states of n / (moves + 1) chains (Dau and Chopin 2022) in place of the last states of n chains. Resamples at each stage,
        whatever the threshold.
      resampling, threshold, progress, checkpoint: as in `smc`; a stage is a step.

    Returns:
      `Annealed`: a `Posterior` with the `exponents`.

    Raises:
      TypeError: when `program` is not made by `@po.program`.
      ValueError: when it has a scan, on a ladder that does not rise to 1, n that does not fit the moves, other options out of range, a kernel that does not fit
        the choices, a likelihood that is NaN or +inf; when `stages` exponents do not lead to 1. Inside `jax.jit`, where nothing can be raised,
        the log_evidence is -inf in the last two cases.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def height(ys):
    ...     x = po.sample("x", dist.Normal(0.0, 10.0))
    ...     po.observe("ys", dist.Normal(x, 0.1), ys)
    ...     return x
    >>> posterior = po.tempering(jax.random.key(0), height(jnp.array([3.0, 3.1])), n=1_000)
    >>> bool(abs(posterior.expect() - 3.05) < 0.02), bool(posterior.ess > 300)
    (True, True)
    """
    program = function_program("tempering", program)
    check_key(key)
    check_counts(n=(n, 1), stages=(stages, 1))
    check_chains(n, moves, waste_free)
    if not known(ess, lambda ess: ess.ndim == 0 and 0 < ess < 1):
        raise ValueError(f"ess must lie between 0 and 1, got {ess!r}")
    if ladder is not None and not (np.ndim(ladder) == 1 and known(ladder, _rises)):
        raise ValueError(f"ladder must be a row of increasing exponents, the first above 0 and the last 1, got {ladder}")
    options = {"kernel": kernels.given(kernel), "threshold": share(threshold)}
    options |= {"ladder": None if ladder is None else jnp.asarray(ladder, float), "ess": ess}
    path = Path(program, stages if ladder is None else len(ladder))
    step = Partial(_step_with(scheme(resampling), moves, waste_free), **options)
    if checkpoint is not None:
        checkpoints.check(checkpoint, key, path, step)
    if progress or checkpoint is not None:
        posterior = _stepwise(key, path, n, step, progress=progress, checkpoint=checkpoint)
    else:
        run = _compiled.__wrapped__ if followed() else _compiled  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
        posterior = run(key, path, n, step)
    _check(posterior, program)
    return posterior


class Ascent(NamedTuple):
    """A run under way, with the exponents that it has come by."""

    run: drive.Run
    exponents: Float[Array, " stages"]

    @property
    def time(self) -> Array:
        """Stages made after the first."""
        return self.run.time


@functools.partial(jax.jit, static_argnames="n")
def _compiled(key: PRNGKeyArray, path: Path, n: int, step: Partial) -> Annealed:
    return _finish(_stretch(_begin(key, path, n, step), path, step, path.length), path)


def _stepwise(key: PRNGKeyArray, path: Path, n: int, step: Partial, *, progress: bool, checkpoint: Checkpoint | None) -> Annealed:
    """The same in stretches."""
    kept = checkpoint and checkpoints.keep(checkpoint, checkpoints.describe(key, path, n, climb, step, stages=path.stages))
    ascent = jax.jit(_begin, static_argnames="n")(key, path, n, step)
    goes = functools.partial(jax.jit(_going), path=path)
    ascent = drive.in_stretches(ascent, goes, jax.jit(_stretch, donate_argnames="ascent"), (path, step), shown=path, progress=progress, kept=kept)
    return jax.jit(_finish)(ascent, path)


def _begin(key: PRNGKeyArray, path: Path, n: int, step: Partial) -> Ascent:
    rises = {name: step.keywords[name] for name in ("ladder", "ess")}
    run = drive.begin(key, path, n, lambda key, path, n: climb(path, spawn(key, path, n), **rises), "none", moves=True)
    return Ascent(run, jnp.full(path.stages, jnp.nan, run.record.ess.dtype).at[0].set(_exponent(run)))


def _going(ascent: Ascent, path: Path) -> Array:
    return drive.going(ascent.run, path, moves=False)


def _stretch(ascent: Ascent, path: Path, step: Partial, until: Array | int) -> Ascent:
    """The run when `until` stages are made after the first, or when it has ended."""

    def stage(ascent: Ascent) -> Ascent:
        run = drive.advance(ascent.run, path, step)
        return Ascent(run, ascent.exponents.at[run.time].set(_exponent(run)))

    if not path.length:
        return ascent
    return loop(lambda ascent: _going(ascent, path) & (ascent.time < until), stage, ascent, limit=path.length)


def _finish(ascent: Ascent, path: Path) -> Annealed:
    posterior = drive.finish(ascent.run, path)
    arrived = (_exponent(ascent.run) >= 1.0) | (posterior.log_evidence == -jnp.inf)
    result = Annealed(**vars(posterior), exponents=ascent.exponents, arrived=arrived)
    nothing = {name: jnp.where(arrived, getattr(result, name), -jnp.inf) for name in ("log_weights", "log_evidence")}
    return replace(result, **nothing)


def _exponent(run: Any) -> Array:
    return run.population.particles.exponent[0]


def _check(posterior: Annealed, program: FunctionProgram) -> None:
    if isinstance(posterior.invalid, Tracer):
        return
    if int(posterior.invalid):
        raise ValueError(f"{program}: {int(posterior.invalid)} of {len(posterior)} log likelihoods were NaN or +inf; each must be finite or -inf")
    if not posterior.arrived:
        reached = f"after stages={len(posterior.ladder)} the exponent is {posterior.ladder[-1]:.3g}, not 1"
        raise ValueError(f"tempering: {program} needs more: {reached}; allow more stages, or a smaller ess")


def _rises(ladder: np.ndarray) -> bool:
    return bool(len(ladder) and (np.diff(ladder, prepend=0.0) > 0).all() and ladder[-1] == 1)


@functools.cache
def _step_with(resampling: type[Ancestors], moves: int, waste_free: bool) -> Callable:
    """One object for each scheme and number of moves: jit knows compiled code again by it."""
    return functools.partial(step, resampling=resampling, moves=moves, waste_free=waste_free)
