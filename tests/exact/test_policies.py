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

pytestmark = pytest.mark.slow

FEWER = settings(FEW, max_examples=3)
STATIC = ([0.25, 0.75], [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], [[1.0, 0.25, 2.0], [3.0, 0.5, 1.0]])
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
def resampled(policy):
    def run(key, program):
        population, _ = blocks.resample(key, program, blocks.spawn(key, program, 2), POLICIES[policy])
        return Measured(program.value(population.particles), population.log_weights, population.log_evidence)

    return run


def pruned(key, program):
    population, _ = branching.prune(key, program, blocks.spawn(key, program, 3), 2)
    return Measured(program.value(population.particles), population.log_weights, population.log_evidence)


def smc(key, program):
    return po.smc(key, program, n=2, threshold=1.0, resampling=POLICIES["exponent found"])


def branched(key, program):
    return po.branching_smc(key, program, n=2, children=2)


@pytest.mark.parametrize("policy", ["exponent given", "exponent found"])
@given(program=finite.statics())
@FEWER
def test_entropic_resampling_keeps_the_meaning(laws, policy, program):
    laws.holds(f"block: resample, entropic, {policy}", po.check.properly_weighted(resampled(policy), program))


@given(program=finite.statics())
@FEWER
def test_optimal_resampling_keeps_the_meaning(laws, program):
    laws.holds("block: prune", po.check.properly_weighted(pruned, program))


@pytest.mark.parametrize(("name", "algorithm"), [("smc, entropic", smc), ("branching_smc", branched)])
@given(program=finite.markovs())
@FEWER
def test_smc_that_selects_so_is_properly_weighted(laws, name, algorithm, program):
    laws.holds(name, po.check.properly_weighted(algorithm, program))


def test_entropic_resampling_that_forgets_what_is_left_of_the_weights_is_biased(laws):
    laws.fails("entropic resampling, not corrected", po.check.properly_weighted(resampled("not corrected"), finite.static(*arrays(*STATIC))))


def test_optimal_resampling_whose_survivors_keep_their_weights_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(Optimal, "log_chances", property(lambda law: jnp.zeros_like(law.log_weights)))
    laws.fails("prune whose survivors weigh what they did", po.check.properly_weighted(lambda *given: pruned(*given), finite.static(*arrays(*STATIC))))


@pytest.mark.parametrize("ess", [0.3, 0.9])
def test_the_exponent_is_the_largest_that_leaves_enough(ess):
    weights = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    law = po.entropic(ess)(jnp.log(weights))
    softened = weights[:4] ** float(law.exponent)
    left = softened.sum() ** 2 / (softened**2).sum() / 4  # of the four that have any weight; 0.66 of them as they are
    assert float(law.exponent) == 1 if ess < 0.66 else left == pytest.approx(ess, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: po.entropic(0.0), r"entropic: ess must lie in \(0, 1\], got 0.0"),
        (lambda: po.entropic(exponent=1.5), r"entropic: exponent must lie in \(0, 1\], got 1.5"),
        (lambda: po.biased_entropic(0.5, exponent=0.5), "entropic: give ess or exponent, got both, 0.5 and 0.5"),
        (lambda: po.branching_smc(jax.random.key(0), finite.static(*arrays(*STATIC)), n=2, children=0), "children must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
