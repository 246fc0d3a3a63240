"""Filters as compositions, and what a run says of its own error."""

from typing import Any

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


@pytest.mark.slow
def test_a_run_that_cannot_know_its_error_does_not_claim_to():
    alone = po.smc(jax.random.key(0), references.walk(YS), n=1)
    assert jnp.isinf(alone.log_evidence_error)
    assert jnp.isinf(alone.evidence_variance())
    one_family = po.smc(jax.random.key(0), references.walk(YS), n=3, threshold=1.0)
    assert len(np.unique(one_family.eves)) == 1
    assert jnp.isinf(one_family.log_evidence_error)
    nothing = po.smc(jax.random.key(0), references.strings(jnp.eye(6)[0], jnp.eye(6)[jnp.ones(6, int)]), n=4)
    assert jnp.isneginf(nothing.log_evidence)
    assert jnp.isinf(nothing.log_evidence_error)


def test_without_potentials_the_evidence_has_no_error():
    @po.program
    def free():
        return po.sample("x", dist.Normal(0.0, 1.0))

    posterior = po.importance(jax.random.key(0), free(), n=100)
    assert posterior.log_evidence_error < 1e-3
    assert repr(posterior).startswith("Posterior(n=100, log_evidence=0 ± ")


# -- guided, auxiliary and fully adapted filters -------------------------------------------------------------------------


def after_seeing(x, y):
    """The locally optimal proposal of `references.walk`: the law of the next state given the next observation too."""
    return dist.Normal(x + 0.8 * (y - x), jnp.sqrt(0.2))


FILTERS = {
    "bootstrap": lambda p: p,
    "guided": lambda p: po.propose(p, {"x": after_seeing}),
    "fully adapted auxiliary": lambda p: po.lookahead(po.propose(p, {"x": after_seeing}), steps=1),
}


@pytest.fixture(scope="module")
def evidence_by_filter():
    """Z_hat / Z of 200 runs of each filter."""
    log_evidence = references.walk_posterior(np.asarray(YS, float))[0]

    def ratios(program):
        return np.exp(references.runs(po.smc, program, lambda x: x, n=100, repeats=200, threshold=1.0)[0] - log_evidence)

    return {name: ratios(build(references.walk(YS))) for name, build in FILTERS.items()}


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_agrees_with_kalman(evidence_by_filter, name):
    assert abs(references.z_scores(evidence_by_filter[name], 1.0)) < 4


def test_what_looks_at_the_next_observation_knows_the_evidence_better(evidence_by_filter):
    spread = {name: np.std(ratios) for name, ratios in evidence_by_filter.items()}
    assert spread["guided"] < 0.5 * spread["bootstrap"]
    assert spread["fully adapted auxiliary"] < 0.5 * spread["bootstrap"]


# -- controlled SMC ------------------------------------------------------------------------------------------------------


@po.program
def arrive(y):
    """A walk of eight steps, seen only where it ends."""
    x = po.scan(lambda x, _: po.sample("x", dist.Normal(x, 1.0)), 0.0, length=8)
    po.observe("y", dist.Normal(x, 0.5), y)
    return x


def quadratic(x):
    return jnp.stack([x, x**2])


@pytest.mark.slow
def test_what_is_learned_makes_the_evidence_vary_less_and_leaves_it_right():
    exact = float(dist.Normal(0.0, np.sqrt(8.25)).log_prob(8.0))
    runs = {rounds: references.runs(po.controlled, arrive(8.0), lambda x: x, n=200, repeats=100, features=quadratic, rounds=rounds)[0] for rounds in (0, 1, 3)}
    assert np.std(runs[3]) < 0.4 * np.std(runs[0])
    assert abs(references.z_scores(np.exp(runs[3] - exact), 1.0)) < 4


def test_where_no_particle_gets_through_nothing_is_learned():
    @po.program
    def closed():
        x = po.scan(lambda x, _: po.sample("x", dist.Normal(x, 1.0)), 0.0, length=2)
        po.factor("closed", jnp.where(x < 1e9, -jnp.inf, 0.0))
        return x

    assert jnp.isneginf(po.controlled(jax.random.key(0), closed(), quadratic, n=5, rounds=1).log_evidence)


def ask(key: Any, program: Any, features: Any, **options: Any) -> po.Posterior:
    return po.controlled(key, program, features, **options)


WRONG = {
    "no function": (lambda: ask(jax.random.key(0), arrive(1.0), 3, n=2), TypeError, "features must be a function of a particle's value, got 3"),
    "no vector": (
        lambda: ask(jax.random.key(0), arrive(1.0), lambda x: x, n=2),
        ValueError,
        r"features must return one vector, it returned shape \(\)",
    ),
    "no round": (lambda: ask(jax.random.key(0), arrive(1.0), quadratic, n=2, rounds=-1), ValueError, "rounds must be a whole number of at least 0"),
    "no particle": (lambda: ask(jax.random.key(0), arrive(1.0), quadratic, n=0), ValueError, "n must be a whole number of at least 1, got 0"),
    "no program": (lambda: ask(jax.random.key(0), lambda: 1.0, quadratic, n=2), TypeError, "program must be a Program"),
    "no key": (lambda: ask(0, arrive(1.0), quadratic, n=2), TypeError, "key must be a single random key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
