"""`outcomes` meets every way a computation can go, once, with its probability."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.enumeration.outcomes import outcomes
from posterity.ppl.support import atoms


def test_later_draws_may_depend_on_earlier_ones():
    def run():
        n = int(po.sample("n", dist.Categorical(jnp.array([0.5, 0.0, 0.5]))))
        return tuple(int(po.sample(f"x{i}", dist.Bernoulli(0.25))) for i in range(n))

    found = {outcome.result: outcome.probability for outcome in outcomes(run)}
    assert found == pytest.approx({(): 0.5, (0, 0): 0.5 * 0.5625, (0, 1): 0.5 * 0.1875, (1, 0): 0.5 * 0.1875, (1, 1): 0.5 * 0.0625})


def test_a_batch_of_draws_is_their_product():
    def run():
        with numpyro.plate("plate", 2):
            x = po.sample("x", dist.Bernoulli(jnp.array([0.5, 0.25])))
        return tuple(map(int, x))

    found = {outcome.result: outcome.probability for outcome in outcomes(run)}
    assert found == pytest.approx({(0, 0): 0.375, (0, 1): 0.125, (1, 0): 0.375, (1, 1): 0.125})


LAWS = {
    "Bernoulli by probabilities": dist.Bernoulli(jnp.array([[0.5], [0.125]])),
    "Bernoulli by a number": dist.Bernoulli(0.3),
    "Bernoulli by logits": dist.Bernoulli(logits=jnp.array([-1.0, 0.0, 30.0])),
    "categorical by probabilities": dist.Categorical(jnp.array([[0.5, 0.0, 0.5], [0.25, 0.125, 0.625]])),
    "categorical by logits": dist.Categorical(logits=jnp.array([[0.0, 1.0, -9.0], [3.0, -2.0, 1.0]])),
    "by NumPyro": dist.Binomial(3, 0.25),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_choice_can_be_what_numpyro_says_with_the_probability_that_it_says(name):
    law = LAWS[name]
    values, log_probs = atoms({"name": "x", "fn": law, "kwargs": {}})
    support = law.enumerate_support()
    size, draws = log_probs.shape
    assert (size, draws) == (len(support), law.log_prob(support)[0].size)
    for k in range(size):
        value = values(jnp.full(draws, k, jnp.uint32))
        assert value.shape == law.batch_shape
        assert value.dtype == support.dtype
        assert np.array_equal(value, jnp.broadcast_to(support[k], law.batch_shape))
    np.testing.assert_allclose(np.exp(log_probs), np.exp(law.log_prob(support)).reshape(size, draws), rtol=2e-6, atol=0)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_what_is_certain_is_certain(p):
    _, log_probs = atoms({"name": "x", "fn": dist.Bernoulli(p), "kwargs": {}})
    assert np.exp(log_probs).ravel().tolist() == [1 - p, p]  # NumPyro's own density keeps a part in 10^7 for the other


def test_observations_are_no_choices():
    def run():
        po.observe("y", dist.Bernoulli(0.3), 1)
        po.factor("f", -1.0)
        return int(po.sample("x", dist.Bernoulli(0.5)))

    assert [outcome.result for outcome in outcomes(run)] == [1, 0]


def test_a_continuous_choice_is_named():
    @po.program
    def heights():
        return po.sample("height", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'height' has no finite support: Normal"):
        next(outcomes(lambda: po.importance(jax.random.key(0), heights(), n=1)))


def test_a_draw_in_compiled_code_is_named():
    with pytest.raises(ValueError, match="'x' is drawn in compiled code"):
        next(outcomes(lambda: jax.vmap(lambda p: po.sample("x", dist.Bernoulli(p)))(jnp.ones(2) / 2)))


def test_a_run_that_depends_on_something_else_is_refused():
    names = iter("abcd")

    with pytest.raises(ValueError, match="one run went on with 'a' and another with 'c'"):
        list(outcomes(lambda: [po.sample(next(names), dist.Bernoulli(0.5)), po.sample(next(names), dist.Bernoulli(0.5))]))


def test_enumeration_leaves_no_trace():
    before = list(numpyro.primitives._PYRO_STACK)
    walk = outcomes(lambda: po.sample("x", dist.Bernoulli(0.5)))
    next(walk)
    assert before == numpyro.primitives._PYRO_STACK
    assert jax.config.jax_disable_jit is False
