"""Are these numbers uniform on [0, 1]? A test of the whole distribution function, exact, and the band that it draws around it."""

import functools
import math

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln
from scipy.stats import binom

POINTS = 100  # at which a distribution function is looked at, at most


def grid_of(n: int) -> Float[np.ndarray, " k"]:
    """Where the distribution function of n numbers is looked at: equally spaced in (0, 1), no finer than n numbers can tell."""
    size = min(n + 1, POINTS)
    return np.arange(1, size) / size


def counted(u: Float[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """How many of the numbers lie at or below each point of `grid_of(n)`."""
    return np.searchsorted(np.sort(u), grid_of(len(u)), side="right")


def uniformity(u: Float[np.ndarray, " n"]) -> float:
    """The p-value of uniformity on [0, 1] of n independent numbers: how probable it is that their distribution function strays as far as it does.

    How far is the smallest binomial tail probability of its values at the points of a grid: the level of the narrowest simultaneous band
    that it leaves. Exact: the counts at the points are a Markov chain, which is summed over.

    Raises:
      ValueError: for no numbers, or numbers outside [0, 1].

    Source: Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation".

    >>> uniformity(np.linspace(0, 1, 100)) > 0.9, uniformity(np.linspace(0, 0.8, 100)) < 0.001
    (True, True)
    """
    u = np.asarray(u, float)
    if u.ndim != 1 or not u.size or not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"uniformity: u must be numbers in [0, 1], got shape {u.shape}")
    grid, counts = grid_of(len(u)), counted(u)
    tails = np.minimum(binom.cdf(counts, len(u), grid), binom.sf(counts - 1, len(u), grid))
    return leaving(len(u), 2 * min(float(tails.min()), 0.5) * (1 + 1e-9))


def band(n: int, level: float) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Bounds at the points of `grid_of(n)` within which the whole distribution function of n uniform numbers stays with probability at least `level`.

    >>> low, high = band(100, 0.95)
    >>> bool((low < grid_of(100)).all()), round(float((high - low).max()), 2)
    (True, 0.28)
    """
    low, high = _inside(n, level_of_points(n, level))
    return low / n, high / n


@functools.cache
def level_of_points(n: int, level: float) -> float:
    """The tail probability at each single point, both sides together, with which a band holds at all of them: by bisection."""
    outside, inside = math.log(1e-12), math.log(1 - level)  # a band that is left with probability 1 - level at one point is left more often
    for _ in range(30):
        middle = 0.5 * (outside + inside)
        outside, inside = (middle, inside) if leaving(n, math.exp(middle)) <= 1 - level else (outside, middle)
    return math.exp(outside)


def leaving(n: int, tail: float) -> float:
    """The probability that n uniform numbers have, at some point of the grid, a count in the binomial tails of probability `tail`, both together."""
    grid = grid_of(n)
    low, high = _inside(n, tail)
    before, mass, at = np.zeros(1, int), np.ones(1), 0.0
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    for point, least, most in zip(grid, low, high, strict=True):
        if most < least:
            return 1.0
        now, share = np.arange(least, most + 1), (point - at) / (1 - at)  # of those beyond the last point, how many fall before this one
        left, more = n - before[:, None], now - before[:, None]
        possible = (more >= 0) & (more <= left)
        taken = np.where(possible, more, 0)
        log_ways = log_factorial[left] - log_factorial[taken] - log_factorial[left - taken]
        chance = np.where(possible, np.exp(log_ways + taken * math.log(share) + (left - taken) * math.log1p(-share)), 0.0)
        before, mass, at = now, mass @ chance, point
    return float(np.clip(1.0 - mass.sum(), 0.0, 1.0))


def _inside(n: int, tail: float) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """The least and the most counts at each point that lie in neither tail: P(C <= c) and P(C >= c) are above tail / 2."""
    grid, half = grid_of(n), tail / 2
    low = binom.ppf(half, n, grid).astype(int)  # the smallest with P(C <= c) >= half
    low += binom.cdf(low, n, grid) <= half
    high = n - binom.ppf(half, n, 1 - grid).astype(int)
    high -= binom.sf(high - 1, n, grid) <= half
    return low, high
