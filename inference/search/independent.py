"""Independent rollouts, and ways to choose among them."""

from jaxtyping import PRNGKeyArray

from posterity.inference.budget import Budget
from posterity.inference.search.result import Selection
from posterity.inference.search.rounds import found
from posterity.ppl.program import Program


def repeated_sampling(key: PRNGKeyArray, program: Program, *, n: int, budget: Budget | None = None) -> Selection:
    """n independent rollouts, each with one vote: what coverage and pass@k are about. Potentials do not count.

    Args:
      key: a `jax.random.key`.
      program: one whose values have a `reward`, as `po.reason` makes.
      n: the number of rollouts.
      budget: the most that the run may cost.

    Raises:
      TypeError: for a program whose values have no reward, or a budget that it cannot keep to.
      ValueError: for n < 1, or scores that are no numbers in [0, 1].

    Source: Brown et al. (2024), "Large language monkeys".

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program = po.reason(lm, "a", delimiter=";", max_steps=2, max_step_tokens=3)
    >>> len(repeated_sampling(jax.random.key(0), program, n=8))
    8
    """
    return found("repeated_sampling", key, program, n, None, "majority", budget)


def self_consistency(key: PRNGKeyArray, program: Program, *, n: int, budget: Budget | None = None) -> Selection:
    """The answer that most of n independent rollouts give: the first of `answers()`.

    Args and errors are those of `repeated_sampling`. Source: Wang et al. (2023), "Self-consistency improves chain of thought reasoning".
    """
    return found("self_consistency", key, program, n, None, "majority", budget)


def best_of_n(key: PRNGKeyArray, program: Program, *, n: int, budget: Budget | None = None) -> Selection:
    """Of n independent rollouts the one whose last score is best; those with the very same score share.

    Args and errors are those of `repeated_sampling`. Source: Cobbe et al. (2021), "Training verifiers to solve math word problems".
    """
    return found("best_of_n", key, program, n, None, "best", budget)


def weighted_best_of_n(key: PRNGKeyArray, program: Program, *, n: int, budget: Budget | None = None) -> Selection:
    """Of n independent rollouts the answer with the largest sum of scores.

    Args and errors are those of `repeated_sampling`. Source: Li et al. (2023), "Making language models better reasoners with step-aware verifier".
    """
    return found("weighted_best_of_n", key, program, n, None, "weighted", budget)
