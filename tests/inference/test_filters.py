"""Filters as compositions, and what a run says of its own error."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures import references

YS = jnp.asarray(np.cumsum(np.random.default_rng(0).normal(size=12)))


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_one_run_tells_by_how_much_the_evidence_varies_over_runs(resampling):
    def one(key):
        posterior = po.smc(key, references.walk(YS), n=300, resampling=resampling)
        return posterior.log_evidence, posterior.evidence_variance(multinomial=resampling == "multinomial"), posterior.log_evidence_error

    log_evidences, variances, errors = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 256))
    spread = np.var(np.asarray(log_evidences, float), ddof=1)  # itself known to about 9 %
    assert 0.75 < np.mean(variances) / spread < 1.3
    assert np.std(variances) < 0.5 * spread  # a single run is enough
    assert np.mean(errors**2) > 0.75 * spread  # what is shown does not flatter, whatever the scheme


def test_a_run_that_cannot_know_its_error_does_not_claim_to():
    alone = po.smc(jax.random.key(0), references.walk(YS), n=1)
    assert jnp.isinf(alone.log_evidence_error) and jnp.isinf(alone.evidence_variance())
    one_family = po.smc(jax.random.key(0), references.walk(YS), n=3, threshold=1.0)
    assert len(np.unique(one_family.eves)) == 1 and jnp.isinf(one_family.log_evidence_error)
    nothing = po.smc(jax.random.key(0), references.strings(jnp.eye(6)[0], jnp.eye(6)[jnp.ones(6, int)]), n=4)
    assert jnp.isneginf(nothing.log_evidence) and jnp.isinf(nothing.log_evidence_error)


def test_without_potentials_the_evidence_has_no_error():
    @po.program
    def free():
        return po.sample("x", dist.Normal(0.0, 1.0))

    posterior = po.importance(jax.random.key(0), free(), n=100)
    assert posterior.log_evidence_error < 1e-3
    assert repr(posterior).startswith("Posterior(n=100, log_evidence=0 ± ")
