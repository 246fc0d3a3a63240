"""What strategies give: a posterior with its ledger, or a selection, which is none."""

import functools
import math
from dataclasses import replace
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float

from posterity.inference.budget import Ledger
from posterity.inference.population import normalise
from posterity.inference.posterior import Posterior
from posterity.inference.queries import Weighted

CHOICES = ("best", "weighted", "majority")


@struct.dataclass
class Inferred(Posterior):
    """A posterior, properly weighted, and what it cost."""

    ledger: Ledger | None = None

    __repr__ = Posterior.__repr__


@struct.dataclass
class Selection(Weighted):
    """Rollouts that a strategy found, weighted by how it chooses among them. It answers the queries of a `Posterior`, and is none.

    Errors are those of independent rollouts; where rollouts share ancestors they are too small.
    """

    values: Any  # a pytree with leading axis n
    log_weights: Float[Array, " n"]  # normalised, nats
    log_evidence: Float[Array, ""]  # NaN: not estimated
    scores: Float[Array, " n"]  # the last reward of each
    complete: Bool[Array, " n"]  # not left in the middle; others have no weight, unless all are
    ledger: Ledger
    strategy: str = struct.field(pytree_node=False)
    choices: dict[str, Any] = struct.field(default_factory=dict)  # none have names

    def __repr__(self) -> str:
        return f"Selection({self.strategy}, n={len(self)}, no posterior)"

    def choose(self, by: Literal["best", "weighted", "majority"]) -> Self:
        """The same rollouts chosen among in another way: the one of the best score (ties share), votes weighted by scores, or votes.

        Raises:
          ValueError: for another way.
        """
        if by not in CHOICES:
            raise ValueError(f"choose: by must be one of {', '.join(CHOICES)}, got {by!r}")
        return replace(self, log_weights=chosen(by, self.scores, self.complete))

    def _check_alive(self) -> None:
        """There always are weights; of an evidence nothing is known."""

    def _error(self, y: np.ndarray, mean: float) -> float:
        weights = self._host_weights()
        deviations = weights * (np.where(weights > 0, y, mean) - mean)
        return math.sqrt(float(deviations @ deviations))

    def _share_errors(self, weights: np.ndarray, which: np.ndarray, alive: np.ndarray) -> np.ndarray:
        share = np.bincount(which, weights=weights)
        inside = np.bincount(which, weights=weights**2)
        return np.sqrt(inside * (1 - 2 * share) + share**2 * (weights**2).sum())


@functools.partial(jax.jit, static_argnames="by")
def chosen(by: str, scores: Float[Array, " n"], complete: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Normalised log weights [n] by which rollouts are chosen among; -inf for those left in the middle, unless all were."""
    counted = complete | ~jnp.any(complete)
    if by == "best":
        best = jnp.max(jnp.where(counted, scores, -jnp.inf))
        return normalise(jnp.where(counted & (scores == best), 0.0, -jnp.inf))
    votes = jnp.where(counted, 0.0, -jnp.inf)
    weighted = jnp.where(counted, jnp.log(scores), -jnp.inf) if by == "weighted" else votes
    return normalise(jnp.where(jnp.any(weighted > -jnp.inf), weighted, votes))  # where all scores are zero, each has one vote
