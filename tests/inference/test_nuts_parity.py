"""One program object under SMC and under NumPyro: its handlers and NUTS see the same model.

NUTS and SMC are compared with the exact posterior; the tolerances are about five Monte Carlo standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

import posterity as po
from posterity.tests.fixtures import references
from posterity.tests.fixtures.references import walk

YS = jnp.asarray(references.YS, jnp.float32)


@po.program
def line(x, y):
    """A static program: a line through the origin with known noise; conjugate."""
    slope = po.sample("slope", dist.Normal(0.0, 2.0))
    po.observe("y", dist.Normal(slope * x, 0.5), y)
    return slope


@po.program
def hitting(ys):
    """A walk that stands still once it has gone beyond 1, where observations say nothing any more; its value is the last state and the drift."""
    drift = po.sample("drift", dist.Normal(0.5, 0.5))

    def step(carry, y):
        x = po.sample("x", dist.Normal(carry[0] + drift, 0.5))
        po.observe("y", dist.Normal(x, 0.5), y)
        return x, drift

    return po.scan(step, (0.0, drift), ys, until=lambda carry: carry[0] > 1)


def nuts(model, *args, samples=3_000):
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=samples, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    return mcmc.get_samples()


@pytest.mark.parametrize("bound", [False, True], ids=["NUTS(walk)", "NUTS(walk(ys))"])
def test_a_state_space_program_has_one_posterior(bound):
    _, mean, covariance = references.walk_posterior(references.YS)
    samples = nuts(walk(YS)) if bound else nuts(walk, YS)
    states = np.concatenate([samples["x0"][:, None], samples["x"]], axis=1)
    np.testing.assert_allclose(states.mean(axis=0), mean, atol=0.06)
    np.testing.assert_allclose(states.std(axis=0), np.sqrt(np.diag(covariance)), atol=0.05)

    posterior = po.smc(jax.random.key(1), walk(YS), n=10_000)
    spread = jnp.sqrt(posterior.expect(lambda x: x**2) - posterior.expect() ** 2)
    assert posterior.expect() == pytest.approx(mean[-1], abs=0.05)
    assert spread == pytest.approx(np.sqrt(covariance[-1, -1]), abs=0.04)


def test_a_static_program_has_one_posterior():
    x = jnp.array([-1.0, 0.5, 2.0])
    y = jnp.array([-0.8, 0.9, 1.7])
    precision = 1 / 4 + 4 * float(x @ x)
    mean, spread = 4 * float(x @ y) / precision, precision**-0.5
    slopes = nuts(line, x, y)["slope"]
    assert slopes.mean() == pytest.approx(mean, abs=0.03)
    assert slopes.std() == pytest.approx(spread, abs=0.02)

    posterior = po.smc(jax.random.key(1), line(x, y), n=20_000)
    assert posterior.expect() == pytest.approx(mean, abs=0.02)
    assert jnp.sqrt(posterior.expect(lambda s: (s - mean) ** 2)) == pytest.approx(spread, abs=0.02)
    seen = dist.MultivariateNormal(jnp.zeros(3), 4 * jnp.outer(x, x) + 0.25 * jnp.eye(3))
    assert posterior.log_evidence == pytest.approx(float(seen.log_prob(y)), abs=0.05)


@pytest.mark.slow
def test_a_program_with_until_has_one_posterior():
    # Choices after the end keep their law (a flat density there would let NUTS wander off), observations there do not count.
    ys = jnp.array([0.9, 1.4, -3.0])
    drift = nuts(hitting, ys)["drift"]
    posterior = po.importance(jax.random.key(1), hitting(ys), n=200_000)
    mean, square = posterior.expect(lambda carry: jnp.stack([carry[1], carry[1] ** 2])).tolist()
    assert drift.mean() == pytest.approx(mean, abs=0.05)
    assert drift.std() == pytest.approx((square - mean**2) ** 0.5, abs=0.04)


def test_seed_and_trace_see_every_site():
    sites = handlers.trace(handlers.seed(walk, 0)).get_trace(YS)
    assert {name: jnp.shape(site["value"]) for name, site in sites.items() if site["type"] == "sample"} == {"x0": (), "x": (4,), "y": (4,)}
    assert sites["y"]["is_observed"]


def test_substitute_gives_the_result_and_its_density():
    states = {"x0": jnp.array(0.1), "x": jnp.array([0.5, 1.0, 0.0, 0.2])}
    assert handlers.substitute(handlers.seed(walk, 0), states)(YS) == pytest.approx(0.2)
    found, _ = log_density(walk, (YS,), {}, states)
    path = jnp.concatenate([states["x0"][None], states["x"]])
    expected = dist.Normal().log_prob(path[0]) + dist.Normal(path[:-1], 1.0).log_prob(path[1:]).sum() + dist.Normal(path[1:], 0.5).log_prob(YS).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_condition_fixes_choices():
    conditioned = handlers.condition(walk(YS), {"x": jnp.arange(4.0)})
    assert handlers.seed(conditioned, 0)() == 3
    assert handlers.trace(handlers.seed(conditioned, 0)).get_trace()["x"]["is_observed"]


def test_until_holds_under_numpyro():
    for seed in range(5):
        with handlers.trace() as sites, handlers.seed(rng_seed=seed):
            end, _ = hitting(jnp.zeros(6))
        beyond = np.flatnonzero(np.asarray(sites["x"]["value"]) > 1)
        last = beyond[0] if len(beyond) else 5
        assert end == sites["x"]["value"][last]
        np.testing.assert_array_equal(np.asarray(sites["y"]["fn"].log_prob(sites["y"]["value"])) != 0, np.arange(6) <= last)


def test_handlers_around_an_inference_do_not_see_its_inside():
    def model():
        inner = po.importance(jax.random.key(0), line.bind(jnp.ones(2), jnp.ones(2)), n=10)
        return po.sample("x", dist.Normal(inner.expect(), 1.0))

    assert set(handlers.trace(handlers.seed(model, 0)).get_trace()) == {"x"}
