"""Filters and what they say of their own error, exactly, on random finite programs."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st

import posterity as po
from posterity.inference.enumeration.check import Difference, Report
from posterity.inference.enumeration.exact import law_of
from posterity.inference.smc import controlled
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@cache
def evidences(n, resampling, threshold):
    """What a run says of the evidence: the estimate, and how it varies."""

    def run(program, key):
        posterior = po.smc(key, program, n=n, resampling=resampling, threshold=threshold)
        return posterior.log_evidence, posterior.evidence_variance(multinomial=resampling == "multinomial")

    return run


def variance_is_estimated(program, *, n, resampling="multinomial", threshold=1.0) -> Report:
    """Whether E[Z_hat^2 V_hat] = Var(Z_hat)."""
    law = law_of(evidences(n, resampling, threshold), program)
    probability, (log_evidence, variance) = np.exp(law.log_weights), law.values
    evidence = np.exp(log_evidence)
    expected = probability @ evidence**2 - (probability @ evidence) ** 2
    found = probability @ (evidence**2 * variance)
    error = float(abs(found - expected) / max(probability @ evidence**2, 1e-300))
    first = None if error < 1e-10 else Difference("variance", expected, found)
    return Report("the variance of the evidence is estimated without bias", error, 1e-10, 1, law.branches, first)


@pytest.mark.parametrize(("n", "threshold"), [(2, 1.0), (2, 0.7), (3, 1.0), (2, 0.0)])
@given(program=finite.stoppings())
@FEW
def test_the_variance_of_the_evidence_is_estimated_without_bias(laws, n, threshold, program):
    laws.holds("evidence_variance, multinomial", variance_is_estimated(program, n=n, threshold=threshold))


@given(program=finite.stoppings())
@FEW
def test_where_nothing_is_resampled_it_is_so_by_any_scheme(laws, program):
    laws.holds("evidence_variance, nothing resampled", variance_is_estimated(program, n=2, resampling="systematic", threshold=0.0))


def test_the_proof_refutes_a_variance_for_another_scheme(laws):
    program = finite.markov(*finite.arrays([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 2.0], [0.5, 0.25], [0.3, 1.5]]))
    laws.fails("evidence_variance of systematic resampling", variance_is_estimated(program, n=2, resampling="systematic"))


def by_hand(carry, _) -> Any:
    """A proposal that knows where the path is."""
    path, t = carry
    return dist.Categorical(jnp.array([[0.5, 0.5], [0.1, 0.9]])[path[t]])


FILTERS = {
    "guided": lambda p: po.propose(p, {"x": by_hand}),
    "guided auxiliary": lambda p: po.lookahead(po.propose(p, {"x": by_hand}), steps=1),
    "fully adapted auxiliary": lambda p: po.lookahead(po.adapt(p, "x"), steps=1),
}


def filter_of_two(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


@pytest.mark.parametrize("name", FILTERS)
def test_the_filters_of_the_field_are_compositions(laws, name):
    @given(program=finite.markovs())
    @FEW
    def holds(program):
        laws.holds(f"{name} filter", po.check.properly_weighted(filter_of_two, FILTERS[name](program), meaning=program))

    holds()


def test_one_pilot_of_a_locally_optimal_step_knows_the_next_observation_exactly():
    """The full adaptation of Pitt and Shephard: psi(x_t) is the next potential summed over the next state, whatever the pilot draws."""
    move, potential = finite.arrays([[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]])
    program = po.lookahead(po.adapt(finite.markov(jnp.array([0.3, 0.7]), move, potential), "x"), steps=1)
    particles, log_weights = jax.jit(program.init, static_argnums=1)(jax.random.key(0), 16)
    for time in (1, 2):
        state = program.value(particles)[:, time - 1]
        np.testing.assert_allclose(particles.log_psi, jnp.log(move @ potential[time])[state], rtol=1e-12)
        np.testing.assert_allclose(log_weights, particles.log_psi, atol=1e-12)  # no step changes weights but by what is to come
        particles, log_weights = jax.jit(program.step)(jax.random.key(time), particles)
    np.testing.assert_allclose(log_weights, 0.0, atol=1e-12)


# -- controlled SMC ------------------------------------------------------------------------------------------------------


def ones(path):
    """Features of a path: how often it is at 1."""
    return jnp.sum(path == 1)[None].astype(float)


def at_one(path):
    """Features of a path of `finite.emitting`: where it is."""
    return path[-1].astype(float)


def learned(key, program):
    return po.controlled(key, program, at_one, n=2, rounds=1, threshold=1.0)


def unlearned(key, program):
    return po.controlled(key, program, ones, n=2, rounds=2)


@given(program=finite.emittings())
@FEW
def test_a_run_under_a_twist_that_another_run_has_taught_is_properly_weighted(laws, program):
    laws.holds("controlled, one round", po.check.properly_weighted(learned, program))


@given(program=finite.statics())
@FEW
def test_without_steps_there_is_nothing_to_learn(laws, program):
    laws.holds("controlled, no steps", po.check.properly_weighted(unlearned, program))


def fits():
    """Any twist that might be learned in two steps."""
    number = st.floats(-2.0, 2.0)
    rows = st.lists(st.tuples(number, number, number, number), min_size=2, max_size=2).map(jnp.array)
    return rows.map(lambda x: controlled.Fit(x[:, :2], -jnp.abs(x[:, 2]), jnp.abs(x[:, 3])))


DESIGN = jax.tree_util.Partial(controlled._row, jax.tree_util.Partial(ones))


@given(program=finite.stoppings(), fit=fits())
@FEW
def test_whatever_was_learned_keeps_the_meaning(laws, program, fit):
    clocked = controlled.Clocked(program)
    laws.holds("controlled, any twist", po.check.same_meaning(controlled._twisted(clocked, DESIGN, fit), clocked))


def luckier(key, program):
    """Takes the round whose evidence is the larger."""
    one, other = (po.controlled(k, program, ones, n=1, rounds=0) for k in jax.random.split(key))
    return jax.tree.map(lambda a, b: jnp.where(one.log_evidence > other.log_evidence, a, b), one, other)


def test_the_proof_refutes_choosing_among_rounds(laws):
    program = finite.static(*finite.arrays([0.25, 0.75], [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], [[1.0, 2.0, 3.0], [0.0, 0.5, 2.0]]))
    laws.fails("controlled, the luckier round", po.check.properly_weighted(luckier, program))
