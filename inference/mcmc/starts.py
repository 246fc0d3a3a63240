"""Coordinates of a static program, and where chains start: points of finite density and gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float

from posterity.inference.mcmc.parameters import Choices, joint, supports, to_reals
from posterity.inference.mcmc.space import discrete, kind, size
from posterity.ppl.effects import draw
from posterity.ppl.program import FunctionProgram

RADIUS = 2.0  # as Stan's and NumPyro's
TRIES = 100


class Layout(NamedTuple):
    """The choices of a program, by what they are."""

    choices: Choices  # shapes, of one particle
    laws: dict[str, Any]  # for their shapes and supports alone, under tracing
    real: tuple[str, ...]
    others: tuple[str, ...]
    coordinates: int  # of the real choices
    unravel: Callable[[Array], Choices]  # coordinates as a vector, to those of each real choice


def layout(program: FunctionProgram) -> Layout:
    """The program's choices, found by tracing it; nothing is computed.

    Raises:
      ValueError: when it chooses nothing, or has a scan.
    """
    shapes = jax.eval_shape(lambda key: program.init(key, 1)[0].choices, jax.random.key(0))
    if program.length:
        raise ValueError(
            f"mcmc: {program} has a scan of {program.length} steps, and this is for programs without: see po.particle_gibbs and po.pimh for chains on its "
            "trajectories, po.pmmh for its parameters; of the kernels here po.kernels.single_site() alone takes it"
        )
    if not shapes:
        raise ValueError(f"mcmc: {program} chooses nothing: there is nothing to move")
    laws = supports(program, shapes)
    real = tuple(name for name in shapes if name in laws and not discrete(laws[name]))
    reals = jax.eval_shape(lambda choices: to_reals(program, real, choices)[0], shapes)
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), reals))
    alone = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
    return Layout(alone, laws, real, tuple(name for name in shapes if name not in real), flat.size, unravel)


def need_real(kernel: str, program: FunctionProgram, found: Layout) -> None:
    """Raises ValueError when the program has choices that are no real numbers."""
    if found.others:
        what = ", ".join(f"{name!r} is {kind(found.laws.get(name))}" for name in found.others)
        finite = all(name in found.laws and size(found.laws[name]) for name in found.others)
        mixes = "po.kernels.discrete_gibbs() and po.kernels.mixed_hmc() move both kinds; " if finite else ""
        raise ValueError(
            f"mcmc: {kernel} moves real choices, and in {program} {what}: {mixes}po.kernels.single_site() moves any, or po.marginalise sums out finite ones"
        )


def need_finite(kernel: str, program: FunctionProgram, found: Layout) -> None:
    """Raises ValueError unless the program has finite choices, and all that are not real are finite."""
    endless = [name for name in found.others if name not in found.laws or not size(found.laws[name])]
    if endless:
        what = ", ".join(f"{name!r} is {kind(found.laws.get(name))}" for name in endless)
        raise ValueError(f"mcmc: {kernel} moves finite and real choices, and in {program} {what}: see po.kernels.single_site()")
    if not found.others:
        raise ValueError(f"mcmc: {kernel} is for programs with finite choices beside real ones, and {program} has none: see nuts")


def energy(program: FunctionProgram, found: Layout) -> Callable[[Array], Array]:
    """The potential energy of one vector of coordinates: less the log density of all that the program chooses and observes, nats."""

    def potential(z: Float[Array, " d"]) -> Float[Array, ""]:
        reals = found.unravel(z)
        return -joint(program, reals, reals)[1]

    return potential


def proper(potential: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same with +inf, and a gradient of 0, where it or its gradient is not finite: for kernels that would learn a step size from a NaN."""

    def value_and_slope(z: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(potential)(z)
        lost = ~jnp.isfinite(value) | ~jnp.all(jnp.isfinite(slope))
        return jnp.where(lost, jnp.inf, value), jnp.where(lost, 0.0, slope)

    @jax.custom_vjp
    def function(z: Array) -> Array:
        value = potential(z)
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    function.defvjp(value_and_slope, lambda slope, change: (change * slope,))
    return function


class Start(NamedTuple):
    """Where one chain starts."""

    z: Float[Array, " d"]
    found: Bool[Array, ""]  # density and gradient are finite here
    bad_density: Bool[Array, ""]  # otherwise: what was wrong
    bad_gradient: Bool[Array, " d"]


def start(key: Array, program: FunctionProgram, found: Layout, given: Choices, *, gradient: bool = True) -> Start:
    """A point of finite density and gradient: the coordinates uniform on [-2, 2], where choices are not given; at most 100 tries."""
    potential = energy(program, found)

    def tried(key: Array) -> Start:
        z = draw(key, "start", dist.Uniform(-RADIUS, RADIUS).expand([found.coordinates]))
        if given:
            reals = found.unravel(z)
            choices = {**joint(program, reals, reals)[0], **given}
            z = ravel_pytree(jax.tree.map(lambda x: x[0], to_reals(program, found.real, jax.tree.map(lambda x: x[None], choices))[0]))[0]
        height, slope = jax.value_and_grad(potential)(z) if gradient else (potential(z), jnp.zeros_like(z))
        bad_density, bad_gradient = ~jnp.isfinite(height), ~jnp.isfinite(slope)
        return Start(z, ~bad_density & ~jnp.any(bad_gradient), bad_density, bad_gradient)

    def again(state: tuple[Array, Start]) -> tuple[Array, Start]:
        return state[0] + 1, tried(jax.random.fold_in(key, state[0]))

    nowhere = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(tried, key))
    return jax.lax.while_loop(lambda state: (state[0] < TRIES) & ~state[1].found, again, (jnp.zeros((), jnp.int32), nowhere))[1]


def placed(program: FunctionProgram, found: Layout, initial: Any, chains: int) -> Choices:
    """What was given to start from, [chains, ...] by name.

    Raises:
      ValueError: when a name is no choice's, or a shape neither its own nor one for each chain.
    """
    if initial is None:
        return {}
    if not isinstance(initial, dict):
        raise TypeError(f"initial must be a dict of values by the names of choices, got {type(initial).__name__}")
    placed = {}
    for name, value in initial.items():
        if name not in found.choices:
            raise ValueError(f"initial: {program} has no choice called {name}; it has {', '.join(found.choices)}")
        like, value = found.choices[name], jnp.asarray(value)
        if value.shape not in (like.shape, (chains, *like.shape)):
            raise ValueError(f"initial: {name!r} must have shape {like.shape}, or {(chains, *like.shape)} with a value for each chain, got {value.shape}")
        placed[name] = jnp.broadcast_to(value.astype(like.dtype), (chains, *like.shape))
    return placed
