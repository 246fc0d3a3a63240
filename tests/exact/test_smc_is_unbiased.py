"""SMC and importance sampling are properly weighted: E[Z_hat * sum_i W_i f(x_i)] = ⟦p⟧(f) for every f, exactly.

The expectation runs over every choice of the program and of the algorithm (its own code runs, in float64), and is compared
on the measure of every path, which is all f at once.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import posterity as po
from posterity.inference.drive import drive
from posterity.inference.smc import smc
from posterity.inference.smc.resampling import SCHEMES, Ancestors, Systematic
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays

MARKOV = ([0.6, 0.4], [[0.7, 0.3], [0.0, 1.0]], [[1.0, 0.5], [0.2, 3.0], [2.0, 0.1]])
STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.0], [0.3, 1.5]], [1.0, 3.0, 0.25])


@cache
def algorithm(method, n=2, **options):
    """One function object for one algorithm: it is enumerated again without being compiled again."""
    return lambda key, program: getattr(po, method)(key, program, n=n, **options)


def the_markov_chain():
    return finite.markov(*arrays(*MARKOV))


@given(program=finite.programs())
@FEW
def test_smc_is_properly_weighted(laws, program):
    laws.holds("smc, systematic", po.check.properly_weighted(algorithm("smc", threshold=1.0), program))


@pytest.mark.parametrize("resampling", [name for name in SCHEMES if name != "systematic"])
@given(program=finite.markovs())
@FEW
def test_smc_is_properly_weighted_with_every_scheme(laws, resampling, program):
    laws.holds(f"smc, {resampling}", po.check.properly_weighted(algorithm("smc", resampling=resampling, threshold=1.0), program))


# With two particles the effective sample size lies between 1 and 2: 0.75 resamples only where the weights are far apart.
@given(program=finite.markovs())
@FEW
def test_resampling_when_the_effective_sample_size_is_low_keeps_the_weights_proper(laws, program):
    laws.holds("smc, ess threshold", po.check.properly_weighted(algorithm("smc", threshold=0.75), program))


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_smc_of_three_particles_is_properly_weighted(laws, resampling):
    laws.holds(f"smc, {resampling}", po.check.properly_weighted(algorithm("smc", n=3, resampling=resampling, threshold=1.0), the_markov_chain()))


@given(program=finite.programs())
@FEW
def test_importance_sampling_is_properly_weighted(laws, program):
    laws.holds("importance", po.check.properly_weighted(algorithm("importance"), program))


def test_the_expected_masses_are_those_of_a_plain_sum():
    for program, mass in (
        (the_markov_chain(), finite.markov_mass(*MARKOV)),
        (finite.stopping(*arrays(*STOPPING)), finite.stopping_mass(*STOPPING)),
    ):
        found = po.exact(program).outcomes()
        expected = {path: w for path, w in mass.items() if w > 0}
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[path] for path in expected], list(expected.values()), rtol=1e-6)  # the tables are float32


class Fittest(Ancestors):
    """No resampling scheme: copies the heaviest particle."""

    def _atoms(self):
        return jnp.full((1, self.size), jnp.argmax(self.log_weights), jnp.int32), jnp.ones(1)


def forgetful(key, program, population):
    """SMC that does not move the mean weight into the evidence when it resamples."""
    after, info = smc.step(key, program, population, threshold=1.0, resampling=Systematic)
    return after.replace(log_evidence=population.log_evidence), info


def careless(key, program, population):
    """SMC that leaves the weights as they were when it resamples."""
    after, info = smc.step(key, program, population, threshold=1.0, resampling=Systematic)
    return after.replace(log_weights=after.log_weights + population.log_weights), info


MUTANTS = {
    "argmax resampling": lambda key, program: po.smc(key, program, n=2, threshold=1.0, resampling=Fittest),
    "a forgotten weight": lambda key, program: drive(key, program, 2, smc.init, jax.tree_util.Partial(forgetful), history=False, progress=False),
    "a weight counted twice": lambda key, program: drive(key, program, 2, smc.init, jax.tree_util.Partial(careless), history=False, progress=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_proof_refutes(laws, mutant):
    report = po.check.properly_weighted(MUTANTS[mutant], the_markov_chain())
    laws.fails(mutant, report)
    assert "first off: (0, 0, 0): expected" in str(report)
