"""Particles moved by Stein gradients and coin betting: golden numbers, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import posterity as po

traced = []


@po.program
def target(location, scale):
    """A normal law, its particles started from the standard one."""
    traced.append("target")
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.factor("target", dist.Normal(location, scale).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x))
    return x


@po.program
def plane(location, covariance):
    x = po.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    po.factor("target", dist.MultivariateNormal(location, covariance).log_prob(x) - jnp.sum(dist.Normal(0.0, 1.0).log_prob(x)))
    return x


def moments(found):
    return float(jnp.mean(found.values)), float(jnp.std(found.values))


def test_coin_betting_reaches_the_golden_numbers_without_a_step_size():
    found = po.svgd(jax.random.key(0), target(2.0, 1.0), n=50, steps=2_000)
    location, spread = moments(found)
    assert location == pytest.approx(2.000003, abs=2e-4)
    assert spread == pytest.approx(0.967, abs=0.002)
    assert repr(found) == "Approximation(svgd, n=50, no posterior)"
    assert np.isnan(found.log_evidence)
    traced.clear()
    location, spread = moments(po.svgd(jax.random.key(1), target(10.0, 3.0), n=50, steps=2_000))
    assert traced == []
    assert location == pytest.approx(10.00001, abs=2e-3)
    assert spread == pytest.approx(2.901, abs=0.01)


@pytest.mark.slow
def test_coin_betting_in_the_plane():
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    found = po.svgd(jax.random.key(0), plane(jnp.array([1.0, -1.0]), covariance), n=100, steps=2_000)
    np.testing.assert_allclose(found.expect(), [1.0003, -1.0002], atol=2e-3)
    seen = np.cov(np.asarray(found.values).T, bias=True)
    np.testing.assert_allclose(np.diag(seen), 0.940, atol=0.02)
    assert seen[0, 1] == pytest.approx(0.750, abs=0.02)


@pytest.mark.slow
def test_a_tuned_step_size_comes_to_the_same_place_and_one_that_is_not_does_not():
    tuned = moments(po.svgd(jax.random.key(0), target(2.0, 1.0), n=50, steps=2_000, optimizer=optax.adam(0.05)))
    timid = moments(po.svgd(jax.random.key(0), target(2.0, 1.0), n=50, steps=2_000, optimizer=optax.sgd(1e-4)))
    assert tuned == (pytest.approx(2.0, abs=1e-3), pytest.approx(0.967, abs=0.005))
    assert timid[0] < 1.0


@pytest.mark.slow
def test_the_discrepancy_descends_to_a_normal_law():
    location, spread = moments(po.ksdd(jax.random.key(0), target(2.0, 1.0), n=50, steps=10_000))
    assert location == pytest.approx(2.0, abs=0.02)
    assert spread == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_the_posteriors_own_generator_moves_particles_to_it():
    location, spread = moments(po.lawgd(jax.random.key(0), target(2.0, 1.0), box=(-3.0, 7.0), n=50, steps=2_000))
    assert location == pytest.approx(2.0, abs=0.02)
    assert spread == pytest.approx(1.0, abs=0.05)
    found = po.lawgd(jax.random.key(0), plane(jnp.array([0.5, -0.5]), jnp.array([[1.0, 0.5], [0.5, 1.0]])), box=(-4.0, 4.0), n=100, steps=1_000)
    np.testing.assert_allclose(found.expect(), [0.5, -0.5], atol=0.1)


def test_the_generator_of_a_normal_law_has_whole_eigenvalues():
    from posterity.inference.vi.stein import spectrum

    x = np.linspace(-6, 6, 128)
    found = spectrum(-0.5 * x**2, np.array([-6.0]), np.array([6.0]), 3)
    np.testing.assert_allclose(found.eigenvalues, [1.0, 2.0, 3.0], rtol=0.01)  # Hermite polynomials
    middle = np.abs(np.asarray(found.functions[0]))[40:88]
    np.testing.assert_allclose(middle, np.abs(x[40:88]), atol=0.01)


@po.program
def rates():
    s = po.sample("s", dist.HalfNormal(1.0))
    po.sample("k", dist.Poisson(s))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda key: po.svgd(key, rates()), ValueError, "discrete choices \\('k'\\)"),
        (lambda key: po.svgd(key, target(0.0, 1.0), steps=0), ValueError, "steps"),
        (lambda key: po.ksdd(key, target(0.0, 1.0), n=1), ValueError, "n must"),
        (lambda key: po.svgd(key, target(0.0, 1.0), optimizer=0.1), TypeError, "optax"),
        (lambda key: po.lawgd(key, target(0.0, 1.0), box=(1.0, -1.0)), ValueError, "box"),
        (lambda key: po.svgd(key, 3), TypeError, "svgd"),
    ],
)
def test_bad_input_is_told(call, error, said):
    with pytest.raises(error, match=said):
        call(jax.random.key(0))


@pytest.mark.slow
def test_particles_that_diverge_are_told():
    with pytest.raises(ValueError, match="NaN or infinite"):
        po.svgd(jax.random.key(0), target(2.0, 0.001), n=10, steps=200, optimizer=optax.sgd(1e10))
