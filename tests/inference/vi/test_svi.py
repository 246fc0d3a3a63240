"""Guides against closed forms, weighed draws against evidence, compiled once, with errors for bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import autoguide

import posterity as po

traced = []
YS = np.array([1.0, 2.0, 4.5], np.float32)


@po.program
def mean(ys):
    """One normal mean of prior sd 2, seen with noise 1."""
    traced.append("mean")
    mu = po.sample("mu", dist.Normal(0.0, 2.0))
    po.observe("ys", dist.Normal(mu, 1.0), ys)
    return mu


def closed_form(ys):
    """The posterior's mean and sd, and the log evidence."""
    n = len(ys)
    precision = 1 / 4 + n
    covariance = np.eye(n) + 4.0
    log_evidence = -0.5 * (ys @ np.linalg.solve(covariance, ys) + np.linalg.slogdet(covariance)[1] + n * np.log(2 * np.pi))
    return ys.sum() / precision, precision**-0.5, log_evidence


@po.program
def line(x, ys):
    """Intercept, slope and log noise of a line."""
    a = po.sample("a", dist.Normal(0.0, 1.0))
    b = po.sample("b", dist.Normal(0.0, 1.0))
    po.observe("ys", dist.Normal(a + b * x, 0.5), ys)
    return {"at 2": a + 2 * b}


X = np.array([1.0, 2.0, 3.0], np.float32)


def line_closed_form():
    design = np.stack([np.ones(3), X], axis=1)
    covariance = np.linalg.inv(np.eye(2) + design.T @ design / 0.25)
    marginal = design @ design.T + 0.25 * np.eye(3)
    log_evidence = -0.5 * (YS @ np.linalg.solve(marginal, YS) + np.linalg.slogdet(marginal)[1] + 3 * np.log(2 * np.pi))
    return covariance @ design.T @ YS / 0.25, covariance, log_evidence


def test_a_guide_that_contains_the_posterior_finds_it_and_its_bound_is_the_evidence():
    location, scale, log_evidence = closed_form(YS)
    found = po.svi(jax.random.key(0), mean(YS), steps=800, particles=4)
    assert float(found.parameters["mu_auto_loc"]) == pytest.approx(location, abs=0.01)
    assert float(found.parameters["mu_auto_scale"]) == pytest.approx(scale, rel=0.01)
    assert float(found.elbo) == pytest.approx(log_evidence, abs=1e-3)
    assert float(found.weighted.log_evidence) == pytest.approx(log_evidence, abs=1e-3)
    assert np.mean(found.elbo_curve[-100:]) == pytest.approx(log_evidence, abs=0.01)
    assert found.pareto_k < 0.7
    assert float(found["mu"].expect()) == pytest.approx(location, abs=4 * scale / 1000**0.5)
    assert "no posterior" in repr(found)
    assert "pareto_k" in repr(found.weighted)
    assert np.isnan(found.log_evidence)
    traced.clear()
    other = po.svi(jax.random.key(1), mean(-YS), steps=800, particles=4)
    assert traced == []
    assert float(other.expect()) == pytest.approx(-location, abs=4 * scale / 1000**0.5 + 0.01)
    assert len(found.again(jax.random.key(3), 10)) == 10


@pytest.mark.slow
def test_weighed_draws_know_the_evidence_of_a_guide_that_was_hardly_fitted():
    """4 standard errors: one key in 16,000 would fail."""
    location, _, log_evidence = closed_form(YS)

    def wide(ys):
        po.sample("mu", dist.Normal(numpyro.param("m", jnp.array(1.5)), 2.0))

    posterior = po.svi(jax.random.key(0), mean(YS), wide, steps=1, draws=4_000).weighted
    assert abs(posterior.log_evidence - log_evidence) < 4 * posterior.log_evidence_error
    assert abs(posterior.expect() - location) < 4 * posterior.estimate().error
    assert posterior.pareto_k < 0.7


@po.program
def counting():
    k = po.sample("k", dist.Poisson(3.0))
    po.observe("y", dist.Normal(k, 1.0), 2.0)


@po.program
def positive():
    return po.sample("s", dist.HalfNormal(1.0)), po.sample("x", dist.Normal(0.0, 1.0))


@po.program
def forbidden():
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.factor("never", jnp.log(x - jax.lax.stop_gradient(x) - 1.0))


