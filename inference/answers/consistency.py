"""Answers weighed by the probabilities that the model gives to the reasoning behind them."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy.optimize import minimize

from posterity.inference.answers.choice import Choice, _choice, _scores


class Weibulls(NamedTuple):
    """A mixture of two Weibull laws: share Weibull(shape[0], scale[0]) + (1 - share) Weibull(shape[1], scale[1])."""

    share: float
    shape: tuple[float, float]
    scale: tuple[float, float]

    @property
    def means(self) -> tuple[float, float]:
        first, second = (scale * math.gamma(1 + 1 / shape) for shape, scale in zip(self.shape, self.scale, strict=True))
        return first, second

    def log_densities(self, x: Float[ArrayLike, " n"]) -> Float[np.ndarray, "n 2"]:
        """Of both parts, their shares included, at x > 0, nats."""
        (shape1, shape2), (scale1, scale2) = self.shape, self.scale
        return _log_parts(np.array([self.share, shape1, scale1, shape2, scale2]), np.asarray(x, float))

    @classmethod
    def fit(cls, x: Float[ArrayLike, " n"]) -> "Weibulls":
        """By maximum likelihood, with a share in [.2, .8] and shapes and scales of at least .01 (a local optimum: as published).

        Raises:
          ValueError: for fewer than two numbers, or numbers that are not positive.
        """
        data = np.asarray(x, float)
        if data.ndim != 1 or data.size < 2 or not (np.isfinite(data) & (data > 0)).all():
            raise ValueError(f"Weibulls.fit: x must be at least two positive numbers, got {data.tolist()[:8] if data.ndim else data.item()}")
        unit = data.max()  # the bound of the scales is that of probabilities: fitted in units of the largest
        loss = lambda theta: -np.mean(np.logaddexp(*_log_parts(theta, data / unit).T))  # noqa: E731
        found = minimize(loss, [0.5, 1.0, 1.0, 1.5, 2.0], method="L-BFGS-B", bounds=[(0.2, 0.8)] + [(0.01, None)] * 4)
        share, shape1, scale1, shape2, scale2 = map(float, found.x)
        return cls(share, (shape1, shape2), (scale1 * unit, scale2 * unit))


def pruned(probabilities: Float[ArrayLike, " n"]) -> Bool[np.ndarray, " n"]:
    """Which paths reasoning pruning keeps, [n]: all but those that more likely belong to the lower of two Weibull laws and lie below the mean.

    Args:
      probabilities: of the paths, positive. The paper's text says the joint p(path), its code the geometric mean over tokens; both may be given.

    Source: Zhou et al. (2025), "Bridging internal probability and self-consistency", section 4.

    >>> import numpy as np
    >>> pruned(np.array([0.9, 0.8, 0.85, 0.01, 0.02, 0.015])).tolist()
    [True, True, True, False, False, False]
    """
    p = np.asarray(probabilities, float)
    if p.size < 2 or np.ptp(p) == 0:
        return np.ones(p.shape, bool)  # nothing to tell apart
    law = Weibulls.fit(p)
    parts = law.log_densities(p)
    high = int(np.argmax(law.means))
    return (parts[:, high] >= parts[:, 1 - high]) | (p >= p.mean())


def rpc(answers: Sequence[Hashable], paths: Sequence[Hashable], log_probs: Float[ArrayLike, " n"], *, prune: bool = True) -> Choice:
    """Reasoning-pruning perplexity consistency: an answer's score is the summed probability of the *distinct* paths that lead to it.

    A path that was drawn twice counts once, since its probability is known and not estimated: so where paths are few the
    error of an answer's probability falls like a power of the number of draws, and that of votes like one over it.

    Args:
      answers: what each of n paths answers.
      paths: the paths themselves (their texts, say), by which they are told apart.
      log_probs: [n] of the paths, nats: the joint log p(path), for the law above; or the mean over tokens, as in the published code.
      prune: leave out improbable paths first (`pruned`); False is perplexity consistency alone.

    Raises:
      ValueError: for no answers, one path with two probabilities, lengths that differ, or log_probs above 0 or NaN.

    Source: Zhou et al. (2025), "Bridging internal probability and self-consistency for effective reasoning".

    >>> import numpy as np
    >>> rpc(["1", "1", "2"], ["a", "a", "b"], np.log([0.2, 0.2, 0.3]), prune=False).answer
    '2'
    """
    given = _scores("rpc", answers, log_probs)
    if (given > 1e-6).any():
        raise ValueError(f"rpc: log_probs must not be above 0, got {given.max()}")
    if len(paths) != len(answers):
        raise ValueError(f"rpc: there must be one path for each of {len(answers)} answers, got {len(paths)}")
    known: dict[Hashable, tuple[Hashable, float]] = {}
    for answer, path, log_prob in zip(answers, paths, given, strict=True):
        before = known.setdefault(path, (answer, log_prob))
        if before[0] != answer or not math.isclose(before[1], log_prob, rel_tol=1e-3, abs_tol=1e-3):
            raise ValueError(f"rpc: path {path!r} was given twice, with {before} and {(answer, log_prob)}; one path has one answer and one probability")
    distinct, log_p = [answer for answer, _ in known.values()], np.array([log_prob for _, log_prob in known.values()])
    alive = log_p > -math.inf
    if not alive.any():
        raise ValueError("rpc: every path has probability zero")
    # Long paths have joint probabilities below any float: only their ratios matter, and those below 1e-300 of the largest for nothing.
    p = np.exp(np.maximum(log_p - log_p.max(), -690.0))
    keep = alive.copy()
    if prune:
        keep[alive] = pruned(p[alive])
    scale = math.exp(log_p.max()) or 1.0
    scored = dict.fromkeys(distinct, 0.0)
    return _choice([*scored.items(), *((answer, scale * x) for answer, x, kept in zip(distinct, p, keep, strict=True) if kept)])


def _log_parts(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    share, shape1, scale1, shape2, scale2 = theta

    def one(log_share: float, shape: float, scale: float) -> np.ndarray:
        log_ratio = np.log(x) - math.log(scale)
        return log_share + math.log(shape) - math.log(scale) + (shape - 1) * log_ratio - np.exp(np.minimum(shape * log_ratio, 700.0))

    return np.stack([one(math.log(share), shape1, scale1), one(math.log1p(-share), shape2, scale2)], axis=-1)
