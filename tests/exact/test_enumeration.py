"""`outcomes` meets every way a computation can go, once, with its probability."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.ppl.outcomes import outcomes


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
