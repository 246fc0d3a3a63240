"""A program as one run of a NumPyro model: its density at given choices, and in coordinates without constraints."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy

from posterity.ppl.effects import isolated
from posterity.ppl.errors import log_density
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Over

Choices = dict[str, Any]


def run(key: PRNGKeyArray, program: FunctionProgram, choices: Choices) -> tuple[Any, dict[str, Any]]:
    """One run with the given choices and fresh ones otherwise, steps included: the program's value, and its sites."""
    with isolated(), handlers.trace() as sites, handlers.seed(rng_seed=key), handlers.substitute(data=choices):
        value = program()
    return jax.tree.map(jnp.asarray, value), sites


def arguments(program: FunctionProgram) -> tuple[tuple, dict]:
    """What the program's function is called with; of a rewritten program, what the function inside is."""
    args, options = program.arguments
    return arguments(args[0]) if isinstance(program.function, Over) else (args, options)


def choice_sites(sites: dict[str, Any]) -> dict[str, Any]:
    """The choices among the sites of a run."""
    return {name: site for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}


def continuous(caller: str, program: FunctionProgram) -> dict[str, Any]:
    """The sites of the program's choices, all of them continuous; under tracing, for their shapes and supports.

    Raises:
      ValueError: when there are none, some are discrete, or a plate takes only some of its rows, which makes the density another in every run.
    """
    sites = run(jax.random.key(0), program, {})[1]
    choices = choice_sites(sites)
    if not choices:
        raise ValueError(f"{caller}: {program} makes no choices, so that there is nothing to infer")
    if discrete := [name for name, site in choices.items() if site["fn"].support.is_discrete]:
        named = ", ".join(map(repr, discrete))
        raise ValueError(f"{caller}: {program} has discrete choices ({named}), which have no gradient; sum them out first, po.marginalise(program, ...)")
    if thinned := [name for name, site in sites.items() if site["type"] == "plate" and site["args"][1] is not None and site["args"][1] < site["args"][0]]:
        raise ValueError(f"{caller}: plate {thinned[0]!r} of {program} takes only some of its rows in each run; give all rows")
    return choices


def log_joint(sites: dict[str, Any]) -> Float[Array, ""]:
    """The summed log density of all sites of a run, nats; -inf where a choice lies outside its support (NumPyro's may be anything there)."""
    inside = [jnp.all(site["fn"].support(site["value"])) for site in choice_sites(sites).values()]
    total = sum((log_density(site) for site in sites.values() if site["type"] == "sample"), jnp.zeros(()))
    return jnp.where(jnp.all(jnp.array(inside, bool)), total, -jnp.inf)


class Coordinates(NamedTuple):
    """A program's choices as one vector without constraints."""

    start: Float[Array, "n d"]  # of draws from the program's own law
    log_density: Callable[[Float[Array, " d"]], Float[Array, ""]]  # of choices and observations together, the Jacobian included; nats
    read: Callable[[Float[Array, " d"]], tuple[Choices, Any]]  # the choices, and the program's value


def coordinates(caller: str, key: PRNGKeyArray, program: FunctionProgram, n: int) -> Coordinates:
    """Coordinates of the program's choices (NumPyro's `biject_to`), and n points drawn from the law of its choices.

    Raises:
      ValueError: as `continuous`.
    """
    continuous(caller, program)

    def one(key: Array) -> Choices:
        sites = choice_sites(run(key, program, {})[1])
        return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in sites.items()}

    first = one(key)
    unravel = ravel_pytree(first)[1]

    def log_density(x: Array) -> Array:
        with isolated(), handlers.seed(rng_seed=0):
            return -jnp.asarray(potential_energy(program, (), {}, unravel(x)))

    def read(x: Array) -> tuple[Choices, Any]:
        with isolated(), handlers.seed(rng_seed=0):
            choices = constrain_fn(program, (), {}, unravel(x))
        return choices, run(jax.random.key(0), program, choices)[0]

    return Coordinates(jax.vmap(lambda key: ravel_pytree(one(key))[0])(jax.random.split(key, n)), log_density, read)
