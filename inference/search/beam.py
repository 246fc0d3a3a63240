"""Search that keeps the best: step-level best-of-n, beams, diverse verifier trees, lookahead."""

from typing import Any, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Int, PRNGKeyArray

from posterity.inference.blocks import run
from posterity.inference.budget import Budget
from posterity.inference.drive import check_counts
from posterity.inference.search.result import Selection
from posterity.inference.search.rounds import found, score
from posterity.ppl.program import Program


@runtime_checkable
class Charged(Protocol):
    """A program that keeps accounts of particles that are given up: a capability."""

    def charged(self, particles: Any, others: Any) -> Any:
        """The particles with the work that others, which went on from them, have done."""
        ...


@struct.dataclass
class Best:
    """All go on from the best."""

    def __call__(self, key: Array, program: Any, particles: Any, scores: Array, done: Array, time: Array) -> tuple[Any, Array]:
        return particles, jnp.broadcast_to(jnp.argmax(scores), scores.shape)


@struct.dataclass
class Beams:
    """Those that are done stay; of the others the best go on, in `width` copies each. With `ahead` they are judged by where they are so many steps later."""

    width: int = struct.field(pytree_node=False)
    ahead: int = struct.field(pytree_node=False, default=0)

    def __call__(self, key: Array, program: Any, particles: Any, scores: Array, done: Array, time: Array) -> tuple[Any, Array]:
        if self.ahead:
            later = run(key, program, particles, self.ahead)
            scores = score("lookahead", program, program.value(later))
            particles = program.charged(particles, later) if isinstance(program, Charged) else particles
        order = jnp.argsort(jnp.where(done, jnp.inf, -scores), stable=True)
        return particles, refilled(done, order[jnp.arange(done.shape[0]) // self.width])


@struct.dataclass
class Trees:
    """Groups of `width`, each of which goes on from its best. Where that is done, those that are done stay and the others are given up for it."""

    width: int = struct.field(pytree_node=False)

    def __call__(self, key: Array, program: Any, particles: Any, scores: Array, done: Array, time: Array) -> tuple[Any, Array]:
        place = jnp.arange(scores.shape[0])
        first = place - place % self.width
        best = first + jnp.argmax(scores.reshape(-1, self.width), axis=1)[place // self.width]
        return particles, jnp.where(done & done[best], place, best)


def refilled(done: Bool[Array, " n"], ranked: Int[Array, " n"]) -> Int[Array, " n"]:
    """Ancestors in which those that are done keep their places; the other places get `ranked` from its beginning."""
    return jnp.where(done, jnp.arange(done.shape[0]), ranked[jnp.maximum(jnp.cumsum(~done) - 1, 0)])


def step_best_of_n(key: PRNGKeyArray, program: Program, *, n: int, budget: Budget | None = None) -> Selection:
    """One text, a step at a time: of n next steps the one with the best score is taken, until that ends the text.

    Not properly weighted: the best is taken whatever its probability.

    Args:
      key: a `jax.random.key`.
      program: one whose values have a `reward`, as `po.reason` makes; its own weights do not count.
      n: how many steps are drawn each time.
      budget: the most that the run may cost.

    Raises:
      TypeError, ValueError: as `repeated_sampling`.

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program = po.reason(lm, "a", reward=lambda text: 1.0 / (1 + text.generated), delimiter=";", max_steps=2, max_step_tokens=3)
    >>> len(step_best_of_n(jax.random.key(0), program, n=4).answers())
    1
    """
    return found("step_best_of_n", key, program, n, Best(), "best", budget)


def beam(
    key: PRNGKeyArray, program: Program, *, n: int, width: int = 4, choose: Literal["best", "weighted", "majority"] = "best", budget: Budget | None = None
) -> Selection:
    """Beam search by scores: before each step the best n / width of n texts are kept, in `width` copies each.

    Texts that have ended keep their places, and the others share the rest. Not properly weighted.

    Args:
      key, program, n, budget: as in `step_best_of_n`.
      width: how many next steps each kept text gets; it divides n.
      choose: among the texts in the end, see `Selection.choose`.

    Raises:
      TypeError, ValueError: as `repeated_sampling`; also for a width that does not divide n, or another choose.

    Source: Snell et al. (2024), "Scaling LLM test-time compute optimally", section 5.2; Beeching, Tunstall and Rush (2024).
    """
    _divides("beam", n, width)
    return found("beam", key, program, n, Beams(width), choose, budget)


def dvts(
    key: PRNGKeyArray, program: Program, *, n: int, width: int = 4, choose: Literal["best", "weighted", "majority"] = "weighted", budget: Budget | None = None
) -> Selection:
    """Diverse verifier tree search: n / width trees that know nothing of each other, in each of which the best of `width` next steps is taken.

    Result: the last `width` candidates of every tree, which differ in their last step only. Not properly weighted.

    Args, errors: as `beam`. Source: Beeching, Tunstall and Rush (2024), "Scaling test-time compute with open models".
    """
    _divides("dvts", n, width)
    return found("dvts", key, program, n, Trees(width), choose, budget)


def lookahead(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    width: int = 4,
    steps: int = 1,
    choose: Literal["best", "weighted", "majority"] = "best",
    budget: Budget | None = None,
) -> Selection:
    """`beam` in which texts are judged by the score that a copy has `steps` steps later. What the copies cost is in the ledger.

    The copies go on by the program's own law (the source has them go on greedily). Not properly weighted; `po.lookahead` is the program
    transformation that is.

    Args:
      key, program, n, width, choose, budget: as in `beam`.
      steps: how far copies run ahead, 1 or more.

    Raises:
      TypeError, ValueError: as `beam`.

    Source: Snell et al. (2024), section 5.2.
    """
    _divides("lookahead", n, width)
    check_counts(steps=(steps, 1))
    return found("lookahead", key, program, n, Beams(width, steps), choose, budget)


def _divides(name: str, n: int, width: int) -> None:
    check_counts(n=(n, 1), width=(width, 1))
    if n % width:
        raise ValueError(f"{name}: width must divide n, got a width of {width} and n={n}; {n - n % width + width} would do")
