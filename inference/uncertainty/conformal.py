"""Sets of answers that hold the right one as often as promised, whatever the model and its probabilities are worth.

The promise: when the questions with known answers and the next one are exchangeable, the set for the next holds its right answer
with probability at least `level`, over all of them together. It is no promise about a single question, nor about the sets of one
calibration: that coverage has a law of its own, `Conformal.coverage`.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.special import gammaln

from posterity.inference.queries import Estimate
from posterity.inference.uncertainty.arguments import open_level, same_lengths, vector

Probabilities = Mapping[Hashable, float | Estimate]  # as `Posterior.answers()` gives them


class AnswerSet(NamedTuple):
    """The answers that are not ruled out. When `everything` holds, nothing is: also answers that nobody thought of belong to it."""

    answers: tuple[Hashable, ...]  # most probable first
    everything: bool

    def __contains__(self, answer: object) -> bool:
        return self.everything or answer in self.answers


class Coverage(NamedTuple):
    """The law of the share of right answers that the sets of one calibration hold, without ties: Beta(k, n + 1 - k)."""

    mean: float
    sd: float


class Conformal(NamedTuple):
    """A threshold found on questions with known answers."""

    threshold: float  # answers with a score up to it belong to the set; inf: too few questions for the level, or too many truths that nobody proposed
    level: float
    questions: int
    score: str

    def set(self, probabilities: Probabilities) -> AnswerSet:
        """The answers to one more question, from their probabilities, that are not ruled out."""
        law = _law("Conformal.set", probabilities)
        kept = [answer for answer in law if SCORES[self.score](law, answer) <= self.threshold + 1e-12]  # a hair more keeps the promise, and ties together
        return AnswerSet(tuple(kept), self.threshold == math.inf)

    @property
    def coverage(self) -> Coverage:
        """How often sets made with this threshold hold the right answer, as it varies from calibration to calibration (Vovk 2012)."""
        n, k = self.questions, _rank(self.questions, self.level)
        return Coverage(k / (n + 1), math.sqrt(k * (n + 1 - k) / ((n + 1) ** 2 * (n + 2)))) if k <= n else Coverage(1.0, 0.0)


def conformal_quantile(scores: Float[ArrayLike, " n"], level: float = 0.9) -> float:
    """The ceil((n + 1) level)-th smallest of n scores, which one more exchangeable score does not exceed with probability at least `level`.

    It is inf when that rank is beyond n: with fewer than level / (1 - level) scores nothing finite keeps the promise.

    Raises:
      ValueError: for no scores, NaN, or a level outside (0, 1).

    Source: Vovk, Gammerman and Shafer (2005); Papadopoulos et al. (2002) for the split form.

    >>> conformal_quantile(range(1, 20), 0.9), conformal_quantile([1, 2, 3], 0.9)
    (18.0, inf)
    """
    given = vector("conformal_quantile", "scores", np.asarray(scores, float))
    if np.isnan(given).any():
        raise ValueError("conformal_quantile: scores must not be NaN")
    k = _rank(len(given), open_level("conformal_quantile", level))
    return float(np.sort(given)[k - 1]) if k <= len(given) else math.inf


def conformal(questions: Sequence[Probabilities], truths: Sequence[Hashable], *, level: float = 0.9, score: str = "probability") -> Conformal:
    """Split-conformal answer sets: the threshold on n questions with known answers, for sets on others.

    A right answer that was never proposed has the worst score there is. When that happens often enough, sets for the level are
    everything there could be (`AnswerSet.everything`), which is the truth: no set of proposed answers keeps the promise.

    Args:
      questions: of each, the probability of every answer that was proposed, such as `posterior.answers()`.
      truths: the right answers.
      level: the probability with which a set is to hold the right answer.
      score: "probability": one minus the answer's probability: smallest sets on average (Sadinle, Lei and Wasserman 2019).
        "cumulative": the probability of all answers at least as probable: sets grow with how hard the question is (Romano, Sesia
        and Candès 2020, without their random step, so that more than `level` is covered).

    Raises:
      ValueError: for lists that do not pair up, probabilities that are negative or sum to more than one, a level outside (0, 1), another score.

    >>> sure, torn = {"a": 0.9, "b": 0.1}, {"a": 0.6, "b": 0.4}
    >>> sets = conformal([sure] * 6 + [torn] * 3, ["a"] * 6 + ["a", "a", "b"], level=0.8)
    >>> sets.set(sure).answers, sets.set(torn).answers, sets.coverage.mean
    (('a',), ('a',), 0.8)
    """
    same_lengths("conformal", questions=questions, truths=truths)
    if score not in SCORES:
        raise ValueError(f"conformal: score must be one of {', '.join(SCORES)}, got {score!r}")
    laws = [_law("conformal", question) for question in questions]
    threshold = conformal_quantile(np.array([SCORES[score](law, truth) for law, truth in zip(laws, truths, strict=True)]), level)
    return Conformal(threshold, level, len(laws), score)


def batch_rank(calibration: int, batch: int, place: int, level: float = 0.9) -> int:
    """Among a batch of scores, the `place`-th smallest does not exceed the calibration score of this rank with probability at least `level`.

    Returns:
      The smallest such rank k: compare with the k-th smallest of the calibration scores; `calibration` + 1 means inf.

    Raises:
      ValueError: for no scores, a place outside 1..batch, or a level outside (0, 1).

    Source: Lee, Tchetgen Tchetgen and Dobriban (2024), "Batch predictive inference"; the rank has a negative hypergeometric law.

    >>> batch_rank(19, 1, 1, 0.9), batch_rank(20, 5, 3, 0.9)
    (18, 17)
    """
    level = open_level("batch_rank", level)
    if calibration < 1 or not 1 <= place <= batch:
        raise ValueError(f"batch_rank: calibration must be at least 1 and place lie in 1..batch, got {calibration} and {place} of {batch}")
    return int(np.searchsorted(np.cumsum(rank_law(calibration, batch, place)), level - 1e-12)) + 1


def rank_law(calibration: int, batch: int, place: int) -> Float[np.ndarray, " ranks"]:
    """The probability that the `place`-th smallest of a batch lies just below the k-th smallest calibration score, for k = 1, .., calibration + 1."""
    n, m = calibration, batch
    k = np.arange(1, n + 2)
    return np.exp(_log_choose(k + place - 2, place - 1) + _log_choose(n + m - k - place + 1, m - place) - _log_choose(n + m, m))


def _rank(n: int, level: float) -> int:
    return math.ceil((n + 1) * level - 1e-9)  # (n + 1) level may be a hair above a whole number by rounding


def _law(name: str, probabilities: Probabilities) -> dict[Hashable, float]:
    law = {answer: float(p.value if isinstance(p, Estimate) else p) for answer, p in probabilities.items()}
    if not all(p >= 0 for p in law.values()) or math.fsum(law.values()) > 1 + 1e-6:
        raise ValueError(f"{name}: the probabilities of a question's answers must not be negative, and sum to at most 1; got {list(law.values())[:8]}")
    return dict(sorted(law.items(), key=lambda item: -item[1]))


def _improbability(law: Mapping[Hashable, float], answer: Hashable) -> float:
    return 1.0 - law[answer] if law.get(answer, 0.0) > 0 else math.inf


def _cumulative(law: Mapping[Hashable, float], answer: Hashable) -> float:
    return math.fsum(p for p in law.values() if p >= law[answer] - 1e-12) if law.get(answer, 0.0) > 0 else math.inf


def _log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    return gammaln(np.add(n, 1)) - gammaln(np.add(k, 1)) - gammaln(np.subtract(n, k) + 1)


SCORES: dict[str, Callable[[Mapping[Hashable, float], Hashable], float]] = {"probability": _improbability, "cumulative": _cumulative}
