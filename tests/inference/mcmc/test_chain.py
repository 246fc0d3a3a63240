"""What a chain says of its draws: errors that know of autocorrelation, and draws that count for nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.inference.mcmc.chain import Chain


def a_chain(values, allowed=None):
    n = len(values)
    allowed = np.ones(n, bool) if allowed is None else allowed
    log_weights = jnp.where(allowed, -np.log(allowed.sum()), -jnp.inf)
    return Chain(jnp.asarray(values), log_weights, jnp.asarray(jnp.nan), jnp.ones(n, bool), jnp.zeros((), int))


def autoregressive(seed, n=10_000, keep=0.8):
    """A stationary chain of mean 0 and variance 1 with autocorrelation `keep` at lag one."""
    noise = np.random.default_rng(seed).normal(size=n) * np.sqrt(1 - keep**2)
    x = [np.random.default_rng(seed + 10_000).normal()]
    for e in noise[1:]:
        x.append(keep * x[-1] + e)
    return np.array(x)


def test_errors_are_those_of_a_correlated_chain():
    # The variance of the mean is (1 + 0.8) / (1 - 0.8) = 9 times that of independent draws: an error of 0.03, an effective 1,111.
    chains = [a_chain(autoregressive(seed)) for seed in range(10)]
    errors = [chain.estimate().error for chain in chains]
    assert np.mean(errors) == pytest.approx(0.03, rel=0.1)  # batches of 100 draws miss a few per cent
    assert np.mean([chain.effective(lambda x: x) for chain in chains]) == pytest.approx(1_111, rel=0.25)
    # and they cover: |mean| / error beyond 3 in one chain of 370
    assert all(abs(chain.expect()) < 4 * error for chain, error in zip(chains, errors, strict=True))


def test_an_answer_has_the_error_of_its_indicator():
    chain = a_chain((autoregressive(0, 400) > 0).astype(int))
    share, error = chain.answers()[1]
    assert share == pytest.approx(float(chain.prob(lambda x: x == 1)), rel=1e-5)
    assert error == pytest.approx(chain.estimate(lambda x: x == 1).error, rel=1e-4)


def test_draws_before_anything_was_found_count_for_nothing():
    chain = a_chain([np.inf, 7.0, 1.0, 2.0], np.array([False, False, True, True]))
    assert chain.expect() == pytest.approx(1.5)
    assert chain.answers().keys() == {1.0, 2.0}


def test_a_chain_has_named_parts_and_queries():
    chain = a_chain(np.arange(4))
    assert po.query(chain, lambda x: x % 2).expect() == pytest.approx(0.5)
    assert repr(chain) == "Chain(draws=4, acceptance=1.000)"
