"""Weighted values as a law: an inference stands inside a program as an unbiased estimate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from posterity.ppl.effects import Atomic, in_model


class Atoms(dist.Distribution, Atomic):
    """Finitely many values, a pytree with leading axis k, drawn by their log weights [k] (nats, unnormalised).

    When all weights are zero, each is drawn alike: what happens then has weight zero anyway, but it is a law.
    """

    arg_constraints = {}  # noqa: RUF012 - NumPyro's own declaration
    support = constraints.dependent(is_discrete=True, event_dim=0)  # pyright: ignore[reportAssignmentType] - NumPyro's own way
    pytree_data_fields = ("values", "log_probs")

    def __init__(self, values: Any, log_weights: Array, *, validate_args: bool | None = None):
        log_weights = jnp.asarray(log_weights)
        self.values = jax.tree.map(jnp.asarray, values)
        self.log_probs = jax.nn.log_softmax(jnp.where(jnp.all(jnp.isneginf(log_weights)), 0.0, log_weights))
        leaves = jax.tree.leaves(self.values)
        event_shape = leaves[0].shape[1:] if len(leaves) == 1 else ()
        super().__init__(batch_shape=(), event_shape=event_shape, validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple = ()) -> Any:
        chosen = jax.random.categorical(key, self.log_probs, shape=sample_shape)
        return jax.tree.map(lambda x: x[chosen], self.values)

    def log_prob(self, value: Any) -> Array:
        return jax.scipy.special.logsumexp(jnp.where(self.equal(value), self.log_probs, -jnp.inf))

    def equal(self, value: Any) -> Array:
        """Which of the values are `value`, bool [k]."""
        same = jax.tree.map(lambda x, y: jnp.all((x == y).reshape(len(self.log_probs), -1), axis=1), self.values, value)
        return jnp.all(jnp.stack(jax.tree.leaves(same)), axis=0)

    def atoms(self) -> tuple[Any, Array]:
        return self.values, self.log_probs


def key() -> Array:
    """A random key, for an inference inside a program.

    Raises:
      ValueError: outside of programs.
    """
    found = numpyro.prng_key() if in_model() else None
    if found is None:
        raise ValueError("po.key() gives keys inside a program; elsewhere make one with jax.random.key(seed)")
    return found


def embed(name: str, posterior: Any) -> Any:
    """A choice called `name` from weighted values: one of them drawn by its weight, and the particle weighed by their evidence.

    As the values are properly weighted, E[Z_hat * sum_i W_i f(x_i)] = ⟦p⟧(f), so is this choice: it denotes ⟦p⟧ whatever the
    number of values ("push evidence" of Ścibior et al. 2018). With an inference that runs inside the program the program is
    nested SMC, or SMC^2; with a posterior found before, that posterior is its initial law.

    Args:
      name: the site's name; its evidence is a potential called `name/evidence`.
      posterior: a `Posterior`, a `Measure`, or anything else with `values` (a pytree with leading axis n), `log_weights` [n] and `log_evidence`.

    Raises:
      TypeError: when `posterior` has no such fields.
      ValueError: from the inference around it, when a potential inside was NaN or +inf.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(p):
    ...     heads = po.sample("heads", dist.Bernoulli(p))
    ...     po.factor("reward", 1.0 * heads)
    ...     return heads
    >>> @po.program
    ... def bag():
    ...     p = po.sample("p", dist.Beta(1.0, 1.0))
    ...     return po.embed("heads", po.smc(po.key(), coin.bind(p), n=4))
    >>> posterior = po.smc(jax.random.key(0), bag(), n=1_000)
    >>> bool(abs(posterior.expect() - 0.731) < 0.05)
    True
    """
    if not all(hasattr(posterior, field) for field in ("values", "log_weights", "log_evidence")):
        raise TypeError(f"embed({name!r}): posterior must have values, log_weights and log_evidence, as a Posterior has; got {type(posterior).__name__}")
    log_evidence = posterior.log_evidence + jax.scipy.special.logsumexp(posterior.log_weights)
    invalid = getattr(posterior, "invalid", 0)
    numpyro.factor(f"{name}/evidence", jnp.where(invalid > 0, jnp.nan, log_evidence))
    return numpyro.sample(name, Atoms(posterior.values, posterior.log_weights))
