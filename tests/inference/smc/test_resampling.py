"""Every resampling scheme on its own: unbiased exactly, and its sampler draws from its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from posterity.inference.smc.resampling import SCHEMES, Multinomial, scheme

WEIGHTS = [[1, 2, 3], [1, 1, 1], [0, 1, 0], [0, 0.5, 0.5], [1e-9, 1, 1], [0.25, 0.5, 0.25], [3.7, 0, 0.1]]


def law(name, weights):
    """The ancestor vectors of positive probability, and their probabilities."""
    with jax.enable_x64():
        scheme = SCHEMES[name](jnp.log(jnp.array(weights, float)))
        vectors = scheme.enumerate_support()
        probabilities = np.exp(np.asarray(jax.vmap(scheme.log_prob)(vectors)))
    return np.asarray(vectors)[probabilities > 0], probabilities[probabilities > 0]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", SCHEMES)
def test_copies_are_proportional_to_weights_exactly(name, weights):
    vectors, probabilities = law(name, weights)
    copies = (vectors[:, :, None] == np.arange(3)).sum(axis=1)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(probabilities @ copies, 3 * np.array(weights) / np.sum(weights), rtol=0, atol=1e-12)
    assert not copies[:, np.array(weights) == 0].any()


@pytest.mark.parametrize("name", ["systematic", "stratified"])
def test_copies_differ_little_from_their_mean(name):
    # Systematic: by less than one. Stratified: by less than two.
    for weights in WEIGHTS:
        vectors, _ = law(name, weights)
        copies = (vectors[:, :, None] == np.arange(3)).sum(axis=1)
        assert np.abs(copies - 3 * np.array(weights) / np.sum(weights)).max() < (1 if name == "systematic" else 2)


@pytest.mark.parametrize("weights", [[1, 2, 3], [3.7, 0, 0.1]])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_sampler_draws_from_the_law(name, weights):
    # Pearson's chi-square on 5,000 draws of a fixed seed; a right sampler would fail at a fraction 1e-4 of the seeds.
    vectors, probabilities = law(name, weights)
    vectors, probabilities = vectors[probabilities > 1e-12], probabilities[probabilities > 1e-12]
    drawn = np.asarray(SCHEMES[name](jnp.log(jnp.array(weights, float))).sample(jax.random.key(0), (5_000,)))
    counts = (drawn[:, None] == vectors).all(axis=-1).sum(axis=0)
    assert counts.sum() == 5_000
    if len(vectors) > 1:
        assert stats.chisquare(counts, 5_000 * probabilities / probabilities.sum()).pvalue > 1e-4


@pytest.mark.parametrize("name", SCHEMES)
def test_weightless_particles_are_never_drawn(name):
    # With 20,000 particles the rounding of a parallel sum would draw some (a plain cumulative sum fails here).
    rng = np.random.default_rng(0)
    weights = np.where(rng.random(20_000) < 0.5, 0, rng.exponential(size=20_000))
    weights[:2] = weights[-3:] = 0
    draw = jax.jit(lambda log_weights, keys: jax.vmap(SCHEMES[name](log_weights).sample)(keys))
    ancestors = np.asarray(draw(jnp.log(jnp.asarray(weights, jnp.float32)), jax.random.split(jax.random.key(1), 50)))
    assert (ancestors >= 0).all()
    assert (ancestors < 20_000).all()
    assert (weights[ancestors] > 0).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_the_largest_uniform_stays_inside(name, monkeypatch):
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(), dtype=float: jnp.full(shape, largest, dtype))
    weights = np.ones(300_000, np.float32)
    weights[-1] = 0
    ancestors = np.asarray(SCHEMES[name](jnp.log(weights)).sample(jax.random.key(0)))
    assert ancestors.max() == 299_998


def test_a_scheme_is_named_or_a_class():
    assert scheme("multinomial") is scheme(Multinomial) is Multinomial
    for wrong in ("best", 3, ["systematic"], int):
        with pytest.raises(ValueError, match="resampling must be one of systematic, stratified, multinomial or an Ancestors class"):
            scheme(wrong)
