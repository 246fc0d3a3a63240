"""Particles share a key and draw independently all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

import posterity as po
from posterity.ppl.randomness import with_own_key

N = 4096


def in_a_branch(key):
    left, right = jax.random.split(key)
    return lax.cond(jax.random.bernoulli(left), lambda: jax.random.normal(right), lambda: -jax.random.normal(right))


def in_a_loop(key):
    return lax.fori_loop(0, 3, lambda i, x: x + jax.random.normal(jax.random.fold_in(key, i)), 0.0) / jnp.sqrt(3.0)


def in_a_loop_over_keys(key):
    return jnp.sum(lax.map(jax.random.normal, jax.random.split(key, 3))) / jnp.sqrt(3.0)


def by_a_number_of_its_own(key):  # few of which differ
    return jax.random.normal(jax.random.fold_in(key, jax.random.bernoulli(jax.random.fold_in(key, 7)).astype(jnp.int32)))


def by_many_keys(key):
    return jnp.mean(jax.vmap(jax.random.normal)(jax.random.split(key, 4))) * 2.0


def by_a_kept_key(key):
    return jax.random.normal(jax.random.wrap_key_data(jax.random.key_data(key)))


def of_numpyro(key):
    return (dist.Gamma(4.0, 1.0).sample(key) - 4.0) / 2.0


def of_a_row(key):
    return dist.Normal(jnp.zeros(9), 1.0).sample(key).sum() / 3.0


SAMPLERS = [jax.random.normal, in_a_branch, in_a_loop, in_a_loop_over_keys, by_a_number_of_its_own, by_many_keys, by_a_kept_key, of_numpyro, of_a_row]


def draws(sampler, key, n=N):
    return jax.vmap(with_own_key(sampler), (None, 0))(key, jnp.arange(n))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: getattr(sampler, "__name__", str(sampler)))
def test_what_particles_draw_is_independent_and_of_its_law(sampler):
    # Each statistic is within 5.5 standard errors: a false alarm in one of 25 million runs, all samplers and statistics together in one of 500,000.
    x = np.asarray(draws(sampler, jax.random.key(0)), float)
    assert len(np.unique(x)) > N - 20  # float32 values of a continuous law meet by chance about once in N = 4,096
    assert abs(x.mean()) < 5.5 / np.sqrt(N)
    kurtosis = 4.5 if sampler is of_numpyro else 3.0  # E x^4, which says how far a variance may be off
    assert abs(np.mean(x**2) - 1) < 5.5 * np.sqrt((kurtosis - 1) / N)
    for lag in (1, 2, N // 2):  # neighbours, and those whose bits are of one hash
        products = x[lag:] * x[:-lag]
        assert abs(products.mean()) < 5.5 / np.sqrt(len(products))


def test_one_particles_draws_are_independent():
    x = np.asarray(draws(lambda key: jnp.stack([jax.random.normal(k) for k in jax.random.split(key, 3)]), jax.random.key(0)))
    assert len(np.unique(x)) > x.size - 30
    assert np.all(np.abs(np.corrcoef(x.T)[np.triu_indices(3, 1)]) < 5.5 / np.sqrt(N))


@po.program
def noisy(scale):
    x = po.sample("x", dist.Normal(0.0, scale))
    z = po.sample("z", dist.Gamma(2.0, 1.0))
    return po.scan(lambda x, _: po.sample("next", dist.Normal(x, z)), x, length=2)


def run(key, n=5):
    program = noisy(1.0)
    particles, _ = program.init(key, n)
    return program.step(key, particles)[0].carry[0]


def test_jitted_or_not_the_draws_are_the_same():
    key = jax.random.key(3)
    np.testing.assert_allclose(jax.jit(run)(key), run(key), rtol=1e-6)


def test_a_batch_of_keys_draws_what_each_of_them_would():
    keys = jax.random.split(jax.random.key(3), 4)
    np.testing.assert_allclose(jax.vmap(run)(keys), jnp.stack([run(key) for key in keys]), rtol=1e-6)


def test_keys_of_the_old_kind_draw_the_same():
    np.testing.assert_array_equal(run(jax.random.PRNGKey(5)), run(jax.random.key(5)))


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_serve_too(kind):
    assert len(np.unique(run(jax.random.key(5, impl=kind), n=100))) == 100


def test_an_inference_inside_a_program_has_a_key_for_every_particle():
    @po.program
    def inner():
        return po.sample("x", dist.Normal(0.0, 1.0))

    @po.program
    def outer():
        return po.embed("x", po.importance(po.key(), inner.bind(), n=2))

    assert len(np.unique(po.importance(jax.random.key(0), outer(), n=50).values)) == 50


def test_a_key_that_a_particle_keeps_is_its_own():
    keys = draws(lambda key: jax.random.split(key), jax.random.key(0), n=50)
    assert keys.shape == (50, 2)
    assert len(np.unique(jax.random.key_data(keys).reshape(100, 2), axis=0)) == 100


def test_sites_of_numpyros_scan_draw_for_every_particle():
    from numpyro.contrib.control_flow import scan

    @po.program
    def chain():
        return scan(lambda x, _: (numpyro.sample("x", dist.Normal(x, 1.0)), None), 0.0, None, length=3)[0]

    assert len(np.unique(po.importance(jax.random.key(0), chain(), n=100).values)) == 100
