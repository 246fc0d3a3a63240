"""SMC with several children a particle, of which optimal resampling keeps the best as they are (Fearnhead and Clifford 2003)."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Int, PRNGKeyArray

from posterity.inference.blocks import advance, spawn
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, check_counts, drive
from posterity.inference.population import Population, effective_sample_size
from posterity.inference.posterior import Posterior
from posterity.inference.smc.resampling.optimal import Optimal
from posterity.ppl.effects import draw
from posterity.ppl.program import Program


def prune(key: PRNGKeyArray, program: Program, population: Population, n: int) -> tuple[Population, Int[Array, " n"]]:
    """n of the m particles by `Optimal` resampling: heavy ones with their weights, the others with equal ones. Also which they are, [n].

    Keeps the meaning: each particle keeps its weight on average. Where fewer than n have any weight, the slots left have none.
    """
    law = Optimal(population.log_weights, n)
    chosen = draw(key, "survivors", law)
    filled, chosen = chosen < population.size, jnp.minimum(chosen, population.size - 1)
    log_weights = jnp.where(filled, (population.log_weights - law.log_chances)[chosen], -jnp.inf)
    return replace(population, particles=program.select(population.particles, chosen), log_weights=log_weights, eves=population.eves[chosen]), chosen


def step(key: PRNGKeyArray, program: Program, population: Population, *, children: int) -> tuple[Population, Info]:
    """One generation: every particle has children, each makes a step of its own, n of them stay."""
    advance_key, prune_key = jax.random.split(key)
    n, ess = population.size, effective_sample_size(population.log_weights)
    parents = jnp.repeat(jnp.arange(n, dtype=jnp.int32), children)
    born = replace(
        population,
        particles=program.select(population.particles, parents),
        log_weights=population.log_weights[parents] - jnp.log(children),
        eves=population.eves[parents],
    )
    population, chosen = prune(prune_key, program, advance(advance_key, program, born), n)
    return population, Info(ess, jnp.ones((), bool), parents[chosen])


def branching_smc(
    key: Array, program: Program, *, n: int, children: int = 2, history: bool | str = True, progress: bool = False, checkpoint: Checkpoint | None = None
) -> Posterior:
    """The posterior of a program by SMC that tries several continuations of each particle and lets n of all of them live.

    Properly weighted, for every n and number of children. Where `smc` resamples first and extends then, here selection sees what the
    continuations are worth; heavy particles stay, once, with their weight, so that for programs of few outcomes no two need be the same for long.
    A generation costs n * children steps. With one child this is `importance`.

    Args:
      key: a `jax.random.key`.
      program: what to infer.
      n: the number of particles between steps.
      children: how many continuations of each are tried.
      history, progress, checkpoint: as in `smc`.

    Raises:
      ValueError: on n or children below 1; otherwise as `smc`.

    Source: Fearnhead and Clifford (2003), "On-line inference for hidden Markov models via particle filters", who take all continuations of finite ones.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> posterior = po.branching_smc(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), n=1_000)
    >>> bool(abs(posterior.expect() - 2.78) < 0.1)
    True
    """
    check_counts(children=(children, 1))
    return drive(key, program, n, spawn, Partial(_step_with(children)), history=history, progress=progress, checkpoint=checkpoint)


@functools.cache
def _step_with(children: int) -> Callable:
    """One object for each number of children: jit knows compiled code again by it."""
    return functools.partial(step, children=children)
