"""Guides: laws over a program's choices with parameters to fit, their draws, and the weights that make a posterior of these."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import autoguide

from posterity.inference.drive import check_counts, check_key
from posterity.inference.population import normalise
from posterity.inference.uncertainty.diagnostics import pareto_k
from posterity.inference.vi.density import arguments, choice_sites, log_joint, run
from posterity.inference.vi.result import Approximation, ImportanceWeighted, equal
from posterity.ppl.effects import isolated
from posterity.ppl.errors import log_density
from posterity.ppl.program import FunctionProgram

GUIDES = {
    "normal": autoguide.AutoNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "lowrank": autoguide.AutoLowRankMultivariateNormal,
    "flow": autoguide.AutoIAFNormal,
    "laplace": autoguide.AutoLaplaceApproximation,
}
STRAY = 0.01  # the share of a guide's draws that may lie outside the program's support: numbers round onto its border


@struct.dataclass
class Guided(Approximation):
    """Independent draws of a guide that was fitted to a posterior: an `Approximation`. `weighted` is a posterior."""

    log_ratios: Float[Array, " n"]  # log of (the program's density / the guide's) at each draw, nats; -inf where the program has none
    elbo_curve: Float[Array, " steps"]  # what each step of the fit saw, nats
    parameters: dict[str, Any]  # the guide's
    program: FunctionProgram
    guide: Any = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"Guided({self.method}, n={len(self)}, elbo={float(self.elbo):.4g}, pareto_k={self.pareto_k:.2f}, no posterior: .weighted is one)"

    @property
    def elbo(self) -> Float[Array, ""]:
        """The evidence lower bound by these draws, the mean of `log_ratios`, nats: equal to the log evidence where the guide is the posterior."""
        return jnp.mean(self.log_ratios)

    @property
    def pareto_k(self) -> float:
        """The shape of the tail of the weights that the draws would get: above 0.7 the guide is too far from the posterior to be its proposal."""
        return pareto_k(self.log_ratios) if bool(jnp.any(self.log_ratios > -jnp.inf)) else math.inf

    @property
    def weighted(self) -> ImportanceWeighted:
        """The same draws weighed by the ratio of densities: properly weighted, whatever the fit came to, with an estimate of the evidence."""
        n, none = len(self), jnp.zeros((), jnp.int32)
        return ImportanceWeighted(
            values=self.values,
            log_weights=normalise(self.log_ratios),
            log_evidence=jax.scipy.special.logsumexp(self.log_ratios) - math.log(n),
            eves=jnp.arange(n, dtype=jnp.int32),
            invalid=none,
            steps=none,
            ess_history=jnp.zeros(0),
            resampled=jnp.zeros(0, bool),
            ancestors=jnp.zeros((0, n), jnp.int32),
            choices=self.choices,
        )

    def again(self, key: PRNGKeyArray, n: int) -> "Guided":
        """n fresh draws of the same guide.

        Raises:
          ValueError: for n < 1.
        """
        return drawn(key, self.program, self.guide, self.method, self.parameters, self.elbo_curve, n)


def drawn(
    key: PRNGKeyArray, program: FunctionProgram, guide: Callable, method: str, parameters: dict[str, Any], elbo_curve: Float[Array, " steps"], n: int
) -> Guided:
    """n draws of a fitted guide.

    Raises:
      ValueError: for n < 1; for a guide that draws a choice outside its support, or never draws some of it; for log densities that are NaN or +inf.
    """
    check_key(key)
    check_counts(n=(n, 1))
    choices, values, log_ratios, inside, covered = _draws(key, program, guide, parameters, n)
    if not isinstance(log_ratios, Tracer):
        _check(program, log_ratios, inside, covered)
    return Guided(
        values=values,
        choices=choices,
        method=method,
        log_ratios=log_ratios,
        elbo_curve=elbo_curve,
        parameters=parameters,
        program=program,
        guide=guide,
        **equal(n),
    )


def build(guide: Callable, program: FunctionProgram) -> Callable[[], Any]:
    """The guide as a function without arguments: an automatic one of the program, or one that is called with the program's arguments."""
    if is_automatic(guide):
        return guide(program)
    args, options = arguments(program)
    return lambda: guide(*args, **options)


