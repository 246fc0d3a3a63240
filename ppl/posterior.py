"""A posterior estimated by weighted particles."""

import math
from typing import Any

import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.ppl.lineage import Lineage
from posterity.ppl.population import effective_sample_size
from posterity.ppl.queries import Answer, Estimate, Weighted, plain

__all__ = ["Answer", "Estimate", "Posterior", "plain"]


@struct.dataclass
class Posterior(Weighted):
    """Weighted values approximating a posterior, with its evidence. A pytree: it may be returned from jit.

    Errors come from one run: the larger of the importance-sampling error sqrt(sum W_i^2 (f_i - mean)^2) and the same sum
    over families that share an ancestor at time 0 (Chan and Lai 2013; Lee and Whiteley 2018), which counts what
    resampling correlates. When few families are left both are too small; repeat with other keys then.
    """

    values: Any  # the program's results, a pytree with leading axis n
    log_weights: Float[Array, " n"]  # normalised, nats; all -inf when the evidence is zero
    log_evidence: Float[Array, ""]  # nats; -inf when no particle survived
    eves: Int[Array, " n"]  # each particle's ancestor at time 0
    invalid: Int[Array, ""]  # how many potentials of the last step were NaN or +inf; then the run stopped there and log_evidence is -inf
    steps: Int[Array, ""]  # steps made; fewer than the program's when all particles were done, or none had any weight left
    ess_history: Float[Array, " length"]  # effective sample size when each step began; NaN for steps not made
    resampled: Bool[Array, " length"]  # before which steps
    ancestors: Int[Array, "length n"] | None  # int32, or None when the run kept no history
    choices: dict[str, Any] = struct.field(default_factory=dict)  # [n, ...] by name: what the program's initial law chose
    acceptance: Float[Array, " length"] | None = None  # share of moves accepted before each step, NaN for steps not made; None when the algorithm moves nothing

    def __repr__(self) -> str:
        return f"Posterior(n={len(self)}, log_evidence={float(self.log_evidence):.4g}, ess={float(self.ess):.1f}, steps={int(self.steps)})"

    @property
    def ess(self) -> Float[Array, ""]:
        """Effective sample size of the final weights, between 1 and n; 0 when the evidence is zero."""
        return effective_sample_size(self.log_weights)

    @property
    def lineage(self) -> Lineage:
        """The genealogy of the steps made.

        Raises:
          ValueError: when the run was told to keep none (`history=False`).
        """
        if self.ancestors is None:
            raise ValueError("this run kept no ancestors; call the inference with history=True")
        steps = int(self.steps)
        return Lineage(self.ancestors[:steps], self.resampled[:steps])

    def _error(self, y: np.ndarray, mean: float) -> float:
        weights = self._host_weights()
        deviations = weights * (np.where(weights > 0, y, mean) - mean)
        families = np.bincount(np.asarray(self.eves), weights=deviations, minlength=len(self))
        return math.sqrt(max(float(deviations @ deviations), float(families @ families)))

    def _share_errors(self, weights: np.ndarray, which: np.ndarray, alive: np.ndarray) -> np.ndarray:
        eves = np.asarray(self.eves)[alive]
        share = np.bincount(which, weights=weights)
        squares = np.bincount(which, weights=weights**2)
        independent = squares * (1 - 2 * share) + share**2 * squares.sum()
        pairs, pair = np.unique(np.stack([which, eves]), axis=1, return_inverse=True)
        in_family = np.bincount(pair.reshape(-1), weights=weights)
        family = np.bincount(eves, weights=weights)
        cross = np.bincount(pairs[0], weights=in_family * (in_family - 2 * share[pairs[0]] * family[pairs[1]]))
        grouped = cross + share**2 * (family**2).sum()
        return np.sqrt(np.maximum(np.maximum(independent, grouped), 0.0))

    def _no_posterior(self) -> str:
        return f"the evidence is zero: no particle of {len(self)} survived the potentials of step {int(self.steps)}, so there is no posterior to query"
