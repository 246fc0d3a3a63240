"""How well a confidence tells right answers from wrong ones: answering only what one is sure of, and how much better that is than chance."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from posterity.inference.uncertainty.arguments import open_level, outcomes, vector


class RiskCoverage(NamedTuple):
    """The mean loss of what is answered, when the share `coverage` that one is surest of is answered."""

    coverage: Float[np.ndarray, " n"]  # 1/n, .., 1
    risk: Float[np.ndarray, " n"]  # where confidences tie, the mean over all orders
    threshold: Float[np.ndarray, " n"]  # the confidence of the last that is answered
    area: float  # AURC, the mean of `risk`
    oracle: float  # the same when sorted by the loss itself
    random: float  # and when not sorted at all: the mean loss

    @property
    def excess(self) -> float:
        """E-AURC: the area above the oracle's."""
        return self.area - self.oracle

    @property
    def rejection_ratio(self) -> float:
        """PRR: 1 for the oracle's order, 0 for none, negative for a worse one; NaN when all losses are alike, so that no order is better."""
        return (self.random - self.area) / (self.random - self.oracle) if self.random - self.oracle > 1e-12 else float("nan")


class Detection(NamedTuple):
    """The probability that a right answer has more confidence than a wrong one (AUROC), with its bootstrap interval."""

    auroc: float  # ties count as half
    interval: tuple[float, float]


def risk_coverage(confidence: Float[ArrayLike, " n"], loss: Float[ArrayLike, " n"]) -> RiskCoverage:
    """The risk-coverage curve of a confidence, with its area (AURC).

    Args:
      confidence: [n] any numbers, the larger the surer; of an uncertainty give the negative. -inf and inf are allowed.
      loss: [n] of the answers: 1 for a wrong one and 0 for a right one, or any finite loss.

    Raises:
      ValueError: for arrays that do not pair up, NaN, or infinite losses.

    Source: El-Yaniv and Wiener (2010); Geifman, Uziel and El-Yaniv (2019), "Bias-reduced uncertainty estimation" (E-AURC, here with the
    oracle's area for n answers and not its limit); Malinin et al. (2017) for the rejection ratio, with the exact mean over random orders.

    >>> found = risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 1])
    >>> found.risk.round(3).tolist(), found.excess, found.rejection_ratio
    ([0.0, 0.0, 0.333, 0.5], 0.0, 1.0)
    """
    sure, losses = _paired("risk_coverage", confidence, "loss", loss)
    if not np.isfinite(losses).all():
        raise ValueError(f"risk_coverage: loss must be finite, got {losses[~np.isfinite(losses)][0]}")
    count = np.arange(1, len(sure) + 1)
    order = np.argsort(-sure, kind="stable")
    _, tied, sizes = np.unique(-sure[order], return_inverse=True, return_counts=True)
    risk = np.cumsum((np.bincount(tied, weights=losses[order]) / sizes)[tied]) / count
    oracle = np.cumsum(np.sort(losses)) / count
    return RiskCoverage(count / len(sure), risk, sure[order], float(risk.mean()), float(oracle.mean()), float(losses.mean()))


def error_detection(
    confidence: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"], *, level: float = 0.95, resamples: int = 1_000, seed: int = 0
) -> Detection:
    """The area under the ROC curve of a confidence as a detector of right answers, with an interval over answers drawn again (percentiles).

    Args:
      confidence: [n] any numbers, the larger the surer; of an uncertainty give the negative.
      right: [n] whether the answers were right.
      level: of the interval.
      resamples: how often the answers are drawn again, with replacement. Those with only right or only wrong answers do not count.
      seed: of these draws: with the same seed two confidences meet the same answers.

    Raises:
      ValueError: for arrays that do not pair up, NaN, answers that are all right or all wrong, a level outside (0, 1), or no resamples.

    Source: Mann and Whitney (1947); Efron and Tibshirani (1993), chapter 13.

    >>> error_detection([0.9, 0.8, 0.8, 0.1], [True, True, False, False]).auroc
    0.875
    """
    name = "error_detection"
    sure, _ = _paired(name, confidence, "right", np.asarray(right, float))
    good = outcomes(name, right, len(sure))
    open_level(name, level)
    if resamples < 1:
        raise ValueError(f"{name}: resamples must be at least 1, got {resamples}")
    if good.all() or not good.any():
        raise ValueError(f"{name}: there must be right and wrong answers to tell apart, all {len(good)} are {'right' if good.all() else 'wrong'}")
    order = np.argsort(sure, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(np.unique(sure, return_inverse=True)[1][order]) > 0])
    drawn = np.random.default_rng(seed).multinomial(len(sure), np.full(len(sure), 1 / len(sure)), size=resamples)
    counts = np.concatenate([np.ones((1, len(sure))), drawn])[:, order]  # first the answers as they are
    rights, wrongs = (np.add.reduceat(counts * of, starts, axis=1) for of in (good[order], 1 - good[order]))
    below = np.cumsum(wrongs, axis=1) - wrongs / 2
    pairs = rights.sum(axis=1) * wrongs.sum(axis=1)
    areas = (rights * below).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(areas[1:], [(1 - level) / 2, (1 + level) / 2]) if len(areas) > 1 else (0.0, 1.0)
    return Detection(float(areas[0]), (float(low), float(high)))


def _paired(name: str, confidence: ArrayLike, argument: str, other: ArrayLike) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    sure = vector(name, "confidence", confidence)
    paired = vector(name, argument, other, sure.size)
    if np.isnan(sure).any() or np.isnan(paired).any():
        raise ValueError(f"{name}: confidence and {argument} must not be NaN; answers without either must be left out")
    return sure, paired
