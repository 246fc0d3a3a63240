"""Filters of stochastic volatility against runs with 10^6 particles, and those against quadrature.

Compared are Z_hat and Z_hat * expect(x, x^2) after 10, 30 and 60 observations, averaged over independent runs, within four standard errors of
both sides together. A right algorithm would fail one such comparison at about 6e-5 of the seeds, a filter's nine at 6e-4 (seeds are fixed).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.tests.fixtures.volatility import guided, moments, quadrature, reference, volatility, z_scores

TRUTH = reference()


def test_the_large_run_agrees_with_quadrature():
    log_evidence, means = quadrature(TRUTH.ys)
    ratio = np.exp(TRUTH.log_evidence - log_evidence[TRUTH.times - 1])
    found = np.concatenate([ratio[..., None], ratio[..., None] * TRUTH.moments], axis=-1)
    exact = np.concatenate([np.ones((3, 1)), means[TRUTH.times - 1]], axis=-1)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.abs((found.mean(axis=0) - exact) / error).max() < 4
    assert error.max() < 0.002


FILTERS = {
    "bootstrap": (po.smc, volatility),
    "guided": (po.smc, guided),
    "auxiliary": (po.smc, lambda ys, times: po.lookahead(guided(ys, times), steps=1)),
    "several children": (po.branching_smc, volatility),
    "islands": (partial(po.island_smc, islands=4), volatility),
}


def runs(infer, build, n=300, repeats=64):
    """Log evidence [repeats, k] and moments [repeats, k, 2]: one compilation for all numbers of observations, which are data."""

    @jax.jit
    @jax.vmap
    def one(key, times):
        posterior = infer(key, build(jnp.asarray(TRUTH.ys), times), n=n)
        return posterior.log_evidence, posterior.expect(moments)

    keys = jax.random.split(jax.random.key(0), (repeats, len(TRUTH.times)))
    times = jnp.broadcast_to(jnp.asarray(TRUTH.times), keys.shape)
    log_evidence, means = jax.tree.map(lambda x: np.asarray(x, float), one(keys.reshape(-1), times.reshape(-1)))
    return log_evidence.reshape(keys.shape), means.reshape(*keys.shape, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_agrees_with_a_million_particles(name):
    log_evidence, means = runs(*FILTERS[name])
    assert np.abs(z_scores(TRUTH, log_evidence, means)).max() < 4
    assert log_evidence.std(axis=0).max() < 0.3  # four standard errors then mean something
