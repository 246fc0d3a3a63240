"""What a choice of finite support can be."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from posterity.ppl.effects import Atomic


def atoms(msg: Any) -> tuple[Callable[[Any], Any], Array]:
    """What a choice can be: `values(digits [draws])`, and log probabilities [size, draws] (nats); a batch is as many draws.

    Raises:
      ValueError: when it has no finite support, or one that is not known while tracing.
    """
    name, shape = msg["name"], msg["kwargs"].get("sample_shape")
    law = msg["fn"].expand_by(shape) if shape else msg["fn"]
    if isinstance(law, Atomic):
        values, log_probs = law.atoms()
        return lambda digits: jax.tree.map(lambda x: x[digits[0]], values), log_probs[:, None]
    while isinstance(law, dist.Independent):
        law = law.base_dist  # an event of independent parts is as many draws
    draws = math.prod(law.batch_shape)
    log_table = _log_table(law)
    if log_table is not None:
        return lambda digits: digits.reshape(law.batch_shape).astype(int), log_table.reshape(draws, -1).T
    if not law.has_enumerate_support:
        raise ValueError(f"enumeration: site {name!r} has no finite support: {type(law).__name__}")
    try:
        support = law.enumerate_support()
    except NotImplementedError as error:
        raise ValueError(f"enumeration: the support of site {name!r} is not known while tracing: {error}") from error
    rows = support.reshape(len(support), draws, *law.event_shape)
    return lambda digits: rows[digits, jnp.arange(draws)].reshape(law.batch_shape + law.event_shape), jnp.asarray(law.log_prob(support)).reshape(-1, draws)


def _log_table(law: dist.Distribution) -> Array | None:
    """Log probabilities [..., size] of 0, 1, .., size - 1 for the laws that most choices have: NumPyro's `log_prob` would look each one up."""
    if isinstance(law, dist.BernoulliProbs):
        heads = jnp.asarray(law.probs)
        law = dist.CategoricalProbs(jnp.stack([1 - heads, heads], axis=-1))
    if isinstance(law, dist.CategoricalProbs):
        return jnp.asarray(law.logits)
    if isinstance(law, dist.CategoricalLogits):
        return jax.nn.log_softmax(law.logits)
    if isinstance(law, dist.BernoulliLogits):
        odds = jnp.asarray(law.logits)
        return jax.nn.log_sigmoid(jnp.stack([-odds, odds], axis=-1))
    return None
