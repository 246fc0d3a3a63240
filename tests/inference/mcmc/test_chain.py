"""What a chain says of its draws: errors that know of autocorrelation, and draws that count for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.inference import uncertainty
from posterity.inference.blocks import Moved
from posterity.inference.mcmc.chain import Chain
from posterity.inference.mcmc.chain import chain as run_chain


def a_chain(values, allowed=None, **fields):
    n = len(values)
    allowed = np.ones(n, bool) if allowed is None else allowed
    log_weights = jnp.where(allowed, -np.log(allowed.sum()), -jnp.inf)
    return Chain(jnp.asarray(values), log_weights, jnp.asarray(jnp.nan), jnp.ones(n, bool), jnp.zeros((), int), **fields)


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


def test_errors_of_several_chains_are_those_of_one_that_is_as_long():
    # Batches lie within chains: four chains of 2,500 draws have the error of one of 10,000, within what batches of 100 draws can tell.
    errors = [a_chain(np.concatenate([autoregressive(40 + 4 * seed + i, 2_500) for i in range(4)]), chains=4).estimate().error for seed in range(5)]
    assert np.mean(errors) == pytest.approx(0.03, rel=0.15)
    # Many short chains that do not agree: the error is that of their means.
    places = np.random.default_rng(1).normal(size=64)
    apart = a_chain(np.repeat(places, 5), chains=64)
    assert apart.estimate().error == pytest.approx(places.std() / np.sqrt(63), rel=1e-3)


def test_draws_are_given_chain_by_chain():
    chain = a_chain(np.arange(6.0), chains=2, statistics={"divergent": jnp.arange(6) == 4})
    np.testing.assert_array_equal(chain.by_chain(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(po.query(chain, lambda x: {"square": x**2})["square"].by_chain(lambda x: x + 1), [[1, 2, 5], [10, 17, 26]])
    assert chain.divergences == 1
    assert repr(chain) == "Chain(chains=2, draws=3, acceptance=1.000, divergences=1)"


def counting(init_key, run_key):
    return jnp.array([0, 100])


def one_more(key, state):
    return state + 1, Moved(jnp.array([True, False]), jnp.zeros(2, bool))


def as_it_is(state):
    return state, state != 3


def test_warm_up_and_thinning_keep_the_states_they_say():
    functions = [jax.tree_util.Partial(f) for f in (counting, one_more, as_it_is)]
    found = run_chain(jax.random.key(0), "count", *functions, draws=3, warmup=1, thinning=2, chains=2)
    np.testing.assert_array_equal(found.values, [3, 5, 7, 103, 105, 107])
    np.testing.assert_array_equal(found.accepted, [True] * 3 + [False] * 3)
    np.testing.assert_allclose(found.weights, [0, *[0.2] * 5], rtol=1e-6)  # 3 is no state that is allowed


def test_chains_go_to_arviz_as_they_are():
    pytest.importorskip("arviz_base", reason="ArviZ is an extra")
    draws = np.random.default_rng(0).normal(size=(2, 50))
    values = {"x": jnp.asarray(draws.reshape(-1)), "pair": jnp.zeros((100, 2))}
    statistics = {"divergent": jnp.arange(100) == 7, "steps": jnp.full(100, 3)}
    tree = uncertainty.to_arviz(a_chain(np.arange(100), chains=2, statistics=statistics).replace(values=values))
    assert tree["posterior/x"].dims == ("chain", "draw")
    assert tree["posterior/pair"].shape == (2, 50, 2)
    np.testing.assert_allclose(tree["posterior/x"], draws, rtol=1e-6)
    assert set(tree["sample_stats"].data_vars) == {"diverging", "n_steps", "acceptance_rate"}
    assert tree["diagnostics/x"].sel(diagnostic="ess_bulk") == pytest.approx(uncertainty.ess_bulk(np.float32(draws)))
    assert np.isnan(tree["diagnostics/pair"]).all()
    several = uncertainty.to_arviz([a_chain(np.arange(6.0)), a_chain(np.arange(6.0))])
    assert several["posterior/value"].shape == (2, 6)
    with pytest.raises(ValueError, match="as many draws"):
        uncertainty.to_arviz([a_chain(np.arange(6.0)), a_chain(np.arange(5.0))])
    with pytest.raises(ValueError, match="give it a longer warm-up"):
        uncertainty.to_arviz(a_chain(np.arange(2.0), np.array([False, True])))
