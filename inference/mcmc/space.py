"""Real choices as vectors, and what kernels that move them share."""

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

from posterity.inference.blocks import Moved
from posterity.inference.mcmc.metropolis import accept, where
from posterity.inference.mcmc.parameters import Choices, Parametric, from_reals, supports, to_reals
from posterity.ppl.transform import times

JITTER = 1e-6  # of the mean variance: keeps a learned covariance of few distinct particles positive


class Fit(NamedTuple):
    """Where a target lies and how wide it is, as far as that has been learned, in coordinates without constraints; one for all particles, or one for each."""

    mean: Float[Array, "*n d"]
    covariance: Float[Array, "*n d d"]

    def of(self, places: Any) -> "Fit":
        """Of these coordinates alone."""
        return Fit(self.mean[..., places], self.covariance[..., places, :][..., places])


def scaled(root: Float[Array, "*n d d"], x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Every row times a matrix, its own or one for all."""
    return jnp.einsum("...ij,...j->...i", root, x)


class Space(NamedTuple):
    """Real choices as vectors."""

    x: Float[Array, "n d"]
    log_prior: Float[Array, " n"]  # of all choices, in these coordinates, nats
    usable: Bool[Array, " n"]  # not at an edge of a support, where coordinates are infinite: such particles stay
    unravel: Callable[[Array], Choices]

    def at(self, key: Array, program: Parametric, particles: Any, x: Float[Array, "n d"], time: Any) -> tuple[Any, Float[Array, " n"]]:
        """The particles with these coordinates in place of theirs, and the log density of the target there, nats."""
        choices, log_prior = from_reals(program.inner, program.choices(particles), self.unravel(x))
        fresh = program.at(key, choices, particles, time)
        return fresh, times(log_prior, program.log_likelihood(fresh))

    def log_target(self, program: Parametric, particles: Any) -> Float[Array, " n"]:
        """The log density of the target where the particles are, nats."""
        return times(self.log_prior, program.log_likelihood(particles))

    def judge(
        self, keys: list[Array], program: Parametric, particles: Any, proposed: Float[Array, "n d"], time: Any, log_factor: Any = 0.0
    ) -> tuple[Any, Moved]:
        """Accepts or rejects proposed coordinates, given what the proposal asks for, log q(old) / q(new)."""
        at_key, accept_key = keys
        fresh, log_new = self.at(at_key, program, particles, proposed, time)
        moved = accept(accept_key, log_new, self.log_target(program, particles), jnp.where(self.usable, log_factor, -jnp.inf))
        return where(moved.accepted, fresh, particles), moved

    def fit(self, kernel: str) -> Fit:
        """Mean and covariance of the particles as they stand."""
        if self.x.shape[0] < 2:
            raise ValueError(f"{kernel} learns its covariance from at least 2 particles that move together, got 1; give it covariance=")
        count = jnp.sum(self.usable)
        mean = jnp.sum(jnp.where(self.usable[:, None], self.x, 0.0), axis=0) / jnp.maximum(count, 1)
        centred = jnp.where(self.usable[:, None], self.x - mean, 0.0)
        covariance = centred.T @ centred / jnp.maximum(count - 1, 1)
        floor = (JITTER * jnp.trace(covariance) / self.x.shape[1] + jnp.finfo(self.x.dtype).tiny) * jnp.eye(self.x.shape[1])
        return Fit(mean, covariance + floor)


def space(kernel: str, program: Parametric, particles: Any, names: tuple[str, ...]) -> Space:
    """The named choices, or all, of every particle as a vector.

    Raises:
      ValueError: when one of them is not real, or there is none of that name.
    """
    choices = program.choices(particles)
    laws = supports(program.inner, choices)
    names = checked(kernel, program, names, choices)
    for name in names:
        if name not in laws or discrete(laws[name]):
            raise ValueError(f"{kernel} moves real choices; {name!r} of {program.inner} is {kind(laws.get(name))}: see po.kernels.uniform and po.kernels.prior")
    reals, log_prior = to_reals(program.inner, names, choices)
    x, unravel = as_vectors(reals)
    usable = jnp.all(jnp.isfinite(x), axis=1)
    return Space(jnp.where(usable[:, None], x, 0.0), log_prior, usable, unravel)


def as_vectors(reals: Choices) -> tuple[Float[Array, "n d"], Callable[[Array], Choices]]:
    """Coordinates by name as vectors, in the order of the names; and the way back."""
    unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), reals))[1]
    return jax.vmap(lambda reals: ravel_pytree(reals)[0])(reals), jax.vmap(unravel)


def checked(kernel: str, program: Parametric, names: tuple[str, ...], choices: Choices) -> tuple[str, ...]:
    """The names, or all.

    Raises:
      ValueError: when there is no such choice.
    """
    unknown = [name for name in names if name not in choices]
    if unknown or not choices:
        raise ValueError(f"{kernel}: {program.inner} has no choice called {', '.join(unknown) or 'anything'}; it has {', '.join(choices) or 'none'}")
    return names or tuple(choices)


def shaped(kernel: str, name: str, given: Any, shape: tuple[int, ...]) -> Array:
    """What was given, if it has this shape.

    Raises:
      ValueError: when it has not.
    """
    if jnp.shape(given) != shape:
        raise ValueError(f"{kernel}: {name} must have shape {shape}, one entry for each coordinate that is moved, got {jnp.shape(given)}")
    return jnp.asarray(given)


def discrete(law: dist.Distribution) -> bool:
    """Whether a choice of this law is no real number."""
    return getattr(law.support, "is_discrete", True)


def size(law: dist.Distribution) -> int:
    """How many values each entry of a choice can have; 0 when that is not known while tracing."""
    if not law.has_enumerate_support:
        return 0
    try:
        return jax.eval_shape(lambda: law.enumerate_support(expand=False)).shape[0]
    except (NotImplementedError, jax.errors.JAXTypeError):
        return 0


def kind(law: dist.Distribution | None) -> str:
    """What a choice of this law is, for people."""
    return "rows of a plate" if law is None else f"{'discrete' if discrete(law) else 'real'} ({type(law).__name__})"


@functools.cache
def named(kernel: Callable, names: tuple[str, ...]) -> Callable:
    """One object for each choice of names: jit knows compiled code again by it."""
    return functools.partial(kernel, names=names)


def names_of(kernel: Partial) -> tuple[str, ...]:
    """The names that a kernel was made for."""
    return getattr(getattr(kernel.func, "fun", kernel.func), "keywords", {}).get("names", ())


def learns(kernel: Any) -> bool:
    """Whether the kernel, or one that it is made of, learns what it was not given."""
    if not isinstance(kernel, Partial):
        return False
    parts = (*kernel.keywords.get("kernels", ()), kernel.keywords.get("kernel"))
    return kernel.keywords.get("fit", 0) is None or any(map(learns, parts))


def fitted(kernel: Any, fit: Fit, places: Callable[[tuple[str, ...]], Any]) -> Any:
    """The kernel, and those that it is made of, with the fit in the place of what they would learn; `places` tells the coordinates of names."""
    if not isinstance(kernel, Partial):
        return kernel
    options = dict(kernel.keywords)
    if "kernels" in options:
        options["kernels"] = tuple(fitted(part, fit, places) for part in options["kernels"])
    if "kernel" in options:
        options["kernel"] = fitted(options["kernel"], fit, places)
    if "fit" in options and options["fit"] is None:
        options["fit"] = fit.of(places(names_of(kernel)))
    return Partial(kernel.func, *kernel.args, **options)
