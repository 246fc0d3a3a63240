"""What is compiled once stays compiled: other values, weights, prompts and thresholds are arguments. And runs repeat."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

import posterity as po
from posterity.tests.fixtures.tiny_lm import language_model

traced = []  # one entry each time Python runs a program's function


@po.program
def walk(ys, noise):
    traced.append("walk")
    x = po.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, noise), y)
        return x

    return po.scan(step, x, ys)


@po.program
def letters(lm, prompt):
    """Three letters, rarely an a."""
    traced.append("letters")

    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("rarely an a", jnp.where(token == 0, -2.0, 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=3)


@pytest.fixture
def compiled(caplog):
    """Runs `call` and returns how often Python ran a program's function, and what was compiled."""

    def count(call):
        traced.clear()
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
            jax.block_until_ready(call())
        return len(traced), [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]

    return count


def test_other_values_do_not_recompile(compiled):
    def run(seed, ys, noise, **options):
        key = jax.random.key(seed)
        return compiled(lambda: po.smc(key, walk(jnp.asarray(ys), noise), n=8, **options))

    first = run(0, [1.0, 2.0], 0.5)
    assert first[0] > 0
    assert any("_compiled" in message for message in first[1])
    assert run(1, [0.0, -3.0], 0.7) == (0, [])
    assert run(1, [0.0, -3.0], 0.7, threshold=0.9) == (0, [])
    assert run(1, [0.0, -3.0], 0.7, threshold=1) == (0, [])
    assert run(1, [0.0, -3.0, 1.0], 0.7)[0] > 0  # one more step is another program


def test_other_weights_and_prompts_do_not_recompile(compiled):
    models = [language_model(seed) for seed in range(2)]
    key = jax.random.key(0)
    assert compiled(lambda: po.smc(key, letters(models[0], models[0].prompt("ab")), n=4))[0] > 0
    assert compiled(lambda: po.smc(key, letters(models[1], models[1].prompt("ab")), n=4)) == (0, [])
    assert compiled(lambda: po.smc(key, letters(models[0], models[0].prompt("dcbabcd")), n=4)) == (0, [])


def constants(jaxpr):
    """Every constant of a jaxpr and of the jaxprs in it. (Until JAX 0.12 only closed ones hold constants.)"""
    yield from getattr(jaxpr, "consts", ())
    for equation in jaxpr.eqns:
        yield from (variable.val for variable in equation.invars if isinstance(variable, Literal))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))):
            if isinstance(inner, (ClosedJaxpr, Jaxpr)):
                yield from constants(inner)


def largest_constant(program):
    return max(np.size(x) for x in constants(jax.make_jaxpr(lambda key, program: po.smc(key, program, n=4))(jax.random.key(0), program)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_arguments_not_constants(dtype):
    lm = language_model().astype(dtype)
    assert lm.parameters > 4_000
    assert largest_constant(letters(lm, lm.prompt("ab"))) <= 1_000


def test_the_search_for_constants_finds_one():
    table = jnp.arange(2_000.0)

    @po.program
    def closed_over():
        return table[po.sample("x", dist.Bernoulli(0.5))]

    assert largest_constant(closed_over()) == 2_000


def assert_equal(one, other, tolerance=0.0):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_same_key_gives_the_same_bits():
    program = walk(jnp.array([1.0, 2.0]), 0.5)
    assert_equal(po.smc(jax.random.key(0), program, n=8), po.smc(jax.random.key(0), program, n=8))
    assert not np.array_equal(po.smc(jax.random.key(0), program, n=8).values, po.smc(jax.random.key(1), program, n=8).values)


def test_steps_compiled_one_by_one_give_the_same_bits():
    program = walk(jnp.array([1.0, 2.0]), 0.5)
    assert_equal(po.smc(jax.random.key(0), program, n=8), po.smc(jax.random.key(0), program, n=8, progress=True))


def test_without_compilation_a_run_is_the_same_within_rounding():
    # Not bit for bit: fused operations round differently.
    program = walk(jnp.array([1.0, 2.0]), 0.5)
    with jax.disable_jit():
        eager = po.smc(jax.random.key(0), program, n=8)
    compiled = po.smc(jax.random.key(0), program, n=8)
    np.testing.assert_array_equal(eager.ancestors, compiled.ancestors)
    assert_equal(eager, compiled, tolerance=1e-5)


def test_runs_map_over_keys_and_over_the_data_of_programs():
    keys = jax.random.split(jax.random.key(0), 2)
    data = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    together = jax.vmap(lambda key, ys: po.smc(key, walk(ys, 0.5), n=8))(keys, data)
    for i in range(2):
        alone = po.smc(keys[i], walk(data[i], 0.5), n=8)
        assert_equal(jax.tree.map(lambda x, i=i: x[i], together), alone, tolerance=1e-5)
