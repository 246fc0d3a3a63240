"""Whether weights and chains can be trusted: tails of importance weights, agreement of chains, and how many draws they are worth."""

import math

import numpy as np
from jaxtyping import ArrayLike, Float, Int
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from scipy.special import ndtri
from scipy.stats import rankdata

from posterity.inference.queries import Weighted
from posterity.inference.uncertainty.arguments import vector


def pareto_k(log_weights: Float[ArrayLike, " n"] | Weighted) -> float:
    """The shape of the generalised Pareto law that the largest importance weights follow: 1/k is how many moments the weights have.

    Below 0.5 averages have a finite variance; up to 0.7 they are of use with so many draws as one has; from 1 on the mean itself does not exist.
    For fewer draws the limit is lower: min(1 - 1 / log10(n), 0.7).

    Args:
      log_weights: [n] of independent draws, nats, normalised or not, before any resampling; -inf is a draw without weight. A posterior stands for
        its own, which are those since it was last resampled.

    Returns:
      inf when fewer than five weights stand out, so that nothing is known; -inf when all weights are equal.

    Raises:
      ValueError: for NaN, inf, or weights that are all zero.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling"; the fit is that of Zhang and Stephens (2009),
    drawn towards 1/2 as if by ten more weights.

    >>> pareto_k(-2 * np.log(np.arange(1, 1_001))) > 1  # weights in proportion to 1 / rank^2
    True
    """
    given = vector("pareto_k", "log_weights", log_weights.log_weights if isinstance(log_weights, Weighted) else log_weights)
    if (np.isnan(given) | (given == np.inf)).any() or (given == -np.inf).all():
        raise ValueError("pareto_k: log_weights must be below inf (nats), not NaN and not all -inf")
    if np.ptp(given) == 0:
        return -math.inf
    n = len(given)
    ordered = np.sort(given - given.max())
    size = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    cut = max(ordered[-size - 1], math.log(np.finfo(float).tiny)) if size < n else -math.inf
    excess = np.exp(ordered[ordered > cut]) - math.exp(cut)
    return _pareto_shape(excess) if len(excess) > 4 else math.inf


def rank_rhat(draws: Float[ArrayLike, "chains draws"]) -> float:
    """Split R-hat of ranks, the larger of that for where chains lie and that for how wide they are: from about 1.01 on they do not agree.

    Args:
      draws: [chains, draws] of one number, finite.

    Raises:
      ValueError: for fewer than four draws a chain, draws that are not finite, or all equal (there is nothing to compare).

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and localization", section 4.

    >>> rank_rhat([[1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0]]) > 1.5
    True
    """
    halves = _halves("rank_rhat", draws)
    folded = np.abs(halves - np.median(halves))
    return max(float(gelman_rubin(_normal_ranks(x))) for x in (halves, folded) if np.ptp(x) > 0)


def nested_rhat(draws: Float[ArrayLike, "chains draws"], superchains: Int[ArrayLike, " chains"]) -> float:
    """R-hat for many short chains, those of one superchain started at one point: does where a superchain began still matter? One draw a chain will do.

    The larger of that of ranks and that of folded ranks.

    Args:
      draws: [chains, draws] of one number, finite.
      superchains: [chains] to which each belongs; two at least, each with as many chains.

    Raises:
      ValueError: for draws that are not finite or all equal, fewer than two superchains, or ones of different size.

    Source: Margossian et al. (2024), "Nested R-hat", equation 8.

    >>> nested_rhat([[0.0], [1.0], [10.0], [11.0]], [0, 0, 1, 1]) > 2
    True
    """
    x = _finite("nested_rhat", draws)
    names, of, sizes = np.unique(np.asarray(superchains), return_inverse=True, return_counts=True)
    if of.size != len(x) or len(names) < 2 or np.ptp(sizes) > 0 or x.shape[1] * sizes[0] < 2:
        raise ValueError(f"nested_rhat: superchains must name, for each of {len(x)} chains, one of two or more, all of one size; got sizes {sizes.tolist()}")

    def of_ranks(y: np.ndarray) -> float:
        grouped = _normal_ranks(y)[np.argsort(of, kind="stable")].reshape(len(names), sizes[0], -1)  # [superchains, chains, draws]
        means = grouped.mean(axis=2)
        between = means.var(axis=1, ddof=1) if sizes[0] > 1 else 0.0
        within = grouped.var(axis=2, ddof=1).mean(axis=1) if x.shape[1] > 1 else 0.0
        return math.sqrt(1 + means.mean(axis=1).var(ddof=1) / np.mean(between + within))

    return max(of_ranks(y) for y in (x, np.abs(x - np.median(x))) if np.ptp(y) > 0)


