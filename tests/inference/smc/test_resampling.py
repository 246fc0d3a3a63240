"""Every resampling scheme on its own: its sampler draws from its law, also of a million particles and of degenerate weights."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from posterity.inference.smc.resampling import CONDITIONAL, SCHEMES, Multinomial, scheme
from posterity.inference.smc.resampling.quotas import quotas, running_sum

pytestmark = pytest.mark.slow

ALL = {**SCHEMES, **{f"conditional {name}": law for name, law in CONDITIONAL.items()}}


@cache
def many(name, draws):
    """Jitted: ancestors [draws, n] of log weights [n]."""
    return jax.jit(lambda key, log_weights: ALL[name](log_weights).sample(key, (draws,)))


@cache
def atoms(name):
    return jax.jit(lambda log_weights: ALL[name](log_weights)._atoms())


def law(name, weights):
    """The ancestor vectors of positive probability, and their probabilities."""
    with jax.enable_x64():
        vectors, probabilities = map(np.asarray, atoms(name)(jnp.log(jnp.array(weights, float))))
    distinct, which = np.unique(vectors, axis=0, return_inverse=True)
    total = np.bincount(which.reshape(-1), weights=probabilities)
    return distinct[total > 0], total[total > 0]


@pytest.mark.parametrize(("name", "weights"), [*((name, [3.7, 0, 0.1]) for name in ALL), ("conditional ssp", [2.2, 0.7, 0.9, 0.5, 0.3])])
def test_the_sampler_draws_from_the_law(name, weights):
    # Pearson's chi-square on 5,000 draws of a fixed seed; a right sampler would fail at a fraction 1e-4 of the seeds.
    vectors, probabilities = law(name, weights)
    vectors, probabilities = vectors[probabilities > 1e-12], probabilities[probabilities > 1e-12]
    drawn = np.asarray(many(name, 5_000)(jax.random.key(0), jnp.log(jnp.array(weights, float))))
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


@pytest.mark.parametrize("name", ALL)
def test_the_largest_and_smallest_random_bits_stay_inside(name, monkeypatch):
    weights = np.ones(3_000, np.float32)
    weights[0], weights[-1] = 2, 0
    for bits in (0, 2**32 - 1):
        monkeypatch.setattr(jax.random, "bits", lambda key, shape=(), dtype=jnp.uint32, bits=bits: jnp.full(shape, bits, dtype))
        drawn = np.asarray(jax.jit(lambda key, log_weights: ALL[name](log_weights).sample(key))(jax.random.key(0), jnp.log(weights)))
        assert drawn.shape == (3_000,)
        assert drawn.min() >= 0
        assert drawn.max() <= 2_998


def far(name, log_weights, key=0):
    """The number of copies less n W_i, in float64."""
    drawn = np.asarray(many(name, 1)(jax.random.key(key), jnp.asarray(log_weights)))[0]
    weights = np.exp(log_weights.astype(float) - log_weights.max())
    assert drawn.min() >= 0
    return np.bincount(drawn, minlength=len(weights)) - len(weights) * weights / weights.sum()


def uneven(n):
    """Float32 log weights of a very large and of a moderate spread, and two values."""
    rng = np.random.default_rng(0)
    laws = {"heavy": 10 * rng.normal(size=n) - 1e5, "exponential": np.log(rng.exponential(size=n)), "two": np.log(np.where(np.arange(n) % 2, 0.3, 0.7))}
    return {name: log_weights.astype(np.float32) for name, log_weights in laws.items()}


@pytest.mark.parametrize("law", ["heavy", "two"])
@pytest.mark.parametrize("name", ["systematic", "ssp"])
def test_a_million_quotas_are_rounded_up_or_down_in_float32(name, law):
    log_weights = uneven(10**6)[law]
    quota = np.exp(log_weights.astype(float) - log_weights.max())
    quota *= 10**6 / quota.sum()
    assert (np.abs(far(name, log_weights)) < 1 + 1e-6 * quota).all()  # the weights themselves are rounded: by a part in 10^7


@pytest.mark.parametrize("n", [1, 512, 513, 2_048, 2_051, 30_000])
def test_running_sums_are_those_of_numpy_modulo_a_word(n):
    x = np.random.default_rng(n).integers(0, 2**32, n, np.uint32)
    np.testing.assert_array_equal(running_sum(jnp.asarray(x)), np.cumsum(x, dtype=np.uint32))


def test_ten_million_quotas_are_rounded_up_or_down_in_float32():
    for log_weights in uneven(10**7).values():
        quota = np.exp(log_weights.astype(float) - log_weights.max())
        quota *= 10**7 / quota.sum()
        assert (np.abs(far("systematic", log_weights)) < 1 + 1e-6 * quota).all()


@pytest.mark.parametrize("law", ["heavy", "exponential", "two"])
def test_a_million_quotas_sum_to_a_million_exactly(law):
    log_weights = uneven(10**6)[law]
    whole, part = map(np.asarray, jax.jit(quotas)(log_weights))
    assert int(whole.sum(dtype=np.int64)) * 2**32 + int(part.sum(dtype=np.uint64)) == 10**6 * 2**32
    exact = np.exp(log_weights.astype(float) - log_weights.max())
    exact *= 10**6 / exact.sum()
    np.testing.assert_allclose(whole + part / 2**32, exact, rtol=2e-6, atol=2.0**-31)


@pytest.mark.parametrize("name", ["stratified", "multinomial", "residual", "killing"])
def test_copies_spread_as_they_should(name):
    # The sum of squared distances from n W_i: by the law's variances, to half a percent.
    log_weights = uneven(10**5)["exponential"]
    weights = np.exp(log_weights.astype(float))
    share = weights / weights.sum()
    part = 10**5 * share % 1
    stay = weights / weights.max()
    lower = 10**5 * (np.cumsum(share) - share)
    overlap = [np.clip(np.minimum(10**5 * np.cumsum(share), np.floor(lower) + k + 1) - np.maximum(lower, np.floor(lower) + k), 0, 1) for k in range(20)]
    expected = {
        "stratified": sum(np.sum(held * (1 - held)) for held in overlap),
        "multinomial": 10**5 * (1 - np.sum(share**2)),
        "residual": part.sum() - np.sum(part**2) / part.sum(),
        # given how many are redrawn (its variance adds little), plus that of staying
        "killing": np.sum(stay * (1 - stay)) + np.sum(1 - stay) * (1 - np.sum(share**2)),
    }[name]
    assert np.sum(far(name, log_weights) ** 2) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", SCHEMES)
def test_one_positive_weight_takes_all(name):
    for n, log_weight in ((1, -1e30), (3, 80.0), (2_001, -3e38)):
        log_weights = np.full(n, -np.inf, np.float32)
        log_weights[n // 2] = log_weight
        assert not far(name, log_weights).any()


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual", "ssp", "killing"])
def test_equal_weights_leave_everyone_in_place(name):
    for n in (1, 3, 2_001):
        for log_weight in (0.0, -1e10, 1e30):
            drawn = many(name, 1)(jax.random.key(0), jnp.full(n, log_weight))
            np.testing.assert_array_equal(drawn[0], np.arange(n))


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_far_below_the_range_of_floats_are_compared_by_their_ratios(name):
    draw = many(name, 64)
    for tiny, plain in (([-2_000, -1_000, -2_000], [-np.inf, 0, -np.inf]), ([-2_000, -2_001, -2_000], [0, -1, 0])):
        np.testing.assert_array_equal(draw(jax.random.key(0), np.float32(tiny)), draw(jax.random.key(0), np.float32(plain)))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_conditional_scheme_keeps_particle_0_even_of_weight_zero(name):
    for log_weights in ([-np.inf, 0.0, 0.0], [-np.inf, 0.0, -np.inf], [-np.inf] * 3, [0.0, -np.inf, -np.inf], [0.0]):
        drawn = np.asarray(many(f"conditional {name}", 64)(jax.random.key(0), jnp.array(log_weights)))
        assert not drawn[:, 0].any()
        assert (np.array(log_weights)[drawn[:, 1:]] > -np.inf).all() or max(log_weights) == -np.inf


def test_a_scheme_is_named_or_a_class():
    assert scheme("multinomial") is scheme(Multinomial) is Multinomial
    for wrong in ("best", 3, ["systematic"], int):
        with pytest.raises(ValueError, match="resampling must be one of systematic, stratified, multinomial, residual, ssp, killing or an Ancestors class"):
            scheme(wrong)
