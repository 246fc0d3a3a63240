"""What variational methods give: draws of another law than the posterior, which says so, and from a guide a posterior by weighing them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float

from posterity.inference.posterior import Posterior
from posterity.inference.queries import Weighted
from posterity.inference.uncertainty.diagnostics import pareto_k


@struct.dataclass
class Approximation(Weighted):
    """Equally weighted values that lie as a posterior's would. Answers the queries of a `Posterior`, and is none: not properly weighted.

    How far off the law is that they lie by, nothing here says. Errors are those of independent draws of that law.
    """

    values: Any  # a pytree with leading axis n
    log_weights: Float[Array, " n"]  # all -log n, nats
    log_evidence: Float[Array, ""]  # NaN: not estimated
    choices: dict[str, Any]  # [n, ...] by name
    method: str = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method}, n={len(self)}, no posterior)"

    def _check_alive(self) -> None:
        """There always are weights; of an evidence nothing is known."""

    def _error(self, y: np.ndarray, mean: float) -> float:
        deviations = self._host_weights() * (y - mean)
        return math.sqrt(float(deviations @ deviations))

    def _share_errors(self, weights: np.ndarray, which: np.ndarray, alive: np.ndarray) -> np.ndarray:
        share = np.bincount(which, weights=weights)
        return np.sqrt(share * (1 - share) / len(self))


def equal(n: int) -> dict[str, Any]:
    """The weights of an approximation of n values."""
    return {"log_weights": jnp.full(n, -math.log(n)), "log_evidence": jnp.array(jnp.nan)}


@struct.dataclass
class ImportanceWeighted(Posterior):
    """A posterior by importance sampling from a guide: properly weighted, whatever the guide is."""

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, pareto_k={self.pareto_k:.2f})"

    @property
    def pareto_k(self) -> float:
        """The shape of the tail of its weights: above 0.7 the errors told are too small (`po.uncertainty.pareto_k`)."""
        return pareto_k(self.log_weights)
