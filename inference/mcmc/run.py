"""Markov chain Monte Carlo: one call for every kernel."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from posterity.inference import checkpoint as checkpoints
from posterity.inference.blocks import Kernel
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import check_counts, check_key, in_stretches
from posterity.inference.mcmc import courses, kernels
from posterity.inference.mcmc.chain import Chain, Shown
from posterity.inference.mcmc.moving import moving
from posterity.inference.mcmc.numpyro_kernels import ENSEMBLES, Library
from posterity.inference.mcmc.on_runs import moves_runs
from posterity.inference.mcmc.parameters import function_program
from posterity.inference.mcmc.sequences import mcmc_sequences
from posterity.inference.mcmc.starts import TRIES, Start, layout
from posterity.ppl.program import FunctionProgram

NAMED = (
    *("nuts", "hmc", "barker", "aies", "ess", "discrete_gibbs", "mixed_hmc"),  # NumPyro's
    *("random_walk", "independent", "mala", "hamiltonian", "slices", "elliptical", "single_site", "uniform", "prior", "default"),
    *("suffix", "span"),  # on whole runs
)


def mcmc(
    key: PRNGKeyArray,
    program: Any,
    *,
    kernel: str | Library | Kernel = "nuts",
    chains: int = 4,
    draws: int = 1_000,
    warmup: int = 1_000,
    thinning: int = 1,
    initial: dict[str, Any] | str | None = None,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """The posterior of a program by Markov chains: of one without scan by any kernel, of one with a scan, a text say, by those on whole runs.

    Compiled once for a program's function, the shapes of its data and these numbers: with other data and another key it starts at once.
    Chains of `nuts`, `hmc`, `barker` and the mixes run one after the other on CPUs (where side by side they take longer: all wait for the longest
    trajectory) and side by side on other devices; those of other kernels are one batch everywhere.

    Args:
      key: a `jax.random.key`.
      program: the value of a call of what `@po.program` made; for `suffix` any program.
      kernel: by name, or made by `po.kernels` with options (`po.kernels.nuts(target_accept=0.9)`). NumPyro's are `nuts`, `hmc`, `barker`, `aies` and
        `ess` for real choices, `discrete_gibbs`, `mixed_hmc` and `hmc_gibbs` for real and finite ones. Ours, several of which `cycle` makes one:
        `random_walk`, `independent`, `mala`, `hamiltonian`, `slices`, `elliptical` for real choices, `uniform` for finite ones, `single_site`, `block`,
        `prior` for any; and `parallel_tempering` over any of ours. On whole runs: `suffix`, `span`, `gibbs`, `conditional_filter`, `editor`, as
        `mcmc_sequences` has them.
      chains: how many. The ensembles `aies` and `ess` want an even number, at least twice as many as coordinates.
      draws: how many states of each chain to keep.
      warmup: moves of each chain before them, in which kernels adapt to the posterior; they are frozen afterwards.
      thinning: keep one state of so many.
      initial: values by the names of choices to start from, each of its choice's shape, or one for each chain. Others start where their coordinates
        without constraints are uniform on [-2, 2], tried again up to 100 times until density and gradient are finite; with our kernels, at a draw of the prior.
        For kernels on whole runs "prior" or "smc", as `start` of `mcmc_sequences`.
      progress: show a bar.
      checkpoint: as in `smc`; for NumPyro's kernels a step is a hundredth of the run, for ours a move.

    Returns:
      A `Chain` of what the program returns, its choices by name beside it. `statistics` are what the kernel tells of each draw (`divergent`, `steps`, `energy`,
      `log_density`), `accepted` the acceptance probability, `tuned` what the warm-up came to. When trajectories diverged a warning says how many.

    Raises:
      TypeError: when `program` is not made by `@po.program`.
      ValueError: for a program with a scan (but with `single_site` and kernels on whole runs), choices that the kernel does not move, a kernel that does
        not exist, numbers out of range, no start of finite density and gradient. Inside `jax.jit`, where the last cannot be raised,
        `log_evidence` is -inf then.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def height(ys):
    ...     mean = po.sample("mean", dist.Normal(0.0, 10.0))
    ...     spread = po.sample("spread", dist.HalfNormal(1.0))
    ...     po.observe("ys", dist.Normal(mean, spread), ys)
    ...     return mean
    >>> kernel = po.kernels.nuts(target_accept=0.99)
    >>> chain = po.mcmc(jax.random.key(0), height(jnp.array([2.9, 3.0, 3.1, 3.2])), kernel=kernel, chains=2, draws=500, warmup=300)
    >>> bool(abs(chain.expect() - 3.05) < 0.1), chain.by_chain().shape, chain["spread"].values.shape
    (True, (2, 500), (1000,))
    """
    check_key(key)
    check_counts(chains=(chains, 1), draws=(draws, 1), warmup=(warmup, 0), thinning=(thinning, 1))
    chosen = _kernel(kernel)
    options: dict[str, Any] = {"chains": chains, "draws": draws, "warmup": warmup, "thinning": thinning, "progress": progress, "checkpoint": checkpoint}
    if moves_runs(chosen):
        if isinstance(initial, dict):
            raise ValueError(f'mcmc: a kernel on whole runs starts from "prior" or "smc", not from values by name; got initial for {", ".join(initial)}')
        return mcmc_sequences(key, program, chosen, start=initial or "prior", **options)  # pyright: ignore[reportArgumentType] - checked there
    program = function_program("mcmc", program)
    if isinstance(initial, str):
        raise ValueError(f'mcmc: initial must be values by the names of choices, got {initial!r}; only kernels on whole runs start from "prior" or "smc"')
    if not isinstance(chosen, Library):
        return moving(key, program, chosen, initial, **options)
    if chosen.name in ENSEMBLES and chains % 2:
        raise ValueError(f"{chosen.name} is an ensemble of an even number of chains, at least twice as many as coordinates; got chains={chains}")
    if checkpoint is not None:
        checkpoints.check(checkpoint, key, program, chosen)
    if progress or checkpoint is not None:
        found, start = _stepwise(key, program, chosen, initial, chains, draws, warmup, thinning, progress=progress, checkpoint=checkpoint)
    else:
        found, start = courses.whole(key, program, chosen, initial, chains=chains, draws=draws, warmup=warmup, thinning=thinning)
    if not isinstance(found.log_evidence, Tracer):
        _check(program, chosen, found, start, initial)
    return found


def _kernel(kernel: Any) -> Any:
    """The kernel of that name, or the one that was given."""
    if isinstance(kernel, str):
        if kernel not in NAMED:
            raise ValueError(f"kernel must be one of {', '.join(NAMED)}, or made by po.kernels; got {kernel!r}")
        return getattr(kernels, kernel)()
    if not callable(kernel):
        raise TypeError(f"kernel must be a name or made by po.kernels, got {type(kernel).__name__}")
    return kernel if isinstance(kernel, Library) or moves_runs(kernel) else kernels.given(kernel)  # pyright: ignore[reportArgumentType] - that it is a kernel shows when it is called


def _stepwise(
    key: PRNGKeyArray,
    program: FunctionProgram,
    kernel: Library,
    initial: Any,
    chains: int,
    draws: int,
    warmup: int,
    thinning: int,
    *,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> tuple[Chain, Start]:
    """The same in stretches."""
    options = {"kernel": kernel, "chains": chains, "warmup": warmup, "thinning": thinning, "initial": initial}
    kept = checkpoint and checkpoints.keep(checkpoint, checkpoints.describe(key, program, draws, courses.first, courses.stretch, **options))
    course = jax.jit(courses.first, static_argnames=("chains", "draws", "warmup"))(key, program, kernel, initial, chains=chains, draws=draws, warmup=warmup)
    stretch = jax.jit(courses.stretch, static_argnames=("warmup", "thinning"), donate_argnames="course")
    course = in_stretches(course, _goes, stretch, (program, kernel, warmup, thinning), shown=Shown(program, courses.PARTS), progress=progress, kept=kept)
    return jax.jit(courses.last)(course, program, kernel)


def _goes(course: courses.Course) -> bool:
    return int(course.time) < courses.PARTS


def _check(program: FunctionProgram, kernel: Library, found: Chain, start: Start, initial: Any) -> None:
    """Raises ValueError when a chain found nowhere to start, and warns of divergences."""
    lost = np.flatnonzero(~np.asarray(start.found))
    if len(lost):
        where = "from what is given as initial" if initial else f"in {TRIES} tries, coordinates uniform on [-2, 2]"
        raise ValueError(f"mcmc: {program}: {len(lost)} of {found.chains} chains found no start {where}: {_why(program, start, lost)}")
    if count := int(found.divergences):
        warnings.warn(
            f"{program}: {count:,} of {len(found):,} draws ended trajectories whose energy was lost (divergences): the posterior bends there more sharply than "
            f"the step size, {float(np.mean(found.tuned['step_size'])):.2g}, and parts of it may be missing. Draw scales and what they scale apart "
            "(non-centred), or take target_accept nearer to 1",
            stacklevel=3,
        )


def _why(program: FunctionProgram, start: Start, lost: np.ndarray) -> str:
    """What was wrong at the last tries."""
    if not start.bad_gradient.shape[1] or np.asarray(start.bad_density)[lost].any():
        return "the log density was NaN or infinite; give initial= a point where it is finite"
    found = layout(program)
    bad = found.unravel(jnp.any(start.bad_gradient[lost], axis=0).astype(float))
    names = ", ".join(repr(name) for name, x in bad.items() if np.asarray(ravel_pytree(x)[0]).any())
    return f"the density is finite, but its gradient in {names} is NaN or infinite (a square root at 0, or a jnp.where whose other side is NaN, say)"
