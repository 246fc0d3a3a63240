"""Adaptive weighted rejection sampling: a token among those allowed, found by asking of few, with an unbiased estimate of their mass."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.models.lm.next_token import BLOCK, NextToken
from posterity.ppl.effects import draw, isolated, loop


class Drawn(NamedTuple):
    """A token that is properly weighted: a population of one, as `po.embed` takes it."""

    values: Int[Array, "1"]
    log_weights: Float[Array, "1"]  # 0
    log_evidence: Float[Array, ""]  # nats: the estimate of the mass that is allowed; -inf where nothing is


class Search(NamedTuple):
    """What has been asked so far. All masses are in nats."""

    left: Bool[Array, "blocks size"]  # tokens not drawn
    log_masses: Float[Array, " blocks"]  # of those
    draws: Int[Array, ""]
    token: Int[Array, ""]  # the first that was allowed
    log_allowed: Float[Array, ""]  # of the drawn tokens that are allowed
    estimates: Int[Array, ""]  # of the allowed mass, made so far
    log_sum: Float[Array, ""]  # of the estimates


def rejection(key: PRNGKeyArray, law: NextToken, allowed: Callable[[Array], Array], ask: int) -> Drawn:
    """A token by `law` among those that are allowed, and an unbiased estimate of their mass under it (Lipkin et al. 2025).

    Tokens are drawn without replacement until one is allowed: that one has exactly the law given the allowed ones, whatever was refused.
    Then `ask` more are drawn. Each gives an estimate: the mass of the allowed tokens drawn before it, and all that was left if it is
    allowed too (Raj 1956). Given everything before it its mean is the allowed mass, so the average may multiply the token's weight;
    counting 1 for the first draw that is allowed, or the share of draws that were, would be biased.

    Args:
      key: of all draws.
      law: of one token.
      allowed: `allowed(token)` to a truth value; asked of tokens one by one, on the device where it is JAX code.
      ask: estimates to be averaged, at least 1. Of a vocabulary that has been drawn up, the mass is known.

    >>> import jax, jax.numpy as jnp
    >>> law = NextToken(jnp.log(jnp.array([0.1, 0.2, 0.3, 0.25, 0.15])))
    >>> drawn = jax.vmap(lambda key: rejection(key, law, lambda token: token % 2 == 0, ask=2))(jax.random.split(jax.random.key(0), 4_000))
    >>> bool(abs(jnp.exp(drawn.log_evidence).mean() - 0.55) < 0.02)                              # 0, 2 and 4 have .55 together
    True
    """
    logits = jax.nn.log_softmax(jnp.asarray(law.logits))
    size = min(BLOCK, logits.shape[-1])
    rows = jnp.pad(logits, (0, -logits.shape[-1] % size), constant_values=-jnp.inf).reshape(-1, size)
    nothing = jnp.full((), -jnp.inf, rows.dtype)
    none, most_probable = jnp.zeros((), jnp.int32), jnp.argmax(logits).astype(jnp.int32)
    search = Search(rows > -jnp.inf, logsumexp(rows, axis=-1), none, most_probable, nothing, none, nothing)

    def again(search: Search) -> Search:
        block_key, place_key = jax.random.split(jax.random.fold_in(key, search.draws))
        block = draw(block_key, "block", NextToken(search.log_masses))
        row = jnp.where(search.left[block], rows[block], -jnp.inf)
        place = draw(place_key, "place", NextToken(row))
        token = (block * size + place).astype(jnp.int32)
        may, found = jnp.asarray(allowed(token), bool), search.log_allowed > -jnp.inf
        estimate = jnp.logaddexp(search.log_allowed, jnp.where(may, logsumexp(search.log_masses), nothing))
        return Search(
            search.left.at[block, place].set(False),
            search.log_masses.at[block].set(logsumexp(row.at[place].set(-jnp.inf))),  # summed anew: differences would cancel
            search.draws + 1,
            jnp.where(may & ~found, token, search.token),
            jnp.logaddexp(search.log_allowed, jnp.where(may, row[place], nothing)),
            search.estimates + found,
            jnp.logaddexp(search.log_sum, jnp.where(found, estimate, nothing)),
        )

    with isolated():
        going = lambda search: (search.estimates < ask) & jnp.any(search.log_masses > -jnp.inf)  # noqa: E731
        search = loop(going, again, search, limit=logits.shape[-1])
    known = search.log_allowed + jnp.log((ask - search.estimates).astype(rows.dtype))  # what was not asked, as nothing is left
    log_mass = jnp.logaddexp(search.log_sum, known) - jnp.log(jnp.asarray(ask, rows.dtype))
    return Drawn(search.token[None], jnp.zeros(1, rows.dtype), log_mass)