def missing():
    po.sample("s", dist.HalfNormal(1.0))


def stranger():
    po.sample("s", dist.HalfNormal(1.0))
    po.sample("x", dist.Normal(0.0, 1.0))
    po.sample("z", dist.Normal(0.0, 1.0))


def across():
    po.sample("s", dist.Normal(0.0, 1.0))
    po.sample("x", dist.Normal(0.0, 1.0))


def narrow():
    po.sample("s", dist.HalfNormal(1.0))
    po.sample("x", dist.Uniform(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "options", "error", "said"),
    [
        (counting(), {}, ValueError, "discrete choices \\('k'\\)"),
        (positive(), {"guide": missing}, ValueError, "misses 'x'"),
        (positive(), {"guide": stranger}, ValueError, "draws 'z'"),
        pytest.param(positive(), {"guide": across}, ValueError, "'s' lie outside its support", marks=pytest.mark.slow),
        pytest.param(positive(), {"guide": narrow}, ValueError, "never draws some values that 'x'", marks=pytest.mark.slow),
        (positive(), {"guide": autoguide.AutoDelta}, ValueError, "is a point"),
        (positive(), {"guide": "gaussian"}, TypeError, "'multivariate'"),
        (positive(), {"steps": 0}, ValueError, "steps"),
        (positive(), {"optimizer": 0.1}, TypeError, "optax"),
        pytest.param(forbidden(), {}, ValueError, "at step 1 of 2", marks=pytest.mark.slow),
        (po.twist(positive(), lambda x: 0.0), {}, TypeError, "svi"),
    ],
)
def test_bad_input_is_told(program, options, error, said):
    with pytest.raises(error, match=said):
        po.svi(jax.random.key(0), program, **{"steps": 2, "draws": 100, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", ["multivariate", "lowrank", "laplace", "flow", autoguide.AutoBNAFNormal, functools.partial(autoguide.AutoIAFNormal, num_flows=1)]
)
def test_every_guide_of_dependent_choices_finds_a_normal_posterior(guide):
    location, covariance, log_evidence = line_closed_form()
    found = po.svi(jax.random.key(0), line(X, YS), guide, optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 1_500)), steps=1_500, particles=8, draws=4_000)
    moments = found.weighted.expect(lambda value: value["at 2"])
    at_2 = np.array([1.0, 2.0])
    assert float(moments) == pytest.approx(at_2 @ location, abs=0.05)
    exact = 1e-3 if guide in ("multivariate", "laplace") else 0.1
    assert float(found.elbo) == pytest.approx(log_evidence, abs=exact)
    assert float(found.weighted.log_evidence) == pytest.approx(log_evidence, abs=min(exact, 0.02))
    spread = found.expect(lambda value: value["at 2"] ** 2) - found.expect(lambda value: value["at 2"]) ** 2
    assert float(spread) == pytest.approx(at_2 @ covariance @ at_2, rel=0.25)


@pytest.mark.slow
def test_independent_normals_bound_a_dependent_posterior_from_below_and_weighing_closes_the_gap():
    _, _, log_evidence = line_closed_form()
    found = po.svi(jax.random.key(0), line(X, YS), particles=4, draws=4_000)
    assert found.elbo < log_evidence - 0.1
    assert abs(found.weighted.log_evidence - log_evidence) < 4 * found.weighted.log_evidence_error


@pytest.mark.slow
def test_all_choices_of_a_scan_are_fitted_together():
    @po.program
    def walk(ys):
        def step(x, y):
            x = po.sample("x", dist.Normal(x, 1.0))
            po.observe("y", dist.Normal(x, 0.5), y)
            return x

        return po.scan(step, jnp.zeros(()), ys)

    found = po.svi(jax.random.key(0), walk(YS), "multivariate", particles=4)
    mean, variance, log_evidence = 0.0, 0.0, 0.0
    for y in YS:
        variance += 1.0
        total = variance + 0.25
        log_evidence -= 0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
        mean, variance = mean + variance / total * (y - mean), variance * 0.25 / total
    assert float(found.elbo) == pytest.approx(log_evidence, abs=0.01)
    assert float(found.weighted.log_evidence) == pytest.approx(log_evidence, abs=2e-3)
    assert float(found.weighted.expect()) == pytest.approx(mean, abs=0.02)
    assert found["x"].values.shape == (1_000, 3)
