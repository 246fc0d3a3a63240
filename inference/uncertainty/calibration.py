"""Whether confidences are as often right as they say, and maps that make them so.

A map is fitted on answers whose truth is known, and called on the confidences of others:

>>> import numpy as np
>>> too_sure = np.full(200, 0.9)
>>> right = np.arange(200) < 150
>>> round(float(temperature(too_sure, right)(0.9)), 3)
0.75
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit, log_softmax, logit

from posterity.inference.uncertainty.arguments import confidences

EDGE = 1e-9  # log odds of confidences closer to 0 or 1 than this are those of this


class Reliability(NamedTuple):
    """Confidences beside what came of them, bin by bin (only those into which something fell)."""

    confidence: Float[np.ndarray, " bins"]  # mean of each bin
    accuracy: Float[np.ndarray, " bins"]
    share: Float[np.ndarray, " bins"]  # of all answers
    error: float  # expected calibration error (ECE)
    largest: float  # maximum calibration error (MCE)


class Brier(NamedTuple):
    """The mean squared error of confidences: score = miscalibration - discrimination + uncertainty, exactly, none negative."""

    score: float
    miscalibration: float  # what calibrating would gain
    discrimination: float  # by how much calibrated confidences beat the base rate
    uncertainty: float  # of the base rate itself


class Temperature(NamedTuple):
    """Divides log odds, or a law's log probabilities, by one number: above 1 it makes less sure; inf knows nothing."""

    temperature: float

    def __call__(self, confidence: Float[ArrayLike, "*n"]) -> Float[np.ndarray, "*n"]:
        return expit(_log_odds(confidence) / self.temperature)

    def log_probs(self, log_probs: Float[ArrayLike, "*n k"]) -> Float[np.ndarray, "*n k"]:
        """The calibrated law, nats."""
        return log_softmax(np.asarray(log_probs, float) / self.temperature, axis=-1)


class Platt(NamedTuple):
    """Log odds times a slope plus an intercept."""

    slope: float
    intercept: float

    def __call__(self, confidence: Float[ArrayLike, "*n"]) -> Float[np.ndarray, "*n"]:
        return expit(self.slope * _log_odds(confidence) + self.intercept)


class Isotonic(NamedTuple):
    """A map that never falls: straight between the points, constant beyond them."""

    confidence: Float[np.ndarray, " points"]
    accuracy: Float[np.ndarray, " points"]

    def __call__(self, confidence: Float[ArrayLike, "*n"]) -> Float[np.ndarray, "*n"]:
        return np.interp(np.asarray(confidence, float), self.confidence, self.accuracy)


