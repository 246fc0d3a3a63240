"""Rules that choose among answers by votes, scores or risk."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import ArrayLike, Bool, Float


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a rule makes of many answers: a score for each, the best first. No posterior: scores are the rule's own."""

    scores: dict[Hashable, float]

    @property
    def winners(self) -> list[Hashable]:
        """The answers with the best score: more than one where they tie (to rounding)."""
        top = max(self.scores.values())
        return [answer for answer, score in self.scores.items() if math.isclose(score, top, rel_tol=1e-9, abs_tol=1e-300)]

    @property
    def answer(self) -> Hashable:
        """The answer with the best score; of those with the very same score the one that was met first."""
        return self.winners[0]

    @property
    def confidence(self) -> float:
        """The share of all score that the answer has (for scores that are not negative): what calibration is measured on."""
        total = math.fsum(self.scores.values())
        return self.scores[self.answer] / total if total > 0 else math.nan

    def top(self, k: int) -> list[Hashable]:
        """The k answers with the best scores (all, where there are fewer), those met first where they tie."""
        if k < 1:
            raise ValueError(f"top: k must be at least 1, got {k}")
        return sorted(self.scores, key=lambda answer: -self.scores[answer])[:k]

    def accuracy(self, right: Callable[[Hashable], bool]) -> float:
        """The chance to be right when ties are broken by a fair draw."""
        winners = self.winners
        return sum(bool(right(answer)) for answer in winners) / len(winners)


def majority(answers: Sequence[Hashable], *, weights: Float[ArrayLike, " n"] | None = None) -> Choice:
    """Votes: the score of an answer is the share of all weight that its votes have. Self-consistency, or weighted best-of-n with rewards for weights.

    Args:
      answers: what each of n rollouts answered; see `merged` for answers that are written in several ways.
      weights: of each vote, none negative; all alike by default.

    Raises:
      ValueError: for no answers, or weights that are negative, not finite, all zero, or not one an answer.

    Source: Wang et al. (2023), "Self-consistency improves chain of thought reasoning"; Li et al. (2023) for weighted votes.

    >>> majority(["a", "b", "b"], weights=[3.0, 1.0, 1.0]).scores
    {'a': 0.6, 'b': 0.4}
    """
    counted = _weights("majority", answers, weights)
    return _choice(zip(answers, counted / math.fsum(counted), strict=True))


def best(answers: Sequence[Hashable], scores: Float[ArrayLike, " n"]) -> Choice:
    """Best-of-n: the score of an answer is the largest that one of its rollouts has. -inf is allowed: a rollout that must not win.

    >>> best(["a", "b", "b"], [0.2, 0.1, 0.9]).answer
    'b'
    """
    return _choice(zip(answers, _scores("best", answers, scores), strict=True), max)


def best_of_majority(answers: Sequence[Hashable], scores: Float[ArrayLike, " n"], *, share: float) -> Choice:
    """Best-of-majority: among answers with at least this share of the votes, by score (the mean over an answer's rollouts).

    Where no answer has that share, those with the most votes count as having it. The score of others is -inf. A share of
    0 is best-of-n by answer; a share of 3 / (4 C), where the right answer is given with probability 1/C, does not get worse
    as n grows.

    Source: Di et al. (2026), "Best-of-Majority", algorithm 1.

    >>> best_of_majority(["a"] * 5 + ["b"] * 4 + ["c"], [0.5] * 5 + [0.7] * 4 + [0.9], share=0.3).answer
    'b'
    """
    if not 0 <= share <= 1:
        raise ValueError(f"best_of_majority: share must lie in [0, 1], got {share}")
    given, votes = _scores("best_of_majority", answers, scores), majority(answers).scores
    enough = min(share, max(votes.values()))
    means = {answer: float(np.mean([s for a, s in zip(answers, given, strict=True) if a == answer])) for answer in votes}
    return _choice((answer, means[answer] if vote >= enough * (1 - 1e-12) else -math.inf) for answer, vote in votes.items())


def minimum_bayes_risk(answers: Sequence[Hashable], utility: Callable[[Hashable, Hashable], float], *, weights: Float[ArrayLike, " n"] | None = None) -> Choice:
    """The answer of the largest expected utility `utility(answer, truth)` when the truth is drawn from the answers themselves.

    With `utility` 1 for equal answers and 0 else it is `majority`. Calls it once for each pair of distinct answers.

    Source: Kumar and Byrne (2004), "Minimum Bayes-risk decoding".

    >>> minimum_bayes_risk([1, 2, 3, 30], lambda a, b: -abs(a - b)).winners
    [2, 3]
    """
    votes = majority(answers, weights=weights).scores
    return _choice((answer, math.fsum(vote * float(utility(answer, truth)) for truth, vote in votes.items())) for answer in votes)


def merged(answers: Sequence[Hashable], same: Callable[[Hashable, Hashable], bool]) -> list[Hashable]:
    """The answers, each replaced by the first that it is the same as: for answers that can be written in several ways.

    `same` is asked of distinct answers, and taken to be symmetric; what is the same as the same is the same, though `same` may not see it.

    >>> from fractions import Fraction
    >>> merged(["1/2", "3", "0.5"], lambda a, b: Fraction(a) == Fraction(b))
    ['1/2', '3', '1/2']
    """
    distinct = list(dict.fromkeys(answers))
    root = {answer: answer for answer in distinct}

    def find(answer: Hashable) -> Hashable:
        while root[answer] != answer:
            answer = root[answer]
        return answer

    for i, later in enumerate(distinct):
        for earlier in distinct[:i]:
            first, second = find(earlier), find(later)
            if first != second and same(earlier, later):
                first, second = sorted((first, second), key=distinct.index)
                root[second] = first
    return [find(answer) for answer in answers]


def _choice(scored: Iterable[tuple[Hashable, float]], together: Callable[[float, float], float] = lambda a, b: a + b) -> Choice:
    """The scores of each answer taken together, the best first."""
    scores: dict[Hashable, float] = {}
    for answer, score in scored:
        scores[answer] = together(scores[answer], float(score)) if answer in scores else float(score)
    return Choice(dict(sorted(scores.items(), key=lambda item: -item[1])))


def _scores(name: str, answers: Sequence[Hashable], scores: Float[ArrayLike, " n"]) -> Float[np.ndarray, " n"]:
    array = np.asarray(scores, float)
    if not len(answers):
        raise ValueError(f"{name}: there are no answers to choose from")
    if array.shape != (len(answers),):
        raise ValueError(f"{name}: there must be one score for each of {len(answers)} answers, got an array of shape {array.shape}")
    bad: Bool[np.ndarray, " n"] = np.isnan(array) | (array == np.inf)
    if bad.any():
        raise ValueError(f"{name}: scores must be numbers below inf, got {array[bad][0]} for answer {int(np.argmax(bad))}")
    return array


def _weights(name: str, answers: Sequence[Hashable], weights: Float[ArrayLike, " n"] | None) -> Float[np.ndarray, " n"]:
    array = _scores(name, answers, np.ones(len(answers)) if weights is None else weights)
    if (array < 0).any() or not array.any():
        raise ValueError(f"{name}: weights must not be negative, and not all be zero; got {array.tolist()[:8]}")
    return array
