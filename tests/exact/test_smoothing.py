"""Backward simulation is properly weighted, and conditional SMC with other ancestors invariant: exactly, also where particles remember and end early."""

from functools import cache

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings

import posterity as po
from posterity.inference.smc import backward, conditional
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def short(start, move, potential):
    """One step of a chain with potentials; its value is the path."""
    x0 = po.sample("x0", dist.Categorical(start))
    po.factor("potential at 0", jnp.log(potential)[0, x0])

    def step(path, _):
        x = po.sample("x", dist.Categorical(move[path[0]]))
        po.factor("potential", jnp.log(potential)[1, x])
        return path.at[1].set(x)

    return po.scan(step, jnp.stack([x0, 0]), length=1)


SHORT = ([0.3, 0.7], [[0.5, 0.5], [0.1, 0.9]], [[1.0, 0.5], [0.25, 2.0]])


@cache
def ffbsi(**options):
    """Trajectories' final values, which are whole paths in these programs."""

    def run(key, program):
        posterior = po.ffbsi(key, program, n=2, draws=1, threshold=1.0, **options)
        return posterior.replace(values=posterior.values.value)

    return run


@cache
def kernel(**options):
    return lambda key, program, particles: conditional.conditional_smc(key, program, particles, **options)


@given(program=finite.stoppings())
@FEW
def test_backward_simulation_is_properly_weighted(laws, program):
    laws.holds("ffbsi, n=2", po.check.properly_weighted(ffbsi(), program))


@pytest.mark.parametrize("ancestors", ["ancestor", "backward"])
@given(program=finite.stoppings())
@settings(FEW, max_examples=4)
def test_conditional_smc_with_other_ancestors_leaves_the_path_law_invariant(laws, ancestors, program):
    laws.holds(f"conditional_smc, {ancestors}", po.check.invariant(kernel(n=2, ancestors=ancestors), po.recorded(po.retraced(program))))


def test_ancestor_sampling_goes_with_systematic_resampling(laws):
    program = po.recorded(po.retraced(short(*arrays(*SHORT))))
    laws.holds("conditional_smc, ancestor, systematic", po.check.invariant(kernel(n=3, ancestors="ancestor", resampling="systematic"), program))


# -- mutants ---------------------------------------------------------------------------------------------------------------


def forgetful(program, live, particles, drawn, time, steps):
    return jnp.zeros(particles.steps.shape)


def test_backward_simulation_that_forgets_the_transition_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(backward, "log_suffix", forgetful)
    laws.fails("ffbsi without the density of transitions", po.check.properly_weighted(lambda *given: ffbsi()(*given), short(*arrays(*SHORT))))


def test_ancestor_sampling_that_forgets_the_density_of_the_rest_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(conditional, "log_suffix", forgetful)
    mutant = lambda *given: kernel(n=2, ancestors="ancestor")(*given)  # noqa: E731
    laws.fails("ancestor sampling without the density of the rest", po.check.invariant(mutant, po.recorded(po.retraced(short(*arrays(*SHORT))))))
