"""What resamples otherwise than by the weights alone is properly weighted too, where it says so: exactly, on random finite programs."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import posterity as po
from posterity.inference import blocks
from posterity.inference.smc import branching
from posterity.inference.smc.resampling.optimal import Optimal
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays

FEWER = settings(FEW, max_examples=3)
MARKOV = ([0.6, 0.4], [[0.7, 0.3], [0.0, 1.0]], [[1.0, 0.5], [0.2, 3.0], [2.0, 0.1]])
POLICIES = {"exponent given": po.entropic(exponent=0.5), "exponent found": po.entropic(0.9), "not corrected": po.biased_entropic(0.9)}


class Measured(NamedTuple):
    """A population as weighted values."""

    values: Any
    log_weights: Any
    log_evidence: Any


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@cache
def smc(policy, n):
    return lambda key, program: po.smc(key, program, n=n, threshold=1.0, resampling=POLICIES[policy])


@pytest.mark.parametrize("policy", ["exponent given", "exponent found"])
@given(program=finite.markovs())
@FEWER
def test_entropic_resampling_is_properly_weighted(laws, policy, program):
    laws.holds(f"smc, entropic, {policy}", po.check.properly_weighted(smc(policy, 2), program))


def test_entropic_resampling_that_forgets_what_is_left_of_the_weights_is_biased(laws):
    laws.fails("entropic resampling, not corrected", po.check.properly_weighted(smc("not corrected", 2), finite.markov(*arrays(*MARKOV))))


@cache
def pruned(m, n):
    def run(key, program):
        population, _ = branching.prune(key, program, blocks.spawn(key, program, m), n)
        return Measured(program.value(population.particles), population.log_weights, population.log_evidence)

    return run


@given(program=finite.statics())
@FEWER
def test_optimal_resampling_keeps_the_meaning(laws, program):
    laws.holds("block: prune", po.check.properly_weighted(pruned(3, 2), program))


def branched(key, program):
    return po.branching_smc(key, program, n=2, children=2)


@given(program=finite.markovs())
@FEWER
def test_branching_smc_is_properly_weighted(laws, program):
    laws.holds("branching_smc", po.check.properly_weighted(branched, program))


def test_optimal_resampling_whose_survivors_keep_their_weights_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(Optimal, "log_chances", property(lambda law: jnp.zeros_like(law.log_weights)))
    laws.fails(
        "branching_smc whose survivors weigh what they did", po.check.properly_weighted(lambda *given: branched(*given), finite.markov(*arrays(*MARKOV)))
    )


@jax.jit
def survivors(log_weights):
    law = Optimal(log_weights, 2)
    vectors, log_probs = law.atoms()
    return vectors, jnp.exp(log_probs), law.log_chances


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.25, 1.0, 1.0, 7.0]), min_size=4, max_size=4).filter(any))
@settings(FEW, max_examples=25)
def test_optimal_resampling_keeps_heavy_particles_and_others_in_proportion(weights):
    weights = np.array(weights)
    vectors, probabilities, log_chances = map(np.asarray, survivors(np.log(weights, where=weights > 0, out=np.full(4, -np.inf))))
    copies = (vectors[:, :, None] == np.arange(4)).sum(1)
    alive = (weights > 0).sum()
    assert copies.max() == 1
    assert (copies.sum(1)[probabilities > 1e-12] == min(2, alive)).all()  # no slot is empty that could be filled
    c = np.inf if alive <= 2 else brentq(lambda c: np.minimum(1, c * weights).sum() - 2, 0.0, 1e10, xtol=1e-13, rtol=1e-15)
    expected = np.where(weights > 0, np.minimum(1, c * np.maximum(weights, 1e-300)), 0.0)
    np.testing.assert_allclose(probabilities @ copies, expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_chances), expected, atol=1e-12)
