"""Metropolis-Hastings kernels on the choices of a program's initial law, for `po.tempering` and `po.ibis`.

Each is made by a function of its options and moves every particle on its own: `kernel(key, program, particles, time=...)` to the
particles and a `Moved`, as `blocks.Kernel` has it. `program` is a `Parametric`. Another kernel is another such function.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Bool, Float

from posterity.inference.blocks import Kernel, Moved
from posterity.inference.mcmc.metropolis import accept, where
from posterity.inference.mcmc.parameters import Choices, Parametric, from_reals, from_supports, log_prior, supports, to_reals
from posterity.ppl.effects import draw
from posterity.ppl.transform import times

__all__ = ["cycle", "default", "independent", "prior", "random_walk", "uniform"]

JITTER = 1e-6  # of the mean variance: keeps a learned covariance of few distinct particles positive
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
    return Partial(_named(_random_walk, names), covariance=covariance, noise=noise)


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
    return Partial(_named(_independent, names), mean=mean, covariance=covariance, noise=noise)


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
    return Partial(_named(_uniform, names))


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
    return Partial(_default)


def given(kernel: Kernel | None) -> Partial:
    """The kernel that an algorithm was given, or the default, as a pytree."""
    if kernel is None:
        return Partial(_default)
    return kernel if isinstance(kernel, Partial) else Partial(kernel)


# -- how they move ---------------------------------------------------------------------------------------------------------


def _random_walk(
    key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...], covariance: Array | None, noise: dist.Distribution
) -> tuple[Any, Moved]:
    noise_key, *keys = jax.random.split(key, 3)
    space = _space("random_walk", program, particles, names)
    d = space.x.shape[1]
    covariance = space.covariance("random_walk") * (2.38**2 / d) if covariance is None else _shaped("random_walk", "covariance", covariance, (d, d))
    step = draw(noise_key, "noise", noise.expand(space.x.shape)) @ jnp.linalg.cholesky(covariance).T
    return space.judge(keys, program, particles, space.x + step, time)


def _independent(
    key: Array,
    program: Parametric,
    particles: Any,
    *,
    time: Any = None,
    names: tuple[str, ...],
    mean: Array | None,
    covariance: Array | None,
    noise: dist.Distribution,
) -> tuple[Any, Moved]:
    noise_key, *keys = jax.random.split(key, 3)
    space = _space("independent", program, particles, names)
    d = space.x.shape[1]
    mean = space.mean if mean is None else _shaped("independent", "mean", mean, (d,))
    covariance = space.covariance("independent") if covariance is None else _shaped("independent", "covariance", covariance, (d, d))
    root = jnp.linalg.cholesky(covariance)
    fresh = draw(noise_key, "noise", noise.expand(space.x.shape))
    present = jax.scipy.linalg.solve_triangular(root, (space.x - mean).T, lower=True).T
    log_factor = jnp.sum(jnp.asarray(noise.log_prob(present)) - jnp.asarray(noise.log_prob(fresh)), axis=1)
    return space.judge(keys, program, particles, mean + fresh @ root.T, time, log_factor)


def _prior(key: Array, program: Parametric, particles: Any, *, time: Any = None) -> tuple[Any, Moved]:
    at_key, accept_key = jax.random.split(key)
    fresh = program.at(at_key, None, particles, time)
    moved = accept(accept_key, program.log_likelihood(fresh), program.log_likelihood(particles))
    return where(moved.accepted, fresh, particles), moved


def _uniform(key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...]) -> tuple[Any, Moved]:
    pick_key, value_key, at_key, accept_key = jax.random.split(key, 4)
    choices = program.choices(particles)
    laws = supports(program.inner, choices)
    names = _checked("uniform", program, names, choices)
    for name in names:
        if name not in laws or not _size(laws[name]):
            raise ValueError(f"uniform moves choices of finite support; {name!r} of {program.inner} is {_kind(laws.get(name))}")
    n = jax.tree.leaves(choices)[0].shape[0]
    picked = draw(pick_key, "pick", dist.CategoricalLogits(jnp.zeros((n, len(names)))))
    places = {}
    for index, name in enumerate(names):
        place = draw(jax.random.fold_in(value_key, index), f"place of {name}", _uniformly(n, laws[name]))
        places[name] = jnp.where((picked == index).reshape(n, *[1] * (place.ndim - 1)), place, -1)
    proposed, log_new = from_supports(program.inner, choices, places)
    return _judged(at_key, accept_key, program, particles, proposed, (log_new, log_prior(program.inner, choices)), time)


def _cycle(key: Array, program: Parametric, particles: Any, *, time: Any = None, kernels: tuple[Kernel, ...]) -> tuple[Any, Moved]:
    accepted = invalid = jnp.zeros((), bool)
    for index, kernel in enumerate(kernels):
        particles, moved = kernel(jax.random.fold_in(key, index), program, particles, time=time)
        accepted, invalid = accepted | moved.accepted, invalid | moved.invalid
    return particles, Moved(accepted, invalid)


def _default(key: Array, program: Parametric, particles: Any, *, time: Any = None) -> tuple[Any, Moved]:
    laws = supports(program.inner, program.choices(particles))
    real = tuple(name for name, law in laws.items() if not _discrete(law))
    finite = tuple(name for name in laws if name not in real)
    parts = [kernel(*names) for kernel, names in ((random_walk, real), (uniform, finite)) if names]
    kernel = cycle(*parts) if parts and all(_size(laws[name]) for name in finite) else prior()
    return kernel(key, program, particles, time=time)


def _judged(
    at_key: Array, accept_key: Array, program: Parametric, particles: Any, proposed: Choices, log_priors: tuple[Array, Array], time: Any, log_factor: Any = 0.0
) -> tuple[Any, Moved]:
    """Accepts or rejects proposed choices, given the log densities (new, old) of the law of both and what the proposal asks for, log q(old) / q(new)."""
    fresh = program.at(at_key, proposed, particles, time)
    log_new, log_old = (times(log_prior, program.log_likelihood(of)) for log_prior, of in zip(log_priors, (fresh, particles), strict=True))
    moved = accept(accept_key, log_new, log_old, log_factor)
    return where(moved.accepted, fresh, particles), moved


class _Space(NamedTuple):
    """Real choices as vectors."""

    x: Float[Array, "n d"]
    log_prior: Float[Array, " n"]  # of all choices, in these coordinates, nats
    usable: Bool[Array, " n"]  # not at an edge of a support, where coordinates are infinite: such particles stay
    unravel: Callable[[Array], Choices]

    def judge(
        self, keys: list[Array], program: Parametric, particles: Any, proposed: Float[Array, "n d"], time: Any, log_factor: Any = 0.0
    ) -> tuple[Any, Moved]:
        """`_judged`, of proposed coordinates."""
        choices, at_key, accept_key = program.choices(particles), *keys
        new, log_new = from_reals(program.inner, choices, self.unravel(proposed))
        return _judged(at_key, accept_key, program, particles, new, (log_new, self.log_prior), time, jnp.where(self.usable, log_factor, -jnp.inf))

    def covariance(self, kernel: str) -> Float[Array, "d d"]:
        """That of the particles."""
        count = jnp.sum(self.usable)
        if self.x.shape[0] < 2:
            raise ValueError(f"{kernel} learns its covariance from at least 2 particles that move together, got 1; give it covariance=")
        centred = jnp.where(self.usable[:, None], self.x - self.mean, 0.0)
        covariance = centred.T @ centred / jnp.maximum(count - 1, 1)
        return covariance + (JITTER * jnp.trace(covariance) / self.x.shape[1] + jnp.finfo(self.x.dtype).tiny) * jnp.eye(self.x.shape[1])

    @property
    def mean(self) -> Float[Array, " d"]:
        return jnp.sum(jnp.where(self.usable[:, None], self.x, 0.0), axis=0) / jnp.maximum(jnp.sum(self.usable), 1)


def _space(kernel: str, program: Parametric, particles: Any, names: tuple[str, ...]) -> _Space:
    choices = program.choices(particles)
    laws = supports(program.inner, choices)
    names = _checked(kernel, program, names, choices)
    for name in names:
        if name not in laws or _discrete(laws[name]):
            what = _kind(laws.get(name))
            raise ValueError(f"{kernel} moves real choices; {name!r} of {program.inner} is {what}: see po.kernels.uniform and po.kernels.prior")
    reals, log_prior = to_reals(program.inner, names, choices)
    x = jax.vmap(lambda reals: ravel_pytree(reals)[0])(reals)
    unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), reals))[1]
    usable = jnp.all(jnp.isfinite(x), axis=1)
    return _Space(jnp.where(usable[:, None], x, 0.0), log_prior, usable, jax.vmap(unravel))


def _checked(kernel: str, program: Parametric, names: tuple[str, ...], choices: Choices) -> tuple[str, ...]:
    """The names, or all."""
    unknown = [name for name in names if name not in choices]
    if unknown or not choices:
        raise ValueError(f"{kernel}: {program.inner} has no choice called {', '.join(unknown) or 'anything'}; it has {', '.join(choices) or 'none'}")
    return names or tuple(choices)


def _shaped(kernel: str, name: str, given: Array, shape: tuple[int, ...]) -> Array:
    if jnp.shape(given) != shape:
        raise ValueError(f"{kernel}: {name} must have shape {shape}, one entry for each coordinate that is moved, got {jnp.shape(given)}")
    return jnp.asarray(given)


def _discrete(law: dist.Distribution) -> bool:
    return getattr(law.support, "is_discrete", True)


def _size(law: dist.Distribution) -> int:
    """How many values each entry of a choice can have; 0 when that is not known while tracing."""
    if not law.has_enumerate_support:
        return 0
    try:
        return jax.eval_shape(lambda: law.enumerate_support(expand=False)).shape[0]
    except (NotImplementedError, jax.errors.JAXTypeError):
        return 0


def _uniformly(n: int, law: dist.Distribution) -> dist.Distribution:
    """The place of a value in the support, for each entry of a choice of n particles."""
    return dist.CategoricalLogits(jnp.zeros((n, *law.batch_shape, _size(law))))


def _kind(law: dist.Distribution | None) -> str:
    return "rows of a plate" if law is None else f"{'discrete' if _discrete(law) else 'real'} ({type(law).__name__})"


@functools.cache
def _named(kernel: Callable, names: tuple[str, ...]) -> Callable:
    """One object for each choice of names: jit knows compiled code again by it."""
    return functools.partial(kernel, names=names)