def is_automatic(guide: Any) -> bool:
    """Whether it makes a guide of a model: a class of `numpyro.infer.autoguide`, with options perhaps (`functools.partial`)."""
    made = getattr(guide, "func", guide)
    return isinstance(made, type) and issubclass(made, autoguide.AutoGuide)


def check_matches(program: FunctionProgram, fitted: Callable[[], Any], choices: dict[str, Any]) -> None:
    """Raises ValueError when a guide leaves out a choice of the program, or makes one that the program does not."""
    with isolated(), handlers.trace() as sites, handlers.seed(rng_seed=0):
        fitted()
    made = {name for name, site in choice_sites(sites).items() if not site["infer"].get("is_auxiliary")}
    named = lambda names: ", ".join(map(repr, sorted(names)))  # noqa: E731
    if missing := choices.keys() - made:
        raise ValueError(f"svi: the guide of {program} misses {named(missing)}; it must draw every choice: {named(choices)}")
    if extra := made - choices.keys():
        raise ValueError(f"svi: the guide of {program} draws {named(extra)}, which the program does not; it chooses {named(choices)}")
    laws = [site["fn"] for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]]
    if all(isinstance(law, dist.Delta) for law in laws) and not isinstance(fitted, autoguide.AutoLaplaceApproximation):
        raise ValueError("svi: the guide is a point: it has no density to bound or weigh by; 'laplace' is a normal law around the mode")


@functools.partial(jax.jit, static_argnames=("guide", "n"))
def _draws(key: Array, program: FunctionProgram, guide: Callable, parameters: dict[str, Any], n: int) -> tuple:
    """Choices and values of n draws, the log ratios of densities, and by choice whether they lie in its support and cover it."""
    fitted = build(guide, program)
    with isolated(), handlers.seed(rng_seed=0), handlers.substitute(data=parameters):
        fitted()  # an automatic guide first looks at the program

    def one(key: Array) -> tuple:
        guide_key, model_key, cover_key = jax.random.split(key, 3)
        with isolated(), handlers.trace() as proposals, handlers.seed(rng_seed=guide_key), handlers.substitute(data=parameters):
            fitted()
        log_q = sum((log_density(site) for site in proposals.values() if site["type"] == "sample"), jnp.zeros(()))
        proposed = {name: site["value"] for name, site in choice_sites(proposals).items() if not site["infer"].get("is_auxiliary")}
        value, sites = run(model_key, program, proposed)
        laws = {name: sites[name]["fn"] for name in proposed}
        inside = {name: jnp.all(law.support(proposed[name])) for name, law in laws.items()}
        covered = {name: _covers(cover_key, proposals[name]["fn"], law) for name, law in laws.items()}
        log_p = log_joint(sites)
        return proposed, value, jnp.where(jnp.isneginf(log_p), -jnp.inf, log_p - log_q), inside, covered

    return jax.vmap(one)(jax.random.split(key, n))


def _covers(key: Array, proposal: dist.Distribution, law: dist.Distribution) -> Array:
    """Whether the proposal could have drawn what the law now draws."""
    if isinstance(proposal, dist.Delta) or isinstance(law, dist.ImproperUniform):
        return jnp.ones((), bool)  # of automatic guides, whose draws are transformed beforehand onto all of the support
    return jnp.all(jnp.asarray(proposal.support(law.sample(key))))  # pyright: ignore[reportOptionalCall] - every distribution has one


def _check(program: FunctionProgram, log_ratios: Array, inside: dict[str, Array], covered: dict[str, Array]) -> None:
    for name in inside:
        if (outside := 1 - np.mean(inside[name])) > STRAY:
            raise ValueError(f"svi: {outside:.0%} of the guide's draws of {name!r} lie outside its support in {program}; give the guide a law on that support")
        if not np.all(covered[name]):
            raise ValueError(f"svi: the guide never draws some values that {name!r} has in {program}; its support must cover the program's")
    if not np.all(np.asarray(log_ratios) < np.inf):
        raise ValueError(f"svi: {program} has log densities that are NaN or +inf where the guide draws; each must be finite or -inf")
