"""Sequential Monte Carlo: the bootstrap particle filter (Gordon, Salmond, Smith 1993) with adaptive resampling."""

import functools
import numbers

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from posterity.inference.drive import Info, drive
from posterity.inference.smc.importance import init, weigh
from posterity.inference.smc.resampling import Ancestors, Systematic, scheme
from posterity.ppl.effects import cond, draw
from posterity.ppl.population import Population, effective_sample_size
from posterity.ppl.posterior import Posterior
from posterity.ppl.program import Program

__all__ = ["init", "select", "smc", "step"]


def step(
    key: Array, program: Program, population: Population, *, threshold: Array | float = 0.5, resampling: type[Ancestors] = Systematic
) -> tuple[Population, Info]:
    """One generation: select when the effective sample size falls below `threshold * n`, extend, weigh."""
    select_key, extend_key = jax.random.split(key)
    ess = effective_sample_size(population.log_weights)
    degenerate = (ess < threshold * population.size) & (ess > 0)
    population, ancestors = cond(degenerate, lambda p: select(select_key, program, p, resampling), _keep, population)
    particles, log_potential = program.step(extend_key, population.particles)
    return weigh(population, particles, log_potential), Info(ess, degenerate, ancestors)


def select(key: Array, program: Program, population: Population, resampling: type[Ancestors] = Systematic) -> tuple[Population, Array]:
    """Particles copied in proportion to their weights, which become equal; their mean moves into the evidence."""
    n = population.size
    ancestors = draw(key, "ancestors", resampling(population.log_weights))
    return Population(
        particles=program.select(population.particles, ancestors),
        log_weights=jnp.full_like(population.log_weights, -jnp.log(n)),
        log_evidence=population.log_evidence + jax.scipy.special.logsumexp(population.log_weights),
        eves=population.eves[ancestors],
        invalid=population.invalid,
    ), ancestors


def _keep(population: Population) -> tuple[Population, Array]:
    return population, jnp.arange(population.size, dtype=jnp.int32)


def smc(
    key: Array,
    program: Program,
    *,
    n: int,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    history: bool = True,
    progress: bool = False,
) -> Posterior:
    """The posterior of a program by sequential Monte Carlo with its own transition as the proposal.

    Properly weighted: E[exp(log_evidence) * expect(f)] = ⟦p⟧(f) for every n; as n grows `expect` converges to the posterior.

    Args:
      key: a `jax.random.key`.
      program: what to infer.
      n: the number of particles.
      resampling: "systematic", "stratified", "multinomial", or a class of `inference.smc.resampling`.
      threshold: resample before a step when the effective sample size is below `threshold * n`; 0 never, 1 whenever
        the weights differ.
      history: keep the ancestors of every step (4 bytes a particle and step), for `Posterior.lineage`.
      progress: show a progress bar; the steps are then compiled one by one instead of all in one loop.

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
    step = jax.tree_util.Partial(_step_with(scheme(resampling)), threshold=_share(threshold))
    return drive(key, program, n, init, step, history=history, progress=progress)


def _share(threshold: Array | float) -> Array | float:
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
