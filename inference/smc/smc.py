"""Sequential Monte Carlo: the bootstrap particle filter (Gordon, Salmond, Smith 1993) with adaptive resampling."""

import functools
import numbers

import jax
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.blocks import advance, resample_below
from posterity.inference.blocks import resample as select
from posterity.inference.blocks import spawn as init
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, drive
from posterity.inference.population import Population
from posterity.inference.posterior import Posterior
from posterity.inference.smc.resampling import Ancestors, Systematic, scheme
from posterity.ppl.program import Program

__all__ = ["init", "select", "smc", "step"]


def step(
    key: PRNGKeyArray, program: Program, population: Population, *, threshold: Float[Array, ""] | float = 0.5, resampling: type[Ancestors] = Systematic
) -> tuple[Population, Info]:
    """One generation: resample when the effective sample size falls below `threshold * n`, advance."""
    resample_key, advance_key = jax.random.split(key)
    population, info = resample_below(threshold, resample_key, program, population, resampling)
    return advance(advance_key, program, population), info


def smc(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    history: bool | str = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """The posterior of a program by sequential Monte Carlo with its own transition as the proposal.

    Properly weighted: E[exp(log_evidence) * expect(f)] = ⟦p⟧(f) for every n; as n grows `expect` converges to the posterior.

    Args:
      key: a `jax.random.key`.
      program: what to infer.
      n: the number of particles.
      resampling: "systematic", "stratified", "multinomial", "residual", "ssp", "killing", or a class of `inference.smc.resampling`, as
        `po.entropic` makes them.
      threshold: resample before a step when the effective sample size is below `threshold * n`; 0 never, 1 whenever
        the weights differ.
      history: True or "ancestors" keeps the ancestors of every step (4 bytes a particle and step), for `Posterior.lineage`; False or "none" keeps
        nothing; "full" keeps all particles of every step too, for `backward_simulation` and `fixed_lag`.
      progress: show a progress bar; the steps are then compiled one by one instead of all in one loop.
      checkpoint: where to keep the run, and how often: `po.Checkpoint(path, every=steps)`. The same call goes on from there.

    Raises:
      ValueError: on n < 1, an unknown scheme, a threshold outside [0, 1], or when a potential is NaN or +inf. Inside
        `jax.jit`, where nothing can be raised, the posterior has `invalid > 0` and log_evidence -inf instead.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     x = po.sample("x0", dist.Normal(0.0, 1.0))
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, x, ys)
    >>> posterior = po.smc(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), n=1_000)
    >>> bool(abs(posterior.expect() - 2.78) < 0.1)
    True
    """
    step = jax.tree_util.Partial(_step_with(scheme(resampling)), threshold=share(threshold))
    return drive(key, program, n, init, step, history=history, progress=progress, checkpoint=checkpoint)


def share(threshold: Float[Array, ""] | float) -> Float[Array, ""] | float:
    """A threshold that has been checked, as a float: 1 and 0.5 share compiled code."""
    if isinstance(threshold, Tracer):
        return threshold
    if not isinstance(threshold, (numbers.Real, jax.Array)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold!r}")
    return float(threshold)


@functools.cache
def _step_with(resampling: type[Ancestors]):
    """One object a scheme: jit knows compiled code again by it."""
    return functools.partial(step, resampling=resampling)
