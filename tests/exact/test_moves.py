"""Kernels leave what they should invariant, πK = π: exactly, on random finite programs, where particles may end early."""

from functools import cache

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

import posterity as po
from posterity.inference.mcmc import metropolis, pmmh
from posterity.inference.smc import conditional
from posterity.inference.smc.nested import Nested
from posterity.tests.fixtures import finite, hierarchical
from posterity.tests.fixtures.finite import FEW, arrays
from posterity.tests.fixtures.posed import UNTIMED, planted, posed

pytestmark = pytest.mark.slow

STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]], [1.0, 3.0, 0.25])
HIERARCHY = ([0.25, 0.75], [0.875, 0.25], [[0.5, 2.0], [1.0, 0.25]])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def without_the_factor(wrong, accept):
    return lambda key, log_new, log_old, log_factor: accept(key, log_new, log_old, jnp.where(wrong, 0.0, log_factor))


suffix_mh = planted(metropolis.suffix_mh, (metropolis, "accept", without_the_factor))


@cache
def conditional_smc(n):
    return lambda key, program, particles: conditional.conditional_smc(key, program, particles, n=n)


def twist_of(rate, parameter):
    """A proposal that prefers to stay, the more the larger the parameter."""
    return dist.Categorical(jnp.where(parameter == 1, jnp.stack([1 - rate, rate]), jnp.array([0.5, 0.5])))


@struct.dataclass
class Estimated(Nested):
    """A nested program whose value tells the estimate too: that is the state that PMMH leaves invariant."""

    def value(self, particles):
        return super().value(particles), particles.log_weights


def with_estimate(program):
    return Estimated(program.parameters, program.model, program.threshold, program.n, program.resampling)


def with_a_proposal(key, program, particles, *, time):
    (prior,) = program.parameters.leaves[:1]
    proposal = pmmh.Proposal(dist.Categorical(prior), jax.tree_util.Partial(twist_of, jnp.asarray(0.75)))
    return pmmh.move(key, program, particles, proposal=proposal, time=time)


PMMH = {"from the prior": planted(pmmh.move), "proposed": planted(with_a_proposal, (pmmh, "accept", without_the_factor))}
PROGRAMS = {"stopping": finite.stoppings, "emitting": finite.emittings, "static": finite.statics}


@pytest.mark.parametrize("structure", PROGRAMS)
def test_redrawing_a_suffix_leaves_the_path_law_invariant(laws, structure):
    @given(program=PROGRAMS[structure](), time=st.sampled_from([None, 1]))
    @FEW
    def invariant(program, time):
        name = "suffix_mh" if time is None or not program.length else "suffix_mh, after 1 step"
        laws.holds(name, po.check.invariant(suffix_mh, posed(po.recorded(program), time=time)))

    invariant()


@pytest.mark.parametrize(("structure", "n"), [("stopping", 2), ("emitting", 3), ("static", 3)])
def test_conditional_smc_leaves_the_path_law_invariant(laws, structure, n):
    @given(program=PROGRAMS[structure]())
    @FEW
    def invariant(program):
        laws.holds(f"conditional_smc, n={n}", po.check.invariant(conditional_smc(n), po.recorded(program)))

    invariant()


@pytest.mark.parametrize("name", PMMH)
@given(tables=hierarchical.hierarchies(), time=st.sampled_from([None, 0]))
@settings(FEW, max_examples=4)
def test_pmmh_leaves_the_law_of_parameters_estimate_and_path_invariant(laws, name, tables, time):
    program = with_estimate(hierarchical.nested(*tables, inner=2))
    laws.holds(f"pmmh, {name}" if time is None else f"pmmh, {name}, before any step", po.check.invariant(PMMH[name], posed(program, time=time)))


def a_stopping_one():
    return po.recorded(finite.stopping(*arrays(*STOPPING)))


def test_moves_without_the_ratio_of_lengths_are_refuted(laws):
    laws.fails("suffix_mh without n / n'", po.check.invariant(suffix_mh, posed(a_stopping_one(), fault=1)))
    laws.fails("suffix_mh that is not told the time", po.check.invariant(suffix_mh, posed(a_stopping_one(), time=1, fault=UNTIMED)))


def test_pmmh_without_the_ratio_of_proposals_is_refuted(laws):
    program = with_estimate(hierarchical.nested(*arrays(*HIERARCHY), inner=2))
    laws.fails("pmmh without q(x|x') / q(x'|x)", po.check.invariant(PMMH["proposed"], posed(program, fault=1)))
    laws.fails("pmmh that is not told the time", po.check.invariant(PMMH["proposed"], posed(program, time=0, fault=UNTIMED)))


def test_pmmh_that_estimates_its_present_state_anew_is_refuted(laws):
    def anew(key, program, particles):
        here, there = jax.random.split(key)
        again = program.at(here, particles.parameters, jnp.zeros(1))
        return pmmh.move(there, program, pmmh.run(here, program, again, program.length))[0]

    laws.fails("pmmh with a fresh estimate of where it stands", po.check.invariant(anew, hierarchical.nested(*arrays(*HIERARCHY), inner=1)))


def test_conditional_smc_that_does_not_keep_its_path_is_refuted(laws, monkeypatch):
    grown = conditional.grown
    lost = lambda cloud, particles, log_potential, kept, log_kept, given, *rest: grown(cloud, particles, log_potential, kept, log_kept, False, *rest)  # noqa: E731
    monkeypatch.setattr(conditional, "grown", lost)
    laws.fails("conditional SMC that loses its path", po.check.invariant(lambda *given: conditional_smc(2)(*given), a_stopping_one()))
