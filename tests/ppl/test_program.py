"""What a program is: a function with its arguments, as a pytree and as a batch of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import posterity as po
from posterity.ppl.program import is_program
from posterity.tests.fixtures.references import walk


@po.program
def biased(p, flips, *, times: int = 1, name: str = "coin", prior=dist.Beta):
    """A coin's bias; `times` and `name` are static."""
    bias = po.sample(name, prior(p, 1.0))
    for i in range(times):
        po.observe(f"flips {i}", dist.Bernoulli(bias), flips)
    return {"bias": bias, "odds": bias / (1 - bias)}


FLIPS = jnp.array([1, 0, 1])


def test_arrays_and_floats_are_leaves_and_the_rest_is_static():
    assert len(jax.tree.leaves(biased(2.0, FLIPS, times=3, name="c"))) == 2
    assert jax.tree.structure(biased(2.0, FLIPS)) == jax.tree.structure(biased(1.0, 1 - FLIPS))
    assert jax.tree.structure(biased(2.0, FLIPS)) != jax.tree.structure(biased(2.0, FLIPS, times=2))
    assert jax.tree.structure(biased(2.0, FLIPS)) != jax.tree.structure(biased(2, FLIPS))  # an int is static
    assert len(jax.tree.leaves(biased(np.float32(2.0), np.array([1, 0])))) == 2


def test_a_program_maps_and_passes_through_jit_as_a_pytree():
    doubled = jax.tree.map(lambda x: 2 * x, walk(jnp.array([1.0, 2.0])))
    np.testing.assert_array_equal(jax.tree.leaves(doubled)[0], [2.0, 4.0])
    inside = jax.jit(lambda key, program: po.importance(key, program, n=5).log_evidence)(jax.random.key(0), doubled)
    assert float(inside) == pytest.approx(float(po.importance(jax.random.key(0), walk(jnp.array([2.0, 4.0])), n=5).log_evidence), rel=1e-5)


def test_the_protocol_batches_what_the_function_says_of_one_particle():
    program = walk(jnp.array([1.0, 2.0]))
    assert is_program(program)
    assert isinstance(program, po.Program)
    assert program.length == 2
    particles, log_potential = program.init(jax.random.key(0), 3)
    np.testing.assert_array_equal(log_potential, np.zeros(3))
    assert not program.done(particles).any()
    before = program.value(particles)
    particles, log_potential = program.step(jax.random.key(1), program.select(particles, jnp.array([2, 2, 0])))
    np.testing.assert_allclose(log_potential, dist.Normal(program.value(particles), 0.5).log_prob(1.0), rtol=1e-5)
    np.testing.assert_array_equal(particles.choices["x0"], before[jnp.array([2, 2, 0])])
    particles, _ = program.step(jax.random.key(2), particles)
    assert program.done(particles).all()


def test_a_done_particle_stands_still_at_weight_one():
    program = walk(jnp.array([1.0]))
    particles, _ = program.init(jax.random.key(0), 3)
    particles, _ = program.step(jax.random.key(1), particles)
    again, log_potential = program.step(jax.random.key(2), particles)
    np.testing.assert_array_equal(log_potential, np.zeros(3))
    np.testing.assert_array_equal(program.value(again), program.value(particles))


def test_a_program_without_scan_is_static():
    posterior = po.smc(jax.random.key(0), biased(1.0, FLIPS, times=2), n=4_000)
    assert int(posterior.steps) == 0
    assert float(posterior.expect(lambda v: v["bias"])) == pytest.approx(5 / 8, abs=0.02)  # Beta(1 + 4, 1 + 2)
    assert float(jnp.exp(posterior.log_evidence)) == pytest.approx(1 / 105, rel=0.1)  # B(5, 3)


def test_a_program_without_choices_has_an_exact_evidence():
    @po.program
    def certain():
        po.observe("y", dist.Normal(0.0, 1.0), 1.0)
        return 7

    posterior = po.importance(jax.random.key(0), certain, n=3)  # without arguments the definition will do
    assert float(posterior.log_evidence) == pytest.approx(float(dist.Normal(0.0, 1.0).log_prob(1.0)))
    assert list(posterior.answers()) == [7]


def test_a_scan_of_no_steps_is_its_initial_law():
    @po.program
    def still():
        x = po.scan(lambda x, _: x + 1, po.sample("x", dist.Normal(0.0, 1.0)), length=0)
        po.factor("f", x - x - 1.0)
        return x

    posterior = po.smc(jax.random.key(0), still(), n=3)
    assert float(posterior.log_evidence) == pytest.approx(-1)
    assert int(posterior.steps) == 0


def test_a_program_called_in_a_program_runs_in_place():
    @po.program
    def two(flips):
        return biased(1.0, flips, name="first")["bias"]

    posterior = po.importance(jax.random.key(0), two(FLIPS), n=2_000)
    assert float(posterior.expect()) == pytest.approx(3 / 5, abs=0.03)


def test_a_bound_program_is_data_within_another():
    @po.program
    def evidence(ys):
        inner = po.importance(jax.random.key(0), walk.bind(ys), n=5)
        x = po.sample("x", dist.Normal(0.0, 1.0))
        po.factor("inner evidence", inner.log_evidence)
        return x

    ys = jnp.array([0.5])
    inner = po.importance(jax.random.key(0), walk(ys), n=5).log_evidence
    assert float(po.importance(jax.random.key(1), evidence(ys), n=4).log_evidence) == pytest.approx(float(inner), rel=1e-5)


def test_a_bound_program_runs_as_a_model():
    value = handlers.seed(walk(jnp.array([1.0, 2.0])), 0)()
    assert value == handlers.seed(walk, 0)(jnp.array([1.0, 2.0]))


def test_arguments_must_fit():
    with pytest.raises(TypeError, match="walk: missing a required argument: 'ys'"):
        walk()
    with pytest.raises(TypeError, match="walk: got an unexpected keyword argument 'zs'"):
        walk(jnp.ones(2), zs=1)
    with pytest.raises(TypeError, match="walk: an argument holds a set, which is neither an array, a number nor hashable"):
        walk({1.0, 2.0})


def test_programs_have_names():
    assert repr(walk) == "<definition of program walk>"
    assert repr(walk(jnp.ones(1))) == "<program walk>"
    assert walk.__doc__.startswith("A Gaussian random walk")


def test_rows_that_a_plate_takes_before_the_scan_are_kept_in_its_steps():
    @po.program
    def rows_twice():
        with numpyro.plate("rows", 20, subsample_size=3) as rows:
            pass
        return po.scan(lambda carry, _: (carry[0], rows), (rows, jnp.zeros(3, int)), length=2)

    first, last = po.importance(jax.random.key(0), rows_twice(), n=4).values
    assert len(np.unique(np.asarray(first), axis=0)) > 1
    np.testing.assert_array_equal(first, last)
