"""Reasoning that can go wrong, in small: steps that are right or not, rewards that are mistaken about them. What the map of budget ratios is drawn on."""

import jax.numpy as jnp
import numpyro.distributions as dist
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from posterity.models.potentials.degraded import normal_of
from posterity.ppl.answer import Answer
from posterity.ppl.effects import factor, sample, scan
from posterity.ppl.program import program

STEPS = 5
LINES = 4  # that a step can be; the first of them is right
MARGIN = 2.0  # nats: the log odds of a reward that makes no mistakes


@struct.dataclass
class Solution(Answer):
    """Steps written so far."""

    lines: Int[Array, " steps"]  # which line each step is; 0 also beyond the last
    steps: Int[Array, ""]
    log_odds: Float[Array, ""]  # of the reward, nats; 0 before the first step

    @property
    def reward(self) -> Float[Array, ""]:
        """The last score, in (0, 1)."""
        return 1 / (1 + jnp.exp(-self.log_odds))

    @property
    def right(self) -> Array:
        """Whether no step so far was wrong: no later one mends it."""
        return jnp.all(self.lines == 0, axis=-1)

    def answer(self) -> tuple[int, ...]:
        """All lines: what went wrong in another way has another answer."""
        return tuple(int(line) for line in self.lines)


@program
def fallible(solved, noise, problem, telescoped):
    """Five steps, weighed by the reward's odds: the target is the law of the steps times the odds of all scores, or if `telescoped` of the last.

    Each step is right with probability solved^(1/5), and else one of three wrong lines. The reward's log odds are 2 nats, positive as long as all
    steps were right and negative from the first mistake on, plus noise that each text has once and for all (`normal_of`).

    Args:
      solved: the probability that a text is right, [] in (0, 1).
      noise: standard deviation of the reward's log odds, [] nats.
      problem: uint32 []; another problem has other noise.
      telescoped: a plain bool.

    >>> import jax, posterity as po
    >>> posterior = po.smc(jax.random.key(0), fallible(0.5, 0.0, jax.numpy.uint32(0), True), n=256)
    >>> bool(abs(posterior.prob(lambda solution: solution.right) - 1 / (1 + jax.numpy.exp(-4.0))) < 0.05)
    True
    """
    right = jnp.asarray(solved, float) ** (1 / STEPS)
    probs = jnp.where(jnp.arange(LINES) == 0, right, (1 - right) / (LINES - 1))

    def step(solution, _):
        line = sample("line", dist.CategoricalProbs(probs))
        lines, steps = solution.lines.at[solution.steps].set(line), solution.steps + 1
        mistaken = noise * normal_of(lines, steps, problem)
        log_odds = jnp.where(jnp.all(lines == 0), MARGIN, -MARGIN) + mistaken
        factor("reward", log_odds - solution.log_odds if telescoped else log_odds)
        return Solution(lines, steps, log_odds)

    return scan(step, Solution(jnp.zeros(STEPS, jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(())), length=STEPS)
