"""How often one of k tries is right, and the law by which that grows."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int
from scipy.optimize import least_squares, minimize
from scipy.special import betaln, gammaln


def pass_at_k(n: Int[ArrayLike, "*problems"], right: Int[ArrayLike, "*problems"], k: int) -> Float[np.ndarray, "*problems"]:
    """The chance that one of k tries, drawn without replacement from n of which `right` are right, is right: 1 - C(n - right, k) / C(n, k).

    Unbiased for 1 - (1 - p)^k when the n tries are independent, each right with probability p.

    Raises:
      ValueError: unless 1 <= k <= n and 0 <= right <= n.

    Source: Chen et al. (2021), "Evaluating large language models trained on code", equation 1.

    >>> round(float(pass_at_k(10, 3, 5)), 6)
    0.916667
    """
    tries, good = np.broadcast_arrays(np.asarray(n), np.asarray(right))
    if k < 1 or (k > tries).any():
        raise ValueError(f"pass_at_k: k must lie between 1 and the number of tries, {tries.min()}; got {k}")
    if ((good < 0) | (good > tries)).any():
        raise ValueError(f"pass_at_k: right must lie between 0 and the number of tries; got {good.ravel()[:8].tolist()} of {tries.ravel()[:8].tolist()}")
    bad = tries - good
    log_none = gammaln(bad + 1) - gammaln(np.maximum(bad - k, 0) + 1) - gammaln(tries + 1) + gammaln(tries - k + 1)
    return np.where(bad < k, 1.0, -np.expm1(log_none))


def coverage(n: int, right: Int[ArrayLike, " problems"], ks: Int[ArrayLike, " ks"]) -> Float[np.ndarray, " ks"]:
    """The mean over problems of `pass_at_k` at each k.

    >>> coverage(4, [4, 0, 1], [1, 4]).round(4).tolist()
    [0.4167, 0.6667]
    """
    return np.array([pass_at_k(n, right, int(k)).mean() for k in np.asarray(ks)])


class CoverageLaw(NamedTuple):
    """coverage(k) = exp(scale k^exponent), with scale < 0 and exponent < 0 (Brown et al. 2024, "Large language monkeys", equation 3)."""

    scale: float
    exponent: float
    interval: tuple[float, float]  # of the exponent, over problems

    def __call__(self, k: Float[ArrayLike, " ks"]) -> Float[np.ndarray, " ks"]:
        """The coverage at k tries."""
        return np.exp(self.scale * np.asarray(k, float) ** self.exponent)

    @classmethod
    def fit(cls, n: int, right: Int[ArrayLike, " problems"], *, ks: Int[ArrayLike, " ks"] | None = None, level: float = 0.95, seed: int = 0) -> "CoverageLaw":
        """By least squares on log coverage at `ks` (powers of two up to n, by default); the interval from 500 resamples of the problems.

        Raises:
          ValueError: when no problem was solved or all were at the smallest k, so that there is no curve; or a level outside (0, 1).
        """
        counts = _counts("CoverageLaw.fit", n, right)
        if not 0 < level < 1:
            raise ValueError(f"CoverageLaw.fit: level must lie between 0 and 1, got {level}")
        at = 2 ** np.arange(int(math.log2(n)) + 1) if ks is None else np.asarray(ks)
        each = np.stack([pass_at_k(n, counts, int(k)) for k in at])  # [ks, problems]
        if each[0].mean() in (0.0, 1.0):
            raise ValueError(f"CoverageLaw.fit: {'no' if each[0].mean() == 0 else 'every'} problem is solved at k={at[0]}: there is no curve to fit")
        scale, exponent = _fitted(at, each.mean(axis=1))
        draws = np.random.default_rng(seed).integers(counts.size, size=(500, counts.size))
        resampled = [_fitted(at, curve) for curve in (each[:, rows].mean(axis=1) for rows in draws) if 0 < curve[0] < 1]
        low, high = np.quantile([e for _, e in resampled], [(1 - level) / 2, (1 + level) / 2])
        return cls(scale, exponent, (float(low), float(high)))


class BetaLaw(NamedTuple):
    """Problems whose chance of a right try is Beta(a, b): then 1 - coverage(k) = B(a, b + k) / B(a, b), which falls like k^-a.

    That is why coverage over many problems follows a power law though that of each is exponential (Schaeffer et al. 2025).
    """

    a: float
    b: float

    def __call__(self, k: Float[ArrayLike, " ks"]) -> Float[np.ndarray, " ks"]:
        """The coverage at k tries, to any k: also beyond the tries that were made."""
        return -np.expm1(betaln(self.a, self.b + np.asarray(k, float)) - betaln(self.a, self.b))

    @classmethod
    def fit(cls, n: int, right: Int[ArrayLike, " problems"]) -> "BetaLaw":
        """By maximum likelihood of the beta-binomial law of the counts."""
        counts = _counts("BetaLaw.fit", n, right)
        loss = lambda logs: -np.mean(betaln(np.exp(logs[0]) + counts, np.exp(logs[1]) + n - counts) - betaln(*np.exp(logs)))  # noqa: E731
        found = minimize(loss, [0.0, 0.0], method="L-BFGS-B", bounds=[(-12.0, 12.0)] * 2)
        a, b = np.exp(found.x)
        return cls(float(a), float(b))


def _fitted(ks: np.ndarray, curve: np.ndarray) -> tuple[float, float]:
    log_curve, log_k = np.log(np.minimum(curve, 1 - 1e-12)), np.log(ks)
    slope, start = np.polyfit(log_k, np.log(-log_curve), 1)  # a line where the law is exact: a good place to start
    found = least_squares(lambda theta: -np.exp(theta[0] + theta[1] * log_k) - log_curve, [start, slope])
    return -math.exp(found.x[0]), float(found.x[1])


def _counts(name: str, n: int, right: Int[ArrayLike, " problems"]) -> np.ndarray:
    counts = np.asarray(right)
    if counts.ndim != 1 or counts.size < 2 or ((counts < 0) | (counts > n)).any():
        raise ValueError(f"{name}: right must be counts from 0 to n={n} of at least two problems, got {counts.ravel()[:8].tolist()}")
    return counts