def ess_bulk(draws: Float[ArrayLike, "chains draws"]) -> float:
    """How many independent draws the chains are worth for where the bulk of the posterior lies (of normalised ranks, chains split in two).

    Arguments, errors and source as in `rank_rhat`.

    >>> ess_bulk(np.random.default_rng(0).normal(size=(4, 100))) > 200
    True
    """
    return _ess(_normal_ranks(_halves("ess_bulk", draws)))


def ess_tail(draws: Float[ArrayLike, "chains draws"]) -> float:
    """The smaller number of independent draws that the chains are worth for the 5% and for the 95% quantile.

    Arguments, errors and source as in `rank_rhat`. A quantile at the largest value there is (of discrete draws) is left out.

    >>> ess_tail(np.random.default_rng(0).normal(size=(4, 100))) > 100
    True
    """
    halves = _halves("ess_tail", draws)
    below = [(halves <= quantile).astype(float) for quantile in np.quantile(halves, [0.05, 0.95])]
    return min((_ess(tail) for tail in below if np.ptp(tail) > 0), default=float(halves.size))


def _ess(x: Float[np.ndarray, "chains draws"]) -> float:
    """Draws that alternate may be worth more than independent ones: up to log10 of their number times as many, as in the source."""
    most = x.size * math.log10(x.size)
    found = float(effective_sample_size(x))
    return found if 0 < found < most else most  # the estimate passes through infinity to negative numbers


def _pareto_shape(excess: Float[np.ndarray, " m"]) -> float:
    """Of ascending positive excesses: the posterior mean of one parameter on a grid, which gives the other."""
    m = len(excess)
    size = 30 + int(math.sqrt(m))
    grid = 1 / excess[-1] + (1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))) / (3 * excess[int(m / 4 + 0.5) - 1])
    shape = np.log1p(-grid[:, None] * excess).mean(axis=1)
    log_likelihood = m * (np.log(-grid / shape) - shape - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    best = weights @ grid / weights.sum()
    return float((m * np.log1p(-best * excess).mean() + 5) / (m + 10))


def _finite(name: str, draws: ArrayLike) -> Float[np.ndarray, "chains draws"]:
    x = np.asarray(draws, float)
    if x.ndim != 2 or 0 in x.shape or not np.isfinite(x).all():
        raise ValueError(f"{name}: draws must be finite numbers of shape [chains, draws], got shape {x.shape}")
    if np.ptp(x) == 0:
        raise ValueError(f"{name}: all draws are {x.flat[0]:g}; there is nothing to compare")
    return x


def _halves(name: str, draws: ArrayLike) -> Float[np.ndarray, "halves half"]:
    x = _finite(name, draws)
    half = x.shape[1] // 2
    if half < 2:
        raise ValueError(f"{name}: there must be at least 4 draws a chain, got {x.shape[1]}")
    return np.concatenate([x[:, :half], x[:, -half:]])


def _normal_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks (of ties the mean) as quantiles of a normal law (Blom 1958)."""
    return ndtri((rankdata(x).reshape(x.shape) - 0.375) / (x.size + 0.25))
