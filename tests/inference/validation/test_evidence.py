"""Evidence from both sides, against closed forms; their law is proved in tests/exact/test_evidence_bounds.py. Keys are fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures import references
from posterity.tests.fixtures.references import walk

KEY = jax.random.key(0)
YS = jnp.asarray(references.YS, jnp.float32)


def around(bounds, truth):
    """Whether the truth lies between the bounds, give or take four errors, and they are close."""
    assert bounds, bounds
    assert bounds.lower.value - 4 * bounds.lower.error < truth < bounds.upper.value + 4 * bounds.upper.error
    assert bounds.gap.value < 0.5


def test_a_filter_is_bounded_from_both_sides():
    truth, _, _ = references.walk_posterior(references.YS)
    around(po.check.evidence(walk(YS), key=KEY, n=100), truth)


@pytest.mark.slow
def test_few_particles_leave_a_gap():
    few = po.check.evidence(walk(YS), key=KEY, n=5, simulated=True)
    many = po.check.evidence(walk(YS), key=KEY, n=100, simulated=True)
    assert few.gap.value > 4 * many.gap.value
    truth = 0.5 * (many.lower.value + many.upper.value)
    assert few.lower.value < truth < few.upper.value


@pytest.mark.slow
def test_a_method_that_finds_too_much_is_contradicted():
    def boastful(key, program):
        return po.smc(key, program, n=100).replace(log_evidence=jnp.array(references.walk_posterior(references.YS)[0] + 0.5))

    bounds = po.check.evidence(walk(YS), boastful, key=KEY, n=100)
    assert not bounds
    assert "CONTRADICTION" in str(bounds)


@po.program
def line(x, y):
    slope = po.sample("slope", dist.Normal(0.0, 2.0))
    po.observe("y", dist.Normal(slope * x, 0.5), y)
    return slope


X, Y = jnp.array([-1.0, 0.5, 2.0]), jnp.array([-0.8, 0.9, 1.7])


@pytest.mark.slow
def test_a_static_program_is_bounded_along_its_ladder():
    truth = float(dist.MultivariateNormal(jnp.zeros(3), 4 * jnp.outer(X, X) + 0.25 * jnp.eye(3)).log_prob(Y))
    around(po.check.evidence(line(X, Y), key=KEY, n=50), truth)
    posterior = po.importance(KEY, line(X, Y), n=5_000)
    around(po.check.evidence(line(X, Y), key=KEY, n=50, posterior=posterior, ladder=[0.05, 0.3, 1.0]), truth)


@pytest.mark.slow
def test_draws_that_are_not_the_posteriors_show():
    """Draws of the prior, given as a posterior: what is filtered around them weighs far too little, or the gap would be as small as it should."""
    prior = po.importance(KEY, line(X, Y), n=1_000).replace(log_weights=jnp.full(1_000, -jnp.log(1_000)))
    honest = po.check.evidence(line(X, Y), key=KEY, n=2, ladder=[0.05, 0.3, 1.0])
    wrong = po.check.evidence(line(X, Y), key=KEY, n=2, ladder=[0.05, 0.3, 1.0], posterior=prior)
    assert wrong.upper.value < honest.upper.value - 4 * honest.upper.error


@pytest.mark.slow
def test_simulated_data_come_with_an_exact_draw():
    for program in (walk(YS), line(X, Y)):
        bounds = po.check.evidence(program, key=KEY, n=100, simulated=True)
        assert bounds
        assert bounds.gap.value < 0.5


def test_bad_input_is_named():
    for options, says in (
        ({"n": 1}, "n must be"),
        ({"runs": 2}, "runs must be"),
        ({"posterior": po.importance(KEY, line(X, Y), n=10)}, "posterior must have choices"),
    ):
        with pytest.raises(ValueError, match=says):
            po.check.evidence(walk(YS), key=KEY, **options)
    with pytest.raises(TypeError, match=r"@po\.program makes"):
        po.check.evidence(po.recorded(walk(YS)), key=KEY)


def test_errors_count_autocorrelation():
    from posterity.inference.validation.evidence import _mean

    independent = np.random.default_rng(0).normal(size=(1, 400))
    sticky = np.repeat(independent[:, :100], 4, axis=1)
    assert _mean(sticky).error > 1.5 * _mean(independent).error
