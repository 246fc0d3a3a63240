"""Programs run forwards: simulated data have the program's law, and other data take the place of those it has."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures.references import walk


@po.program
def weather(start, wet):
    today = po.sample("today", dist.Bernoulli(0.3))
    po.observe("first", dist.Bernoulli(jnp.where(today, 0.9, 0.1)), start)

    def step(rain, wet):
        rain = po.sample("rain", dist.Bernoulli(jnp.where(rain, 0.6, 0.2)))
        po.observe("grass", dist.Bernoulli(jnp.where(rain, 0.9, 0.1)), wet)
        return rain

    return po.scan(step, today, wet)


def test_other_data_make_the_program_of_those_data():
    program = po.observing(weather(0, jnp.array([0, 0])), {"first": 1, "grass": jnp.array([1, 0])})
    assert po.check.same_meaning(program, weather(1, jnp.array([1, 0])))
    some = po.observing(weather(0, jnp.array([0, 0])), {"grass": jnp.array([1, 0])})
    assert po.check.same_meaning(some, weather(0, jnp.array([1, 0])))


def test_simulated_data_and_results_have_the_joint_law():
    """A walk of variance t seen in noise of variance 1/4, and its last state: their covariance, within 5 standard errors at 4,000 draws."""
    simulated = po.simulate(jax.random.key(0), walk(jnp.zeros(3)), 4_000)
    assert simulated.data["y"].shape == simulated.drawn["x"].shape == (4_000, 3)
    assert set(simulated.choices) == {"x0"}
    np.testing.assert_array_equal(simulated.values, simulated.drawn["x"][:, -1])
    joint = np.column_stack([simulated.data["y"], simulated.values])
    expected = np.minimum.outer([2, 3, 4, 4], [2, 3, 4, 4]) + np.diag([0.25] * 3 + [0])
    np.testing.assert_allclose(np.cov(joint.T), expected, atol=5 * 4.25 * np.sqrt(2 / 4_000))


def test_one_law_for_many_data_is_drawn_for_each():
    @po.program
    def coin(flips):
        p = po.sample("p", dist.Beta(1.0, 1.0))
        po.observe("flips", dist.Bernoulli(p), flips)
        return p

    flips = po.simulate(jax.random.key(0), coin(jnp.zeros(50)), 4).data["flips"]
    assert flips.shape == (4, 50)
    assert ((flips.mean(axis=1) > 0) & (flips.mean(axis=1) < 1)).any()


def test_simulated_programs_compile_once():
    traced = []

    @po.program
    def counted(y):
        traced.append(y)
        x = po.sample("x", dist.Normal())
        po.observe("y", dist.Normal(x, 1.0), y)
        return x

    po.simulate(jax.random.key(0), counted(0.0), 3)
    before = len(traced)
    po.simulate(jax.random.key(1), counted(1.0), 3)
    assert len(traced) == before


def test_what_is_no_data_is_told():
    @po.program
    def rewarded():
        po.factor("reward", 1.0)
        return po.sample("x", dist.Normal())

    with pytest.raises(ValueError, match="weighs by the factor 'reward'"):
        po.simulate(jax.random.key(0), rewarded(), 2)
    with pytest.raises(ValueError, match="n must be at least 1"):
        po.simulate(jax.random.key(0), walk(jnp.zeros(2)), 0)
    with pytest.raises(ValueError, match="no observation named 'z'"):
        po.exact(po.observing(weather(0, jnp.array([0])), {"z": jnp.zeros(1)}))
    with pytest.raises(ValueError, match="one row for each of 1 steps"):
        po.exact(po.observing(weather(0, jnp.array([0])), {"grass": jnp.zeros(3)}))
