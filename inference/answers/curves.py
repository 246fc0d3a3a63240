"""How accuracy grows with budget over many problems: intervals, differences, and how many times the budget one strategy needs of another's."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int


class Trials(NamedTuple):
    """How right a strategy was: of each problem, under each seed, at each budget.

    Seeds are repetitions of the strategy, independent from problem to problem. Two strategies are compared on the same problems in the same order.
    """

    budgets: Int[np.ndarray, " budgets"]  # rollouts, ascending
    right: Float[np.ndarray, "problems seeds budgets"]  # in [0, 1]

    @classmethod
    def of(cls, budgets: Int[ArrayLike, " budgets"], right: Float[ArrayLike, "problems seeds budgets"]) -> "Trials":
        """Trials that have been checked.

        Raises:
          ValueError: when the budgets do not ascend from at least 1, shapes do not fit, or `right` leaves [0, 1].
        """
        at, scored = np.asarray(budgets), np.asarray(right, float)
        if at.ndim != 1 or not at.size or at[0] < 1 or (np.diff(at) <= 0).any():
            raise ValueError(f"Trials: budgets must ascend from at least 1, got {at.tolist()}")
        if scored.ndim != 3 or scored.shape[2] != at.size or 0 in scored.shape:
            raise ValueError(f"Trials: right must have shape [problems, seeds, {at.size} budgets], got {scored.shape}")
        if not ((scored >= 0) & (scored <= 1)).all():
            raise ValueError("Trials: right must lie in [0, 1]")
        return cls(at, scored)


class Curve(NamedTuple):
    """A mean at each budget, with an interval at each."""

    budgets: Int[np.ndarray, " budgets"]
    mean: Float[np.ndarray, " budgets"]
    low: Float[np.ndarray, " budgets"]
    high: Float[np.ndarray, " budgets"]


class BudgetRatio(NamedTuple):
    """How many times the budget of `one` another strategy needs to be as accurate: above 1, `one` needs less."""

    ratio: float
    interval: tuple[float, float]
    accuracy: float  # at which the budgets are compared
    needed: tuple[float, float]  # rollouts, by one and by the other


class Calibration(NamedTuple):
    """What confidences were worth."""

    confidence: Float[np.ndarray, " bins"]  # mean of each bin; NaN where nothing fell into it
    accuracy: Float[np.ndarray, " bins"]
    share: Float[np.ndarray, " bins"]  # of all trials
    error: float  # expected calibration error: the mean over trials of |confidence - accuracy| of their bin
    interval: tuple[float, float]


def accuracy_curve(trials: Trials, *, level: float = 0.95, resamples: int = 1_000, seed: int = 0) -> Curve:
    """The mean accuracy at each budget, with intervals over problems and seeds.

    Problems are drawn again, each with all its seeds (Efron and Tibshirani 1993, chapter 8: the unit that is drawn is the one that is
    independent): the spread of a problem's mean already holds what its seeds add, and drawing these again would count it twice.

    Args:
      trials: of one strategy.
      level: of the intervals, at each budget by itself (percentiles).
      resamples: how often problems are drawn again.
      seed: of those draws; the same for all strategies, so that they meet the same problems.

    Raises:
      ValueError: for a level outside (0, 1), no resamples, or one problem alone.

    >>> curve = accuracy_curve(Trials.of([1, 2], [[[0.0, 1.0]], [[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 1.0]]]))
    >>> curve.mean.tolist(), curve.high.tolist()
    ([0.5, 1.0], [1.0, 1.0])
    """
    return _curve("accuracy_curve", trials.budgets, trials.right.mean(axis=1), level, resamples, seed)


def difference_curve(one: Trials, other: Trials, *, level: float = 0.95, resamples: int = 1_000, seed: int = 0) -> Curve:
    """How much more accurate `one` is than `other` on the same problems, at the budgets that both have; arguments as in `accuracy_curve`."""
    _check_paired("difference_curve", one, other)
    at = np.intersect1d(one.budgets, other.budgets)
    if not at.size:
        raise ValueError(f"difference_curve: no budget is in both {one.budgets.tolist()} and {other.budgets.tolist()}")
    means = [trials.right.mean(axis=1)[:, np.isin(trials.budgets, at)] for trials in (one, other)]
    return _curve("difference_curve", at, means[0] - means[1], level, resamples, seed)


def budget_ratio(one: Trials, other: Trials, *, accuracy: float | None = None, level: float = 0.95, resamples: int = 1_000, seed: int = 0) -> BudgetRatio:
    """How many times the budget of `one` the `other` needs for the same accuracy, with a paired bootstrap interval.

    A strategy reaches an accuracy at the smallest budget at which its mean is as high: between two budgets linear in the logarithm
    of the budget. A curve that falls again (as best-of-n does on a reward that can be hacked) counts with the best it had up to there.

    Args:
      one: its budget is the unit.
      other: on the same problems.
      accuracy: where to compare; by default the highest that both reach, found anew for every resample. Where one of them does not
        reach it, its budget is infinite.
      level, resamples, seed: as in `accuracy_curve`.

    Raises:
      ValueError: when the problems are not the same in number, or neither reaches the accuracy.

    >>> faster, slower = ([[[0.1, 0.5, 0.9]]] * 2, [[[0.1, 0.1, 0.5]]] * 2)
    >>> found = budget_ratio(Trials.of([1, 4, 16], faster), Trials.of([1, 4, 16], slower))
    >>> round(found.ratio, 6), found.accuracy
    (4.0, 0.5)
    """
    _check_paired("budget_ratio", one, other)
    drawn = _redrawn("budget_ratio", len(one.right), level, resamples, seed)
    counted = np.concatenate([np.ones((1, drawn.shape[1])) / drawn.shape[1], drawn])  # first the problems as they are
    reached = [np.maximum.accumulate(counted @ trials.right.mean(axis=1), axis=1) for trials in (one, other)]
    target = np.minimum(reached[0][:, -1], reached[1][:, -1]) if accuracy is None else np.full(len(counted), float(accuracy))
    needed = [_needed(trials.budgets, curves, target) for trials, curves in zip((one, other), reached, strict=True)]
    if np.isinf(needed[0][0]) and np.isinf(needed[1][0]):
        raise ValueError(f"budget_ratio: neither reaches an accuracy of {accuracy}: they get to {reached[0][0, -1]:.4g} and {reached[1][0, -1]:.4g}")
    ratios = needed[1] / np.where(np.isinf(needed[0]) & np.isinf(needed[1]), np.nan, needed[0])
    low, high = _quantiles(ratios[1:][~np.isnan(ratios[1:])], level)
    return BudgetRatio(float(ratios[0]), (low, high), float(target[0]), (float(needed[0][0]), float(needed[1][0])))


def calibration(
    confidence: Float[ArrayLike, "problems seeds"],
    right: Float[ArrayLike, "problems seeds"],
    *,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 1_000,
    seed: int = 0,
) -> Calibration:
    """How often answers of some confidence are right, in bins of equal width, with the expected calibration error and its interval over problems.

    Raises:
      ValueError: when shapes differ, no bins are asked for, or confidences leave [0, 1].

    Source: Guo et al. (2017), "On calibration of modern neural networks", equation 3.

    >>> import numpy as np
    >>> round(calibration(np.full((10, 1), 0.75), np.arange(10)[:, None] < 5).error, 6)
    0.25
    """
    sure, good = np.asarray(confidence, float), np.asarray(right, float)
    if sure.ndim != 2 or sure.shape != good.shape:
        raise ValueError(f"calibration: confidence and right must both be [problems, seeds], got {sure.shape} and {good.shape}")
    if bins < 1 or not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"calibration: bins must be at least 1 and confidences lie in [0, 1]; got {bins} and {sure.min()} to {sure.max()}")
    fell = np.minimum((sure * bins).astype(int), bins - 1)[..., None] == np.arange(bins)
    count, gap = fell.sum(axis=1), (fell * (sure - good)[..., None]).sum(axis=1)  # [problems, bins]
    total = fell.sum(axis=(0, 1))
    with np.errstate(invalid="ignore"):
        mean = lambda x: (fell * x[..., None]).sum(axis=(0, 1)) / total  # noqa: E731
        sure_of, right_of = mean(sure), mean(good)
    drawn = _redrawn("calibration", len(sure), level, resamples, seed)
    errors = np.abs(drawn @ gap).sum(axis=1) / (drawn @ count).sum(axis=1)
    return Calibration(sure_of, right_of, total / sure.size, float(np.abs(gap.sum(axis=0)).sum() / sure.size), _quantiles(errors, level))


def _curve(name: str, budgets: np.ndarray, means: np.ndarray, level: float, resamples: int, seed: int) -> Curve:
    """The mean over problems of `means` [problems, budgets], with percentile intervals."""
    drawn = _redrawn(name, len(means), level, resamples, seed) @ means
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Curve(budgets, means.mean(axis=0), low, high)


def _redrawn(name: str, problems: int, level: float, resamples: int, seed: int) -> Float[np.ndarray, "resamples problems"]:
    """The share that each problem has among as many drawn with replacement."""
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"{name}: level must lie between 0 and 1 and resamples be at least 1, got {level} and {resamples}")
    if problems < 2:
        raise ValueError(f"{name}: an interval over problems needs at least two of them, got {problems}")
    return np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=resamples) / problems


def _needed(budgets: np.ndarray, curves: Float[np.ndarray, "rows budgets"], target: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """The smallest budget at which each curve (none falls) reaches its target, linear in the logarithm between two; inf where it does not."""
    above = curves >= target[:, None] - 1e-12
    last = np.argmax(above, axis=1)
    first = np.maximum(last - 1, 0)
    rows, log_budgets = np.arange(len(curves)), np.log(budgets)
    rise = curves[rows, last] - curves[rows, first]
    share = np.where(rise > 0, (target - curves[rows, first]) / np.where(rise > 0, rise, 1.0), 1.0)
    between = np.exp(log_budgets[first] + np.clip(share, 0, 1) * (log_budgets[last] - log_budgets[first]))
    return np.where(above.any(axis=1), between, np.inf)


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """Order statistics and not interpolations: some values may be infinite."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def _check_paired(name: str, one: Trials, other: Trials) -> None:
    if len(one.right) != len(other.right):
        raise ValueError(f"{name}: both must have the same problems, got {len(one.right)} and {len(other.right)}")
