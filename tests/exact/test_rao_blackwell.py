"""A linear-Gaussian part integrated out of a program: what is left is finite, so the whole model is summed by hand, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures.switching import given_path, masses, on_device, random_model, switching

MODEL, YS = random_model(0), np.array([[0.3], [-1.0]])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def regimes(inner):
    """The path of regimes alone."""
    return inner()[0]


def paths(model=MODEL, ys=YS, **options):
    return regimes(switching.bind(on_device(model), jnp.asarray(ys), **options))


@pytest.mark.parametrize("seed", range(3))
def test_the_measure_on_regimes_is_the_sum_with_the_linear_part_integrated_out(laws, seed):
    model, ys = random_model(seed), np.random.default_rng(seed).normal(size=(3, 1))
    laws.holds("kalman: predict, observe", po.check.same_meaning(paths(model, ys), masses(model, ys)))


def test_a_belief_is_the_law_of_the_linear_part_given_the_regimes_and_all_that_was_seen():
    model, ys = random_model(4, n=4, m=2), np.random.default_rng(4).normal(size=(3, 2))
    measure = po.exact(switching(on_device(model), jnp.asarray(ys)))
    path, belief = measure.values
    assert len(path) == 8
    for regimes, mean, covariance in zip(path, belief.mean, belief.covariance):
        _, expected_mean, expected_covariance = given_path(model, regimes, ys)
        np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(covariance, expected_covariance, rtol=0, atol=1e-10)
    assert float(measure.log_evidence) == pytest.approx(np.log(sum(masses(model, ys).values())), abs=1e-10)


def smc(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


def test_smc_over_beliefs_is_properly_weighted(laws):
    laws.holds("smc, Rao-Blackwellised", po.check.properly_weighted(smc, switching(on_device(MODEL), jnp.asarray(YS))))


def test_the_locally_optimal_filter_over_beliefs_keeps_the_meaning(laws):
    adapted = po.adapt(switching(on_device(MODEL), jnp.asarray(YS)), "regime")
    laws.holds("adapt, Rao-Blackwellised", po.check.same_meaning(regimes(adapted), masses(MODEL, YS)))


@pytest.mark.slow
def test_conditional_smc_over_beliefs_leaves_the_law_of_regimes_invariant(laws):
    def kernel(key, program, particles):
        return po.conditional_smc(key, program, particles, n=2, ancestors="ancestor")

    program = po.recorded(po.retraced(switching(on_device(MODEL), jnp.asarray(YS))))
    laws.holds("conditional SMC, Rao-Blackwellised", po.check.invariant(kernel, program))


def without_determinant(name, belief, y, H, R, d):
    """The innovation's density but for its determinant: regimes of little noise are not rewarded."""
    law = dist.MultivariateNormal(H @ belief.mean + d, H @ belief.covariance @ H.T + R)
    po.factor(name, law.log_prob(y) - law.log_prob(law.loc))
    with numpyro.handlers.block():
        return po.kalman.observe(name, belief, y, H, R, d)


def at_the_updated_mean(name, belief, y, H, R, d):
    """The density of y at the mean that y has already changed: y is used twice."""
    with numpyro.handlers.block():
        after = po.kalman.observe(name, belief, y, H, R, d)
    po.observe(name, dist.MultivariateNormal(H @ after.mean + d, R), y)
    return after


@pytest.mark.parametrize("observe", [without_determinant, at_the_updated_mean])
def test_the_proof_refutes_another_weight(laws, observe):
    laws.fails(f"kalman.observe: {observe.__name__.replace('_', ' ')}", po.check.same_meaning(paths(observe=observe), masses(MODEL, YS)))


@po.program
def mixed(model, ys):
    """u is drawn by what z is, and y is seen."""

    def step(state, y):
        u, belief = state
        belief = po.kalman.predict(belief, model.F[0], model.Q[0], model.b[0])
        u, belief = po.kalman.sample("u", belief, model.H[1], model.R[1], model.d[1])
        return u, po.kalman.observe("y", belief, y, model.H[0], model.R[0], model.d[0])

    return po.scan(step, (jnp.zeros(1), po.kalman.Gaussian(model.mean, model.covariance)), ys)


def test_a_choice_by_the_linear_part_has_the_density_that_integrating_gives(laws):
    # In steps of z's own, u and y are seen of the same z: two numbers at once, of independent noise.
    model = MODEL._replace(
        H=np.concatenate([MODEL.H[1], MODEL.H[0]])[None],
        d=np.concatenate([MODEL.d[1], MODEL.d[0]])[None],
        R=np.diag([MODEL.R[1, 0, 0], MODEL.R[0, 0, 0]])[None],
    )
    log_density, mean, covariance = given_path(model, (0,), np.array([[0.7, 0.3]]))
    measure = po.exact(po.condition(mixed(on_device(MODEL), jnp.array([[0.3]])), {"u": jnp.array([0.7])}))
    assert float(measure.log_evidence) == pytest.approx(log_density, abs=1e-10)
    np.testing.assert_allclose(measure.values[1].mean[0], mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(measure.values[1].covariance[0], covariance, rtol=0, atol=1e-10)