def reliability(confidence: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"], *, bins: int = 10, equal: str = "width") -> Reliability:
    """The reliability diagram of confidences, with the expected and the maximum calibration error.

    Args:
      confidence: [n] in [0, 1].
      right: [n] whether the answers were right.
      bins: how many.
      equal: "width": of [0, 1] cut in equal parts, each with its lower end; "mass": as many answers in each (to one). Answers with the same
        confidence then count with their mean outcome, so that the order in which they are given changes nothing.

    Raises:
      ValueError: for arrays that do not pair up, confidences outside [0, 1], or bad options.

    Source: Guo et al. (2017), equation 3; Nixon et al. (2019) for equal mass.

    >>> round(reliability([0.75] * 10, [True] * 5 + [False] * 5).error, 6)
    0.25
    """
    sure, good = confidences("reliability", confidence, right)
    if bins < 1 or equal not in ("width", "mass"):
        raise ValueError(f"reliability: bins must be at least 1 and equal 'width' or 'mass', got {bins} and {equal!r}")
    if equal == "width":
        which = np.minimum((sure * bins).astype(int), bins - 1)
    else:
        order = np.argsort(sure, kind="stable")
        sure, good = sure[order], _tied(sure, good)[order]
        which = np.arange(len(sure)) * min(bins, len(sure)) // len(sure)
    counts = np.bincount(which, minlength=bins)
    kept = counts > 0
    mean = lambda x: np.bincount(which, weights=x, minlength=bins)[kept] / counts[kept]  # noqa: E731
    said, came, share = mean(sure), mean(good), counts[kept] / len(sure)
    gaps = np.abs(said - came)
    return Reliability(said, came, share, float(share @ gaps), float(gaps.max()))


def brier(confidence: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"]) -> Brier:
    """The Brier score in three parts, without bins: what it is calibrated means by isotonic regression.

    Raises:
      ValueError: for arrays that do not pair up, or confidences outside [0, 1].

    Source: Dimitriadis, Gneiting and Jordan (2021), "Stable reliability diagrams for probabilistic classifiers", equation 3.

    >>> tuple(round(part, 6) for part in brier([0.9, 0.9, 0.1, 0.1], [True, True, True, False]))
    (0.21, 0.085, 0.0625, 0.1875)
    """
    sure, good = confidences("brier", confidence, right)
    score = float(np.mean((sure - good) ** 2))
    calibrated = float(np.mean((isotonic(sure, good)(sure) - good) ** 2))
    base = float(good.mean() * (1 - good.mean()))
    return Brier(score, max(score - calibrated, 0.0), max(base - calibrated, 0.0), base)


def temperature(confidence: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"]) -> Temperature:
    """The temperature of log odds under which the outcomes are most probable; errors as in `temperature_of_laws`.

    >>> round(temperature([0.9] * 4, [True, True, True, False]).temperature, 6)
    2.0
    """
    sure, good = confidences("temperature", confidence, right)
    odds = _log_odds(sure)
    return _temperature("temperature", np.stack([np.zeros_like(odds), odds], axis=1), good.astype(int))


def temperature_of_laws(log_probs: Float[ArrayLike, "n k"], truth: Int[ArrayLike, " n"]) -> Temperature:
    """The temperature under which the truths are most probable: one number for all laws, which changes no law's order. The optimum is unique.

    Args:
      log_probs: [n, k] of k possible answers to n questions (or logits), nats, finite.
      truth: [n] which of the k is right.

    Returns:
      Temperature(inf) where the laws are no better than uniform ones.

    Raises:
      ValueError: where every truth has the most probability, so that no temperature is too low; for arrays that do not pair up or are not finite.

    Source: Guo et al. (2017), "On calibration of modern neural networks", section 4.2.

    >>> law = np.log([[0.8, 0.1, 0.1]] * 4)
    >>> found = temperature_of_laws(law, [0, 0, 1, 2])
    >>> np.exp(found.log_probs(law[0])).round(6).tolist()
    [0.5, 0.25, 0.25]
    """
    laws, label = np.asarray(log_probs, float), np.asarray(truth)
    if laws.ndim != 2 or 0 in laws.shape or label.shape != laws.shape[:1] or not np.isfinite(laws).all():
        raise ValueError(f"temperature_of_laws: log_probs must be finite, [n, k], and truth [n]; got shapes {laws.shape} and {label.shape}")
    if label.dtype.kind not in "iu" or (label < 0).any() or (label >= laws.shape[1]).any():
        raise ValueError(f"temperature_of_laws: truth must be whole numbers from 0 to {laws.shape[1] - 1}, got {label.min()} to {label.max()}")
    return _temperature("temperature_of_laws", laws, label)


def platt(confidence: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"]) -> Platt:
    """Logistic regression of the outcomes on log odds, towards (rights + 1) / (rights + 2) and 1 / (wrongs + 2) in place of 1 and 0.

    These targets keep it finite when confidences tell right from wrong without fault, and when all answers are right.

    Raises:
      ValueError: for arrays that do not pair up, confidences outside [0, 1] or all the same (there is nothing to fit a slope to).

    Source: Platt (1999), "Probabilistic outputs for support vector machines".

    >>> fitted = platt([0.9, 0.8, 0.7, 0.3, 0.2], [True, True, False, True, False])
    >>> bool(fitted(0.9) > fitted(0.2))
    True
    """
    sure, good = confidences("platt", confidence, right)
    odds = _log_odds(sure)
    if np.ptp(odds) == 0:
        raise ValueError(f"platt: all confidences are {sure[0]:g}, which leaves the slope open; `isotonic` gives their mean outcome")
    rights, wrongs = good.sum(), (1 - good).sum()
    target = np.where(good > 0, (rights + 1) / (rights + 2), 1 / (wrongs + 2))
    centre, scale = odds.mean(), odds.std()  # the fit is well conditioned in these units
    inputs = np.stack([(odds - centre) / scale, np.ones_like(odds)], axis=1)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = inputs @ theta
        return float(np.mean(np.logaddexp(0, z) - target * z)), inputs.T @ (expit(z) - target) / len(z)

    slope, height = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return Platt(float(slope / scale), float(height - slope * centre / scale))


def isotonic(confidence: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"]) -> Isotonic:
    """The map that never falls with the smallest squared error (pool adjacent violators); answers of the same confidence get the same.

    Raises:
      ValueError: for arrays that do not pair up, or confidences outside [0, 1].

    Source: Zadrozny and Elkan (2002), "Transforming classifier scores into accurate multiclass probability estimates".

    >>> isotonic([0.2, 0.4, 0.6, 0.8], [False, True, False, True])([0.2, 0.5, 0.8]).tolist()
    [0.0, 0.5, 1.0]
    """
    sure, good = confidences("isotonic", confidence, right)
    points, which, counts = np.unique(sure, return_inverse=True, return_counts=True)
    return Isotonic(points, isotonic_regression(np.bincount(which, weights=good) / counts, weights=counts).x)


def _temperature(name: str, laws: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"]) -> Temperature:
    relative = laws - laws.max(axis=1, keepdims=True)
    of_truth = relative[np.arange(len(truth)), truth]

    def slope(inverse: float) -> float:
        """Of the mean negative log likelihood, which is convex in the inverse temperature."""
        law = np.exp(log_softmax(inverse * relative, axis=1))
        return float(((law * relative).sum(axis=1) - of_truth).mean())

    if slope(0.0) >= 0:
        return Temperature(float("inf"))
    if (of_truth == 0).all():
        raise ValueError(f"{name}: every truth has the most probability, so the lower the temperature the better; there must be an answer that was wrong")
    high = 1.0
    while slope(high) < 0:
        high *= 2
    return Temperature(1 / float(brentq(slope, 0.0, high, xtol=1e-14)))  # pyright: ignore[reportArgumentType] - a number: no report is asked for


def _tied(sure: np.ndarray, good: np.ndarray) -> np.ndarray:
    """The mean outcome of all with the same confidence."""
    _, which, counts = np.unique(sure, return_inverse=True, return_counts=True)
    return (np.bincount(which, weights=good) / counts)[which]


def _log_odds(confidence: ArrayLike) -> np.ndarray:
    return logit(np.clip(np.asarray(confidence, float), EDGE, 1 - EDGE))
