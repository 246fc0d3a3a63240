"""Intervals and decisions that hold at every time at once, so that one may look after every draw and stop when one likes.

Draws are independent and of one law: exact draws of a posterior, texts sampled from a model, one particle of each of many runs (whose
law is then the runs' own). The particles of one run are not independent: for these there is `Posterior.answers` with its errors.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy.special import betaln, xlog1py, xlogy

from posterity.inference.uncertainty.arguments import open_level, vector

FRACTIONS = np.array([0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95])  # of the largest stake with which nobody can lose more than there is


class Intervals(NamedTuple):
    """An interval after each draw."""

    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


class Decision(NamedTuple):
    """Which answer is the most probable, or that it is still open."""

    answer: Hashable | None  # None: the draws ended before it was decided
    draws: int  # that were looked at
    counts: dict[Hashable, int]  # most frequent first
    evidence: dict[Hashable, float]  # against each answer's being the most probable: an e-value; from 1 / (1 - level) on it is ruled out
    unseen: float  # the same, against all answers that were not drawn


def log_mixture(
    successes: Float[ArrayLike, "*n"], failures: Float[ArrayLike, "*n"], p: Float[ArrayLike, "*n"], *, prior: float = 0.5
) -> Float[np.ndarray, "*n"]:
    """The log likelihood ratio of a Beta(prior, prior) mixture to one success probability p, nats: a martingale from 0 on when p is true.

    Source: Robbins (1970), "Statistical methods related to the law of the iterated logarithm"; Ville (1939).

    >>> float(np.exp(log_mixture(1, 0, 0.5)))  # the mixture gives 1/2 to the first draw, as p does
    1.0
    """
    s, f = np.asarray(successes, float), np.asarray(failures, float)
    return betaln(prior + s, prior + f) - betaln(prior, prior) - xlogy(s, p) - xlog1py(f, -np.asarray(p, float))


def confidence_sequence(hits: Bool[ArrayLike, " n"], *, level: float = 0.95, prior: float = 0.5) -> Intervals:
    """Intervals for a probability after each of n independent draws, all of which hold it together with probability at least `level`.

    What `log_mixture` has not yet ruled out. The intervals before may be intersected: the promise is about all of them.

    Args:
      hits: [n] whether each draw is the answer (satisfies the event) whose probability is asked for.
      level: of all intervals together.
      prior: where the intervals are tightest: 1/2 does well everywhere, larger numbers better near 1/2. Validity does not depend on it.

    Raises:
      ValueError: for draws that are not true or false, a level outside (0, 1), a prior that is not positive.

    Source: Robbins (1970); Howard, Ramdas, McAuliffe and Sekhon (2021), section 3.

    >>> low, high = confidence_sequence([True] * 100)
    >>> round(float(low[-1]), 3), float(high[-1])
    (0.943, 1.0)
    """
    x = vector("confidence_sequence", "hits", hits)
    open_level("confidence_sequence", level)
    if not np.isin(x, (0, 1)).all():
        raise ValueError(f"confidence_sequence: hits must be true or false, got {x[~np.isin(x, (0, 1))][0]}; for numbers in [0, 1] there is `betting_sequence`")
    if not prior > 0:
        raise ValueError(f"confidence_sequence: prior must be positive, got {prior}")
    s = np.cumsum(x)
    f = np.arange(1, len(x) + 1) - s
    ruled_out = lambda p: log_mixture(s, f, p, prior=prior) >= -math.log1p(-level)  # noqa: E731
    mean = s / (s + f)
    return Intervals(_edge(ruled_out, mean, np.zeros_like(mean)), _edge(ruled_out, mean, np.ones_like(mean)))


def betting_sequence(values: Float[ArrayLike, " n"], *, level: float = 0.95, grid: int = 200) -> Intervals:
    """Intervals for the mean of independent draws in [0, 1] after each, all of which hold it together with probability at least `level`.

    For a mean m two gamblers bet, one on more and one on less, each with several fractions of what they have; m is out when half the sum of
    their fortunes reaches 1 / (1 - level). Much narrower than `confidence_sequence` when the values lie close together, such as the
    probabilities that independent runs give to one answer (whose mean is then what is bounded).

    Args:
      values: [n] in [0, 1].
      level: of all intervals together.
      grid: at how many means the game is played; intervals reach to the next one that is out.

    Raises:
      ValueError: for values outside [0, 1], a level outside (0, 1), fewer than two means.

    Source: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting", section 4.4 (hedged capital),
    with a mixture over fixed fractions for the bets (section 4.2 there has others), so that what is kept is an interval.

    >>> low, high = betting_sequence([0.5] * 50)
    >>> bool(low[-1] > 0.4), bool(high[-1] < 0.6)
    (True, True)
    """
    x = vector("betting_sequence", "values", values)
    open_level("betting_sequence", level)
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"betting_sequence: values must lie in [0, 1], got {x[~((x >= 0) & (x <= 1))][0]}")
    if grid < 2:
        raise ValueError(f"betting_sequence: grid must be at least 2, got {grid}")
    means = np.linspace(0, 1, grid + 1)
    up, down = _fortunes(x, means), _fortunes(1 - x, 1 - means)
    fortune = np.logaddexp(up, down) - math.log(2)  # [n, grid + 1], convex in the mean, so that what is not out is an interval
    alive = fortune < -math.log1p(-level)
    alive[np.arange(len(x)), fortune.argmin(axis=1)] = True  # should all of it lie between two means, then beside this one
    first, last = alive.argmax(axis=1), grid - alive[:, ::-1].argmax(axis=1)
    return Intervals(means[np.maximum(first - 1, 0)], means[np.minimum(last + 1, grid)])


def decide(draws: Iterable[Hashable], *, level: float = 0.95) -> Decision:
    """Draws until it is decided which answer is the most probable; the decision is wrong with probability at most 1 - level, however many there are.

    Against each answer a game is played: before a draw, a bet that the leader comes before it, at odds that are fair if both are equally probable.
    Where the answer is the most probable the fortune has no upward drift, so it ever reaches 1 / (1 - level) with probability at most
    1 - level (Ville 1939). Only the game against the true mode counts for the error: how many answers there are need not be known, and answers
    that have not come yet are played against too. Decided is what is left when all others are out.

    Args:
      draws: answers, independent and of one law; an iterator is asked for no more than are needed.
      level: the probability with which the decision is right.

    Raises:
      ValueError: for a level outside (0, 1).

    Source: e-processes: Ramdas et al. (2023), "Game-theoretic statistics and safe anytime-valid inference"; bets by the estimator of
    Krichevsky and Trofimov (1981). Jain et al. (2022), "PAC mode estimation", have the game of each pair, for a known number of answers.

    >>> decision = decide(iter(["7"] * 100))
    >>> decision.answer, decision.draws
    ('7', 7)
    """
    open_level("decide", level)
    needed = -math.log1p(-level) - 1e-12
    counts: dict[Hashable, int] = {}
    fortunes: dict[Hashable, float] = {}  # nats
    unseen = 0.0
    for drawn in draws:
        leader = max(counts, key=counts.__getitem__) if counts else None  # of those that tie the first met
        fortunes.setdefault(drawn, unseen)  # until now it was one of the unseen
        for answer in fortunes:
            if leader is not None and answer != leader:
                fortunes[answer] += _gain(counts[leader], counts.get(answer, 0), drawn == leader, drawn == answer)
        unseen += _gain(counts[leader], 0, drawn == leader, False) if leader is not None else 0.0
        counts[drawn] = counts.get(drawn, 0) + 1
        left = [answer for answer, fortune in fortunes.items() if fortune < needed]
        if unseen >= needed and len(left) == 1:
            return _decision(left[0], counts, fortunes, unseen)
    return _decision(None, counts, fortunes, unseen)


def _gain(ahead: int, behind: int, leader_came: bool, answer_came: bool) -> float:
    """What the bet on the leader pays, nats: counts are those before the draw, so that the bet was made before it."""
    share = max((ahead + 0.5) / (ahead + behind + 1), 0.5)
    return math.log(2 * share) if leader_came else math.log(2 - 2 * share) if answer_came else 0.0


def _decision(answer: Hashable | None, counts: dict[Hashable, int], fortunes: dict[Hashable, float], unseen: float) -> Decision:
    ordered = dict(sorted(counts.items(), key=lambda item: -item[1]))
    return Decision(answer, sum(counts.values()), ordered, {a: math.exp(min(fortunes[a], 700.0)) for a in ordered}, math.exp(min(unseen, 700.0)))


def _edge(ruled_out: Callable[[np.ndarray], np.ndarray], inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Where between a point that is not ruled out and an end of [0, 1] ruling out begins, by bisection; the end itself where it is not ruled out."""
    inside, outside = np.where(ruled_out(outside), inside, outside), outside.copy()
    for _ in range(60):
        middle = (inside + outside) / 2
        out = ruled_out(middle)
        inside, outside = np.where(out, inside, middle), np.where(out, middle, outside)
    return outside


def _fortunes(x: Float[np.ndarray, " n"], means: Float[np.ndarray, " means"]) -> Float[np.ndarray, "n means"]:
    """Of one who bets that the mean is more than it is said to be, nats: the mixture over fractions of the most that may be staked."""
    stakes = FRACTIONS[:, None] / np.maximum(means, 1e-12)
    paid = np.log1p(stakes * (x[:, None, None] - means))  # [n, fractions, means]
    return np.logaddexp.reduce(np.cumsum(paid, axis=0), axis=1) - math.log(len(FRACTIONS))
