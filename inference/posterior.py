"""A posterior estimated by weighted particles."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.inference.lineage import Lineage
from posterity.inference.population import effective_sample_size
from posterity.inference.queries import Weighted


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
    generations: Any = None  # all particles of all times with their weights (`inference.drive.Generations`); None unless the run kept its full history

    def __repr__(self) -> str:
        log_evidence = f"{float(self.log_evidence):.4g} ± {float(self.log_evidence_error):.2g}"
        return f"Posterior(n={len(self)}, log_evidence={log_evidence}, ess={float(self.ess):.1f}, steps={int(self.steps)})"

    @property
    def ess(self) -> Float[Array, ""]:
        """Effective sample size of the final weights, between 1 and n; 0 when the evidence is zero."""
        return effective_sample_size(self.log_weights)

    @property
    def log_evidence_error(self) -> Float[Array, ""]:
        """Standard error of log_evidence, nats, from this one run; inf when one family is left, or no weight: nothing is known then.

        The root of `evidence_variance()`, whatever the scheme: right for systematic, stratified and SSP resampling, too large for
        multinomial. With few families left it is itself uncertain, and mostly too small: compare runs with other keys then.

        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
        >>> @po.program
        ... def walk(ys):
        ...     def step(x, y):
        ...         x = po.sample("x", dist.Normal(x, 1.0))
        ...         po.observe("y", dist.Normal(x, 0.5), y)
        ...         return x
        ...     return po.scan(step, 0.0, ys)
        >>> posterior = po.smc(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), n=1_000)
        >>> round(float(posterior.log_evidence_error), 2)
        0.08
        """
        known = (jnp.sum(self._families > 0) > 1) & (self.log_evidence > -jnp.inf)
        return jnp.where(known, jnp.sqrt(self.evidence_variance()), jnp.inf)

    def evidence_variance(self, *, multinomial: bool = False) -> Float[Array, ""]:
        """Relative variance of exp(log_evidence), estimated from the weight that each family (one ancestor at time 0) has at the end.

        Law: E[exp(2 log_evidence) evidence_variance(multinomial=True)] = Var(exp(log_evidence)) for every n > 1 and every threshold,
        when the resampling was multinomial; as it is unbiased it may be negative. Multinomial resampling lets families drift
        apart even when all weights are equal, by 1/n a time, which is taken off. Schemes of low variance do not, so by default nothing
        is taken off: then the law holds exactly where nothing was resampled, and otherwise the estimate is close, never negative.

        Args:
          multinomial: whether the run resampled so (`resampling="multinomial"`).

        Returns:
          [], no unit; inf for one particle.

        Source: Lee and Whiteley (2018), "Variance estimation in the particle filter"; Chan and Lai (2013); for adaptive resampling, Du and Guyader (2021).
        """
        n = len(self)
        if n == 1:
            return jnp.array(jnp.inf)
        drifts = jnp.sum(self.resampled) if multinomial else 0
        together = jnp.minimum(jnp.sum(self._families**2), 1.0)
        return -jnp.expm1(-(1 + drifts) * math.log1p(-1 / n) + jnp.log1p(-together))

    @property
    def _families(self) -> Float[Array, " n"]:
        """The weight of each particle's descendants."""
        return jnp.zeros_like(self.log_weights).at[self.eves].add(jnp.exp(self.log_weights))

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
        share = np.bincount(which, weights=weights)

        def squares(families: np.ndarray) -> np.ndarray:
            """Of each answer, the sum over families of (their weight in it - its share * their weight)^2."""
            (answers, of), pair = np.unique(np.stack([which, families]), axis=1, return_inverse=True)
            inside, family = np.bincount(pair.reshape(-1), weights=weights), np.bincount(families, weights=weights)
            return np.bincount(answers, weights=inside * (inside - 2 * share[answers] * family[of])) + share**2 * (family**2).sum()

        return np.sqrt(np.maximum(np.maximum(squares(np.arange(len(which))), squares(np.asarray(self.eves)[alive])), 0.0))

    def _no_posterior(self) -> str:
        return f"the evidence is zero: no particle of {len(self)} survived the potentials of step {int(self.steps)}, so there is no posterior to query"
