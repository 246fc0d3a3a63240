"""A weighted population: what every particle algorithm carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int


@struct.dataclass
class Population:
    """Weighted particles. Properly weighted: exp(log_evidence) * sum_i exp(log_weights_i) f(x_i) has expectation ⟦p⟧(f).

    The weights are not normalised: the evidence estimate so far is exp(log_evidence + logsumexp(log_weights)).
    """

    particles: Any  # a pytree that only the program looks into
    log_weights: Float[Array, " n"]  # nats
    log_evidence: Float[Array, ""]  # nats, up to the last resampling
    eves: Int[Array, " n"]  # the index at step 0 of each particle's ancestor
    invalid: Int[Array, ""]  # how many potentials so far were NaN or +inf; they count as zero

    @property
    def size(self) -> int:
        return self.log_weights.shape[0]


def normalise(log_weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Log weights that sum to one in probability space; all -inf when every weight is zero."""
    # The largest goes first: beside a log weight of -1,000 float32 resolves only 6e-5, and the weights would not sum to one.
    shifted = log_weights - _finite_max(jnp.max(log_weights))
    return jnp.where(jnp.isneginf(log_weights), -jnp.inf, shifted - _finite_max(jax.scipy.special.logsumexp(shifted)))


def effective_sample_size(log_weights: Float[Array, " n"]) -> Float[Array, ""]:
    """(sum w)^2 / sum w^2 (Kong 1992), between 1 and n; 0 when every weight is zero."""
    return size_and_mass(log_weights)[0]


def size_and_mass(log_weights: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The effective sample size, and the log of the sum of the weights (nats; -inf when every weight is zero)."""
    largest = _finite_max(jnp.max(log_weights))
    # In memory, and its squares summed as a product: XLA on a CPU would take exponentials anew for each sum, at three times the cost of all this.
    w = lax.optimization_barrier(jnp.exp(log_weights - largest))
    total, squares = jnp.sum(w), jnp.vdot(w, w, precision=lax.Precision.HIGHEST)
    return total**2 / jnp.maximum(squares, jnp.finfo(w.dtype).tiny), largest + jnp.log(total)


def _finite_max(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)
