"""Kernels on the choices of a program's initial law, for `po.mcmc`, `po.tempering` and `po.ibis`.

Each is made by a function of its options and moves every particle on its own: `kernel(key, program, particles, time=...)` to the
particles and a `Moved`, as `blocks.Kernel` has it. `program` is a `Parametric`. Another kernel is another such function.

What a kernel learns when it is not given (a covariance, a width), it learns in `po.mcmc` from the draws of the warm-up, and keeps for the draws
that count; in `po.tempering` and `po.ibis` from the particles, anew at every move.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial

from posterity.inference.blocks import Kernel, Moved
from posterity.inference.mcmc.editor import editor
from posterity.inference.mcmc.gradients import hamiltonian, mala
from posterity.inference.mcmc.metropolis import accept, where
from posterity.inference.mcmc.numpyro_kernels import aies, barker, discrete_gibbs, ess, hmc, hmc_gibbs, mixed_hmc, nuts
from posterity.inference.mcmc.on_runs import conditional_filter, gibbs, span, suffix
from posterity.inference.mcmc.parameters import Parametric, from_supports, log_prior, supports
from posterity.inference.mcmc.slices import elliptical, slices
from posterity.inference.mcmc.space import Fit, checked, discrete, kind, named, scaled, shaped, size, space
from posterity.inference.mcmc.tempered import parallel_tempering
from posterity.inference.mcmc.traces import block, single_site
from posterity.ppl.effects import draw
from posterity.ppl.transform import times

__all__ = [
    "aies",
    "barker",
    "block",
    "conditional_filter",
    "cycle",
    "default",
    "discrete_gibbs",
    "editor",
    "elliptical",
    "ess",
    "gibbs",
    "hamiltonian",
    "hmc",
    "hmc_gibbs",
    "independent",
    "mala",
    "mixed_hmc",
    "nuts",
    "parallel_tempering",
    "prior",
    "random_walk",
    "single_site",
    "slices",
    "span",
    "suffix",
    "uniform",
]

STANDARD = dist.Normal(0.0, 1.0)


def random_walk(*names: str, covariance: Array | None = None, noise: dist.Distribution = STANDARD) -> Kernel:
    """Random-walk Metropolis on real choices, in coordinates without constraints (NumPyro's `biject_to`, with its Jacobian).

    Leaves the target invariant when `covariance` is given. Learned from the particles as they stand it depends on what it
    moves: samplers that use it are consistent as n grows and, at finite n, not exactly unbiased.

    Args:
      names: the choices to move; all if none are named.
      covariance: [d, d], of a step in the coordinates, the choices flattened in the order of their names; by default the particles'
        own times 2.38^2 / d (Roberts, Gelman and Gilks 1997), learned anew at every move.
      noise: what a step is made of, a law symmetric around 0 of one number: normal by default.

    Raises (from the sampler):
      ValueError: when a choice to be moved is discrete or there is none of that name; on a covariance of another shape, or none and fewer than 2 particles.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def rate(counts):
    ...     rate = po.sample("rate", dist.Gamma(2.0, 1.0))
    ...     po.observe("counts", dist.Poisson(rate), counts)
    ...     return rate
    >>> kernel = po.kernels.random_walk(covariance=jnp.array([[0.1]]))
    >>> posterior = po.tempering(jax.random.key(0), rate(jnp.array([4, 7, 5])), n=1_000, kernel=kernel)  # Gamma(18, 4)
    >>> bool(abs(posterior.expect() - 4.5) < 0.15)
    True
    """
    given = {"fit": None} if covariance is None else {"covariance": covariance}
    return Partial(named(_random_walk, names), noise=noise, **given)


def independent(*names: str, mean: Array | None = None, covariance: Array | None = None, noise: dist.Distribution = STANDARD) -> Kernel:
    """Independence Metropolis-Hastings on real choices: proposals from a Gaussian in coordinates without constraints.

    Leaves the target invariant when `mean` and `covariance` are given. Those not given are fitted to the particles as they
    stand, with the consequence that `random_walk` tells.

    Args:
      names: the choices to move, together; all if none are named.
      mean, covariance: [d] and [d, d], in the coordinates, the choices flattened in the order of their names.
      noise: what proposals are made of, a law of one number with mean 0 and variance 1; a `StudentT` has longer tails.

    Raises (from the sampler):
      ValueError: as `random_walk`.

    >>> import numpyro.distributions as dist, posterity as po
    >>> kernel = po.kernels.independent(noise=dist.StudentT(5.0, 0.0, (3 / 5) ** 0.5))
    """
    learned = {"fit": None} if mean is None or covariance is None else {}
    return Partial(named(_independent, names), mean=mean, covariance=covariance, noise=noise, **learned)


def prior() -> Kernel:
    """Independence Metropolis-Hastings from the program's own law: accepts fresh choices with probability min(1, G' / G). Leaves the target invariant.

    For choices of any kind; accepted as rarely as the prior hits where the posterior is.
    """
    return Partial(_prior)


def uniform(*names: str) -> Kernel:
    """Metropolis on finite choices: one of them, picked at random, gets a value drawn uniformly from its support. Leaves the target invariant.

    Args:
      names: the choices to move; all if none are named. All entries of a choice that is an array are drawn anew together.

    Raises (from the sampler):
      ValueError: when a choice to be moved has no finite support that is known while tracing, or there is none of that name.
    """
    return Partial(named(_uniform, names))


def cycle(*kernels: Kernel) -> Kernel:
    """One kernel after another, each with the whole target: leaves invariant what all of them do. A particle counts as moved when any of them moved it.

    >>> import posterity as po
    >>> kernel = po.kernels.cycle(po.kernels.random_walk("x"), po.kernels.uniform("component"))

    Raises:
      ValueError: when no kernel is given.
    """
    if not kernels:
        raise ValueError("cycle: give at least one kernel")
    return Partial(_cycle, kernels=tuple(kernels))


def default() -> Kernel:
    """`random_walk` on the real choices and `uniform` on the finite ones, in turn; `prior` for programs with choices of other kinds."""
    return Partial(_default, fit=None)


def given(kernel: Kernel | None) -> Partial:
    """The kernel that an algorithm was given, or the default, as a pytree."""
    kernel = default() if kernel is None else kernel
    return kernel if isinstance(kernel, Partial) else Partial(kernel)


# -- how they move ---------------------------------------------------------------------------------------------------------


def _random_walk(
    key: Array,
    program: Parametric,
    particles: Any,
    *,
    time: Any = None,
    names: tuple[str, ...],
    noise: dist.Distribution = STANDARD,
    covariance: Array | None = None,
    fit: Fit | None = None,
) -> tuple[Any, Moved]:
    noise_key, *keys = jax.random.split(key, 3)
    at = space("random_walk", program, particles, names)
    d = at.x.shape[1]
    if covariance is not None:
        covariance = shaped("random_walk", "covariance", covariance, (d, d))
    else:
        covariance = (at.fit("random_walk") if fit is None else fit).covariance * (2.38**2 / d)
    step = scaled(jnp.linalg.cholesky(covariance), draw(noise_key, "noise", noise.expand(at.x.shape)))
    return at.judge(keys, program, particles, at.x + step, time)


def _independent(
    key: Array,
    program: Parametric,
    particles: Any,
    *,
    time: Any = None,
    names: tuple[str, ...],
    noise: dist.Distribution = STANDARD,
    mean: Array | None = None,
    covariance: Array | None = None,
    fit: Fit | None = None,
) -> tuple[Any, Moved]:
    noise_key, *keys = jax.random.split(key, 3)
    at = space("independent", program, particles, names)
    d = at.x.shape[1]
    learned = lambda: at.fit("independent") if fit is None else fit  # noqa: E731
    mean = learned().mean if mean is None else shaped("independent", "mean", mean, (d,))
    covariance = learned().covariance if covariance is None else shaped("independent", "covariance", covariance, (d, d))
    root = jnp.linalg.cholesky(covariance)
    fresh = draw(noise_key, "noise", noise.expand(at.x.shape))
    present = jax.vmap(_solved, (0 if root.ndim == 3 else None, 0))(root, at.x - mean)
    log_factor = jnp.sum(jnp.asarray(noise.log_prob(present)) - jnp.asarray(noise.log_prob(fresh)), axis=1)
    return at.judge(keys, program, particles, mean + scaled(root, fresh), time, log_factor)


def _solved(root: Array, x: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(root, x, lower=True)


def _prior(key: Array, program: Parametric, particles: Any, *, time: Any = None) -> tuple[Any, Moved]:
    at_key, accept_key = jax.random.split(key)
    fresh = program.at(at_key, None, particles, time)
    moved = accept(accept_key, program.log_likelihood(fresh), program.log_likelihood(particles))
    return where(moved.accepted, fresh, particles), moved


def _uniform(key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...]) -> tuple[Any, Moved]:
    pick_key, value_key, at_key, accept_key = jax.random.split(key, 4)
    choices = program.choices(particles)
    laws = supports(program.inner, choices)
    names = checked("uniform", program, names, choices)
    for name in names:
        if name not in laws or not size(laws[name]):
            raise ValueError(f"uniform moves choices of finite support; {name!r} of {program.inner} is {kind(laws.get(name))}")
    n = jax.tree.leaves(choices)[0].shape[0]
    picked = draw(pick_key, "pick", dist.CategoricalLogits(jnp.zeros((n, len(names)))))
    places = {}
    for index, name in enumerate(names):
        place = draw(jax.random.fold_in(value_key, index), f"place of {name}", _uniformly(n, laws[name]))
        places[name] = jnp.where((picked == index).reshape(n, *[1] * (place.ndim - 1)), place, -1)
    proposed, log_new = from_supports(program.inner, choices, places)
    fresh = program.at(at_key, proposed, particles, time)
    log_old = times(log_prior(program.inner, choices), program.log_likelihood(particles))
    moved = accept(accept_key, times(log_new, program.log_likelihood(fresh)), log_old)
    return where(moved.accepted, fresh, particles), moved


def _uniformly(n: int, law: dist.Distribution) -> dist.Distribution:
    """The place of a value in the support, for each entry of a choice of n particles."""
    return dist.CategoricalLogits(jnp.zeros((n, *law.batch_shape, size(law))))


def _cycle(key: Array, program: Parametric, particles: Any, *, time: Any = None, kernels: tuple[Kernel, ...]) -> tuple[Any, Moved]:
    accepted = invalid = jnp.zeros((), bool)
    for index, kernel in enumerate(kernels):
        particles, moved = kernel(jax.random.fold_in(key, index), program, particles, time=time)
        accepted, invalid = accepted | moved.accepted, invalid | moved.invalid
    return particles, Moved(accepted, invalid)


def _default(key: Array, program: Parametric, particles: Any, *, time: Any = None, fit: Fit | None = None) -> tuple[Any, Moved]:
    laws = supports(program.inner, program.choices(particles))
    real = tuple(name for name, law in laws.items() if not discrete(law))
    finite = tuple(name for name in laws if name not in real)
    parts = [Partial(named(_random_walk, real), fit=fit)] if real else []
    parts += [uniform(*finite)] if finite else []
    kernel = cycle(*parts) if parts and all(size(laws[name]) for name in finite) else prior()
    return kernel(key, program, particles, time=time)
