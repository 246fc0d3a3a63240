"""Programs that are determined by the choices of their initial law: the density of these, their supports, runs begun at given ones."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from numpyro import handlers
from numpyro.distributions import biject_to

from posterity.ppl.effects import AtScan, isolated
from posterity.ppl.errors import log_density
from posterity.ppl.program import Definition, FunctionProgram
from posterity.ppl.transform import bound

Choices = dict[str, Any]


class Parametric(Protocol):
    """A program whose particles follow from the choices of `inner`'s initial law, so that kernels can move these.

    The target of particles that have come as far as some point is the law of their choices times `exp(log_likelihood)`.
    """

    inner: FunctionProgram

    def choices(self, particles: Any) -> Choices:
        """The choices [n, ...] by name."""
        ...

    def at(self, key: Array, choices: Choices | None, particles: Any, time: Array | int | None) -> Any:
        """Particles of these choices (of fresh ones if None) that have come as far as those given, which ran for `time` steps (None: all)."""
        ...

    def log_likelihood(self, particles: Any) -> Float[Array, " n"]:
        """The log of what the law of the choices is multiplied by, nats."""
        ...


def function_program(name: str, program: Any) -> FunctionProgram:
    """The program that the algorithm `name` was given.

    Raises:
      TypeError: when it is not made of a function, whose choices have densities.
    """
    program = bound(name, program)
    if not isinstance(program, FunctionProgram):
        raise TypeError(f"{name}: program must be one made by @po.program, or rewritten from one, got {program}")
    return program


def begin(program: FunctionProgram, choices: Choices) -> tuple[Any, Float[Array, " n"]]:
    """Particles of the initial law with these choices [n, ...], and their log potentials, nats."""
    idle = jax.random.key(0)  # nothing is left to draw
    particles, log_potential = jax.vmap(lambda choices: Definition(_given).bind(program, choices).init(idle, 1))(choices)
    return jax.tree.map(lambda x: x[:, 0] if x.ndim > 1 else x[0], particles), log_potential[:, 0]


def supports(program: FunctionProgram, choices: Choices) -> dict[str, Any]:
    """The distribution of each choice of one particle: for its shape and its support alone, under tracing."""
    found: dict[str, Any] = {}

    def look(choices):
        first = jax.tree.map(lambda x: x[0], choices)
        sites = initial_sites(program, lambda site: first.get(site["name"]))
        found.update({name: sites[name]["fn"] for name in choices if sites[name]["type"] == "sample"})

    jax.eval_shape(look, choices)
    return found


def to_reals(program: FunctionProgram, names: tuple[str, ...], choices: Choices) -> tuple[Choices, Float[Array, " n"]]:
    """The named choices of every particle in coordinates without constraints, and the log density of all choices in these, the Jacobian included: [n], nats."""

    def one(choices):
        sites = initial_sites(program, lambda site: choices.get(site["name"]))
        transforms = {name: biject_to(sites[name]["fn"].support) for name in names}
        reals = {name: transform.inv(choices[name]) for name, transform in transforms.items()}
        log_jacobians = [jnp.sum(transform.log_abs_det_jacobian(reals[name], choices[name])) for name, transform in transforms.items()]
        return reals, _log_prior(sites, choices) + sum(log_jacobians)

    return jax.vmap(one)(choices)


def from_reals(program: FunctionProgram, choices: Choices, reals: Choices) -> tuple[Choices, Float[Array, " n"]]:
    """The choices, those that `reals` names given by their coordinates, and their log density in these coordinates, the Jacobian included: [n], nats."""
    return _valued(program, choices, reals, _unconstrained)


def joint(program: FunctionProgram, choices: Choices, reals: Choices) -> tuple[Choices, Float[Array, ""]]:
    """Of one particle: its choices, those in `reals` given by their coordinates, and the log density in these of all choices and observations, nats."""
    sites, log_jacobian = _placed(program, choices, reals, _unconstrained)
    log_densities = (log_density(site) for site in sites.values() if site["type"] == "sample")
    return {name: sites[name]["value"] for name in choices}, sum(log_densities, log_jacobian)


def _unconstrained(site: Any, old: Any, x: Array) -> tuple[Array, Array]:
    transform = biject_to(site["fn"].support)
    y = transform(x)
    return y, jnp.sum(transform.log_abs_det_jacobian(x, y))


def from_supports(program: FunctionProgram, choices: Choices, places: Choices) -> tuple[Choices, Float[Array, " n"]]:
    """The choices, of those that `places` names the value at this place of their support (-1: as it is), and their log density: [n], nats."""

    def value(site, old, place):
        support = site["fn"].enumerate_support(expand=False)
        values = support.reshape(len(support), *site["fn"].event_shape)
        held = (place < 0).reshape(place.shape + (1,) * len(site["fn"].event_shape))
        return jnp.where(held, old, values[place]), jnp.zeros(())

    return _valued(program, choices, places, value)


def log_prior(program: FunctionProgram, choices: Choices) -> Float[Array, " n"]:
    """The log density of the choices under the initial law: [n], nats."""
    return from_supports(program, choices, {})[1]


def _valued(program: FunctionProgram, choices: Choices, new: Choices, value: Callable) -> tuple[Choices, Float[Array, " n"]]:
    """The choices, those in `new` with the value and the log Jacobian of `value(site, old, new)`, and the log density: of every particle."""

    def one(choices, new):
        sites, log_jacobian = _placed(program, choices, new, value)
        return {name: sites[name]["value"] for name in choices}, _log_prior(sites, choices) + log_jacobian

    return jax.vmap(one)(choices, new)


def _placed(program: FunctionProgram, choices: Choices, new: Choices, value: Callable) -> tuple[dict[str, Any], Float[Array, ""]]:
    """The sites of one particle with these choices, those in `new` by `value(site, old, new)`, whose log Jacobians are summed."""
    log_jacobians = []

    def at(site):
        name = site["name"]
        if name not in new:
            return choices.get(name)
        x, log_jacobian = value(site, choices[name], new[name])
        log_jacobians.append(log_jacobian)
        return x

    sites = initial_sites(program, at)
    return sites, sum(log_jacobians, jnp.zeros(()))


def _given(program: FunctionProgram, choices: Choices) -> Any:
    with handlers.substitute(data=choices):
        return program()


def initial_sites(program: FunctionProgram, value: Callable[[Any], Any]) -> dict[str, Any]:
    """The trace of one particle's initial law, whose choices have the values `value(site)`."""
    given = handlers.substitute(substitute_fn=lambda site: None if site.get("is_observed") else value(site))
    with isolated(), handlers.trace() as sites, handlers.seed(rng_seed=0), given, AtScan(lambda scan: scan.init):
        program()
    return sites


def _log_prior(sites: dict[str, Any], choices: Choices) -> Float[Array, ""]:
    return sum((log_density(site) for name, site in sites.items() if name in choices and site["type"] == "sample"), jnp.zeros(()))
