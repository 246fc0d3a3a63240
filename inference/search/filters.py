"""Particle filters as strategies: the properly weighted one, and the entropic one as published."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.budget import Budget, Metered, Stopwatch, limited, of_work
from posterity.inference.drive import advance, begin, finish, going
from posterity.inference.population import effective_sample_size
from posterity.inference.search.result import Inferred, Selection
from posterity.inference.search.rounds import for_seconds, found
from posterity.inference.smc.resampling import Ancestors, Systematic, scheme
from posterity.inference.smc.smc import init, share, smc, step
from posterity.ppl.effects import draw
from posterity.ppl.program import Program, as_program

CLIP = 1e-7


def particle_filter(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    budget: Budget | None = None,
) -> Inferred:
    """The particle filter over steps: `po.smc`, with a ledger. Properly weighted for the program's own target.

    A run that its budget has cut off is properly weighted no more: it says so (`ledger.cut`), and texts under way weigh what their whole steps came to.
    The published filter resamples at every step, `threshold=1` and "multinomial", with the potential "odds" of the rule "prefix".

    Args:
      key, n: as in `po.smc`.
      program: any; one whose values keep accounts, as those of `po.reason` do, for a ledger.
      resampling, threshold: as in `po.smc`.
      budget: the most that the run may cost.

    Raises:
      TypeError, ValueError: as `po.smc`, and for a budget that the program cannot keep to.

    Source: Puri et al. (2025), "A probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods".

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program = po.reason(lm, "a", reward=lambda text: 1.0 / (1 + text.generated), delimiter=";", max_steps=2, max_step_tokens=3)
    >>> posterior = particle_filter(jax.random.key(0), program, n=4)
    >>> len(posterior), int(posterior.ledger.prompt)
    (4, 2)
    """
    program = limited("particle_filter", as_program(program), budget)
    with Stopwatch() as watch:
        if budget is None or budget.seconds is None:
            posterior = smc(key, program, n=n, resampling=resampling, threshold=threshold)
        else:
            posterior = _for(budget.seconds, watch, key, program, n, scheme(resampling), share(threshold))
        jax.block_until_ready(posterior)
    cut = ~jnp.all(posterior.values.complete) if isinstance(posterior.values, Metered) else jnp.zeros((), bool)
    ledger = of_work(posterior.values, cut)
    known = not isinstance(ledger.generated, Tracer)
    return Inferred(**vars(posterior), ledger=ledger.timed(watch) if known else ledger)


def _for(seconds: float, watch: Stopwatch, key: PRNGKeyArray, program: Program, n: int, resampling: type[Ancestors], threshold: Any) -> Any:
    """The filter, step by step, as long as there is time for one more."""
    if isinstance(key, Tracer):
        raise TypeError("budget: seconds cannot be a limit inside compiled code (jax.jit, vmap)")
    one_step = jax.tree_util.Partial(functools.partial(step, resampling=resampling), threshold=threshold)
    run = jax.jit(begin, static_argnames=("n", "init", "history", "moves"))(key, program, n, init, "ancestors", False)
    one = jax.jit(advance).lower(run, program, one_step).compile()
    run = for_seconds(seconds, watch, lambda run: going(run, program, False), lambda run: one(run, program, one_step), run)
    return jax.jit(finish)(run, program)


@struct.dataclass
class Tempered:
    """Systematic resampling by the odds of the scores, at a temperature that is high where few texts would be left early on."""

    steps: Float[Array, ""] | float  # the program's

    def __call__(self, key: Array, program: Any, particles: Any, scores: Array, done: Array, time: Array) -> tuple[Any, Array]:
        clipped = jnp.clip(scores, CLIP, 1 - CLIP)
        log_weights = jnp.log(clipped) - jnp.log1p(-clipped)
        return particles, draw(key, "ancestors", Systematic(log_weights / temperature(log_weights, time / self.steps)))


def temperature(log_weights: Float[Array, " n"], progress: Float[Array, ""] | float) -> Float[Array, ""]:
    """The temperature of entropic particle filtering, by effective sample size: max(1, (1 - u) / rho) where rho = ESS / n < 1/2 and progress u < 1/2, else 1.

    >>> float(temperature(jnp.array([4.0, 0.0, 0.0, 0.0, -1.0, -1.0, -2.0, -2.0]), 0.5))
    1.0
    """
    share = effective_sample_size(log_weights) / log_weights.shape[0]
    return jnp.where((share < 0.5) & (progress < 0.5), jnp.maximum(1.0, (1 - progress) / share), 1.0)


def entropic_particle_filter(
    key: PRNGKeyArray, program: Program, *, n: int, choose: Literal["best", "weighted", "majority"] = "best", budget: Budget | None = None
) -> Selection:
    """Entropic particle filtering as published: resampled before every step by the odds of the last scores, softened early on by `temperature`.

    Biased on purpose: the softening is not made up for in any weight. `po.smc(..., resampling=po.entropic(0.5))` is the same idea, properly weighted.

    Args:
      key, program, n, budget: as in `beam`.
      choose: among the texts in the end; the published filter takes the best.

    Raises:
      TypeError, ValueError: as `beam`.

    Source: Giannone et al. (2026), "Mitigating premature exploitation in particle-based Monte Carlo for inference-time scaling".
    """
    rule = Tempered(float(as_program(program).length))
    return found("entropic_particle_filter", key, program, n, rule, choose, budget)
