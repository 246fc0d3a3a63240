"""Stochastic variational inference (Hoffman et al. 2013): a guide is fitted to a posterior, and is then a proposal for it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax import Array, lax
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal

from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc.parameters import function_program
from posterity.inference.vi.density import continuous
from posterity.inference.vi.guide import GUIDES, Guided, build, check_matches, drawn, is_automatic
from posterity.inference.vi.train import check_optimizer, descent
from posterity.ppl.effects import isolated
from posterity.ppl.program import FunctionProgram


def svi(
    key: PRNGKeyArray,
    program: FunctionProgram,
    guide: str | Callable[..., Any] = "normal",
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 2_000,
    particles: int = 1,
    draws: int = 1_000,
) -> Guided:
    """A guide fitted to the program's posterior by gradients of the evidence lower bound, and draws of it.

    The draws follow the guide's law, not the posterior's. `result.weighted` weighs them by the ratio of densities: properly weighted,
    E[exp(log_evidence) * expect(f)] = ⟦p⟧(f), whatever the fit came to, since the draws are made after it, with a key of their own;
    its `pareto_k` tells whether the guide is close enough to be of use.

    Args:
      key: a `jax.random.key`.
      program: one made by `@po.program`, whose choices are all continuous; also one with a scan, of which all steps' choices are fitted together.
      guide: "normal" (independent), "multivariate", "lowrank", "flow" (inverse autoregressive; needs two dimensions) or "laplace" (at the mode),
        all in coordinates without constraints; or a class of `numpyro.infer.autoguide`, or a `functools.partial` of one; or a function of the
        program's arguments that draws its choices by `po.sample` and has parameters by `numpyro.param`. Choices whose support depends on other
        choices need such a function.
      optimizer: any of optax; by default Adam from 0.05 down to 0 along a cosine. One object compiles once: make it outside of loops.
      steps: how many steps of it.
      particles: draws for each gradient.
      draws: how many draws of the fitted guide the result holds.

    Raises:
      TypeError: when `program`, `guide` or `optimizer` is none of these.
      ValueError: on a count below 1; discrete choices, named; a guide that misses a choice or has another support; a bound that became NaN or infinite.

    Source: Kucukelbir et al. (2017); Kingma et al. (2016) for the flow.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def mean(ys):
    ...     mu = po.sample("mu", dist.Normal(0.0, 1.0))
    ...     po.observe("ys", dist.Normal(mu, 1.0), ys)
    ...     return mu
    >>> found = po.svi(jax.random.key(0), mean(jnp.array([1.0, 2.0, 3.0])), steps=500)
    >>> bool(abs(found.expect() - 1.5) < 0.1), bool(abs(found.elbo - found.weighted.log_evidence) < 0.01)
    (True, True)
    """
    check_key(key)
    check_counts(steps=(steps, 1), particles=(particles, 1), draws=(draws, 1))
    program = function_program("svi", program)
    method, make = _guide(guide)
    fit_key, draw_key = jax.random.split(key)
    optimizer = check_optimizer("svi", optimizer) or descent(steps)
    parameters, curve = _fitted(fit_key, program, make, optimizer, steps, particles)
    if not isinstance(curve, Tracer):
        if not np.isfinite(np.asarray(curve)).all() and not is_automatic(make):
            drawn(draw_key, program, make, method, _fitted(fit_key, program, make, optimizer, 0, particles)[0], curve, draws)  # of the wrong support, mostly
        _check(curve, parameters)
    return drawn(draw_key, program, AutoMultivariateNormal if make is AutoLaplaceApproximation else make, method, parameters, curve, draws)


@functools.partial(jax.jit, static_argnames=("guide", "optimizer", "steps", "particles"))
def _fitted(
    key: Array, program: FunctionProgram, guide: Callable, optimizer: optax.GradientTransformation, steps: int, particles: int
) -> tuple[dict[str, Any], Float[Array, " steps"]]:
    """The guide's parameters, and the evidence lower bound as each step saw it."""
    choices = continuous("svi", program)
    fitted = build(guide, program)
    check_matches(program, fitted, choices)
    with isolated():
        fit = SVI(program, fitted, optimizer, Trace_ELBO(num_particles=particles))
        state, losses = lax.scan(lambda state, _: fit.update(state), fit.init(key), length=steps)
        parameters = fit.get_params(state)
        if isinstance(fitted, AutoLaplaceApproximation):
            normal = fitted.get_transform(parameters)
            parameters = {"auto_loc": normal.loc, "auto_scale_tril": normal.scale_tril}
    return parameters, -losses


def _guide(guide: Any) -> tuple[str, Callable]:
    """What a guide is called, and what makes it."""
    if isinstance(guide, str) and guide in GUIDES:
        return guide, GUIDES[guide]
    if not callable(guide):
        named = ", ".join(map(repr, GUIDES))
        raise TypeError(f"svi: guide must be {named}, a class of numpyro.infer.autoguide or a function of the program's arguments, got {guide!r}")
    made = getattr(guide, "func", guide) if is_automatic(guide) else guide
    return getattr(made, "__name__", type(made).__name__), guide


def _check(curve: Array, parameters: dict[str, Any]) -> None:
    """Raises ValueError when the fit came to nothing."""
    finite = np.isfinite(np.asarray(curve))
    if not finite.all():
        step = int(np.argmin(finite))
        raise ValueError(
            f"svi: the evidence lower bound was {float(curve[step])} at step {step + 1} of {len(finite)}: a smaller step size (optimizer), more particles, or "
            "a program without hard factors where the guide begins may help"
        )
    if "auto_scale_tril" in parameters and not np.all(np.diagonal(np.asarray(parameters["auto_scale_tril"])) > 0):
        raise ValueError("svi: the density has no peak where the fit ended (its Hessian is not negative definite there), so that there is no Laplace law")
