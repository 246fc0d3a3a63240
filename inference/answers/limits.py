"""What more rollouts can be worth: published laws of the number after which they are not."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.integrate import quad
from scipy.special import betainc
from scipy.stats import norm

from posterity.inference.answers.choice import Choice, majority


class Stopped(NamedTuple):
    """Votes that were counted one after the other until they were enough."""

    choice: Choice
    used: int  # votes
    sure: float  # how probable it is that more votes would not change the answer


def lead(first: int, second: int) -> float:
    """The probability that of two answers the one with `first` votes is the more frequent one, the other having `second`: of a uniform prior on its share.

    >>> round(lead(6, 1), 6)
    0.964844
    """
    if min(first, second) < 0:
        raise ValueError(f"lead: votes must not be negative, got {first} and {second}")
    return float(1.0 - betainc(first + 1, second + 1, 0.5))


def adaptive_majority(answers: Sequence[Hashable], *, level: float = 0.95) -> Stopped:
    """Votes in their order, until by `lead` the first answer is ahead of the second with probability `level`; all of them, where that is never so.

    Raises:
      ValueError: for no answers, or a level outside (0.5, 1).

    Source: Aggarwal et al. (2023), "Let's sample step by step: adaptive-consistency", section 3 (their Beta criterion).

    >>> found = adaptive_majority(["7", "7", "7", "7", "8", "8"])
    >>> found.choice.answer, found.used
    ('7', 4)
    """
    if not 0.5 < level < 1:
        raise ValueError(f"adaptive_majority: level must lie between 0.5 and 1, got {level}")
    if not answers:
        raise ValueError("adaptive_majority: there must be at least one answer")
    votes: dict[Hashable, int] = {}
    sure, used = 0.5, 0
    while sure < level and used < len(answers):
        votes[answers[used]] = votes.get(answers[used], 0) + 1
        first, second, *_ = [*sorted(votes.values(), reverse=True), 0]
        sure, used = lead(first, second), used + 1
    return Stopped(majority(answers[:used]), used, sure)


class Retried(NamedTuple):
    """Rollouts drawn until a verifier that errs accepts one, on problems of several kinds.

    Where the verifier passes wrong answers, no number of rollouts makes up for a weaker model: what is accepted late is mostly of the hard kinds.

    Source: Stroebl, Kapoor and Narayanan (2024), "Inference scaling flaws: the limits of LLM resampling with imperfect verifiers".
    """

    shares: Float[ArrayLike, " kinds"]  # of the problems, of each kind
    solved: Float[ArrayLike, " kinds"]  # the chance that a rollout is right
    complete: float  # that the verifier accepts a right one
    sound: float  # that it refuses a wrong one

    def accepted(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The chances that number 1, ..., k is the one accepted and is right, [k], or wrong, [k]."""
        share, solved = np.asarray(self.shares, float), np.asarray(self.solved, float)
        refused = (1 - self.complete) * solved + self.sound * (1 - solved)
        reached = share * refused ** np.arange(k)[:, None]
        return reached @ (self.complete * solved), reached @ ((1 - self.sound) * (1 - solved))

    def value(self, k: int, cost: float) -> float:
        """What at most k rollouts are worth: 1 for a right answer, less `cost` for a wrong one, 0 for none.

        >>> round(Retried((0.58, 0.42), (0.87, 0.13), complete=1.0, sound=0.75).value(2, cost=1.0), 6)
        0.472381
        """
        right, wrong = self.accepted(k)
        return float(right.sum() - cost * wrong.sum())

    def best(self, cost: float, most: int = 1_000) -> int:
        """How many rollouts, of 0 to `most`, are worth the most."""
        right, wrong = self.accepted(most)
        return int(np.argmax(np.concatenate([[0.0], np.cumsum(right - cost * wrong)])))


def saturation(chance: float, top: float, least: float) -> int:
    """The number of rollouts from which one more adds no more than `least` to a coverage of top (1 - (1 - chance)^n).

    Raises:
      ValueError: unless `chance`, `top` and `least` lie in (0, 1], the chance below 1.

    Source: Wang et al. (2025), "Scaling over scaling", equation of the saturation point.

    >>> saturation(0.3, 1.0, 0.01)
    10
    """
    if not (0 < chance < 1 and 0 < top <= 1 and 0 < least <= 1):
        raise ValueError(f"saturation: chance, top and least must lie in (0, 1], the chance below 1; got {chance}, {top} and {least}")
    return max(0, math.ceil(math.log(least / (top * chance)) / math.log1p(-chance)))


def best_of_k_error(k: int, bias: float = 0.0) -> float:
    """E[min (bias + z_i)^2] over k standard normal z: the squared error, in units of the model's variance, of the answer nearest to a reward's own.

    About pi exp(bias^2) / k^2 when k is large: best-of-k pays like its square as long as the reward is right.

    Source: Halder and Pehlevan (2025), "Demystifying LLM-as-a-judge", the exact scalar form.

    >>> round(best_of_k_error(4), 6)
    0.120702
    """
    if k < 1:
        raise ValueError(f"best_of_k_error: k must be at least 1, got {k}")
    # With t = x^2, as the integrand has a corner at zero: 2 x P(all |bias + z| > x).
    missed = lambda x: 2 * x * (norm.sf(x - bias) + norm.cdf(-x - bias)) ** k  # noqa: E731
    return quad(missed, 0, np.inf, epsabs=1e-14, epsrel=1e-12, limit=400)[0]


def votes_needed(rarity: float, k: int, squared_error: float) -> float:
    """The rollouts from which best-of-majority is near its best: 16 C log(k C / error), where the right answer is given once in C times.

    C is `rarity`, k how many answers are submitted, `squared_error` that of the reward.

    Source: Di et al. (2026), "Best-of-majority".

    >>> round(votes_needed(10, 5, 0.01), 2)
    1362.75
    """
    if rarity < 1 or k < 1 or squared_error <= 0:
        raise ValueError(f"votes_needed: rarity and k must be at least 1 and squared_error positive, got {rarity}, {k} and {squared_error}")
    return 16 * rarity * math.log(k * rarity / squared_error)
