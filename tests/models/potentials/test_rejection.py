"""Drawing again until a token is allowed: over more than one block of a vocabulary, compiled, for many particles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterity.models.lm.next_token import NextToken
from posterity.models.potentials.rejection import rejection

LOGITS = 4.0 * np.random.default_rng(0).normal(size=300).astype(np.float32)
LOG_PROBS = LOGITS - np.logaddexp.reduce(LOGITS)


@functools.partial(jax.jit, static_argnums=(1, 2))
def drawn(allowed, ask, n):
    keys = jax.random.split(jax.random.key(0), n)
    return jax.vmap(lambda key: rejection(key, NextToken(jnp.asarray(LOGITS)), lambda token: allowed[token], ask))(keys)


def test_the_only_token_that_is_allowed_is_found_with_its_probability():
    rarest = int(np.argmin(LOG_PROBS))
    found = drawn(np.arange(300) == rarest, 2, 4)
    assert (found.values == rarest).all()
    np.testing.assert_allclose(found.log_evidence, LOG_PROBS[rarest], rtol=1e-5)


def test_where_nothing_is_allowed_the_mass_is_zero():
    assert np.isneginf(drawn(np.zeros(300, bool), 2, 4).log_evidence).all()


@pytest.mark.slow
def test_tokens_have_the_law_of_the_allowed_ones_and_more_asking_varies_less():
    allowed, n = np.arange(300) % 3 == 0, 4_000
    mass = np.exp(LOG_PROBS[allowed]).sum()
    once, often = (drawn(allowed, ask, n) for ask in (1, 4))
    few, many = np.exp(once.log_evidence), np.exp(often.log_evidence)
    for estimate in (few, many):
        assert abs(estimate.mean() - mass) < 5 * estimate.std() / n**0.5  # a false alarm in two million
    assert many.std() < 0.7 * few.std()
    counts = np.bincount(np.asarray(once.values).ravel(), minlength=300)
    law = np.where(allowed, np.exp(LOG_PROBS), 0.0) / mass
    assert counts[~allowed].sum() == 0
    frequent = law > 0.02
    assert (np.abs(counts / n - law)[frequent] < 5 * np.sqrt(law / n)[frequent]).all()  # a false alarm in two million each
