"""The blocks of particle algorithms keep the meaning of the population they are given, each one alone: exactly, on random finite programs."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from jax import Array

import posterity as po
from posterity.inference import blocks
from posterity.inference.mcmc.metropolis import suffix_mh
from posterity.inference.smc.resampling import SCHEMES
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


class Measured(NamedTuple):
    """A population as weighted values."""

    values: Any
    log_weights: Array
    log_evidence: Array


def measured(program, population):
    return Measured(program.value(population.particles), population.log_weights, population.log_evidence)


@cache
def spawned(n):
    return lambda key, program: measured(program, blocks.spawn(key, program, n))


@cache
def resampled(n, scheme):
    def run(key, program):
        always = 2.0  # an effective sample size of less than 2n; only without any weight there is nothing to resample
        return measured(program, blocks.resample_below(always, key, program, blocks.spawn(key, program, n), scheme)[0])

    return run


def to_the_end(key, program):
    """Spawn two, advance twice, resampling never."""
    population = blocks.spawn(key, program, 2)
    for _ in range(2):
        population = blocks.advance(key, program, population)
    return population


def advanced(key, program):
    return measured(program, to_the_end(key, program))


def collapsed(key, program):
    """The evidence pushed out, one particle left."""
    population = to_the_end(key, program)
    chosen = blocks.collapse(key, population)
    values = jax.tree.map(lambda x: x[chosen][None], program.value(population.particles))
    return Measured(values, jnp.zeros(1), blocks.evidence(population))


def moved(key, program):
    """Two particles, each moved twice before they are measured."""
    program = po.recorded(program)
    return measured(program, blocks.move(key, program, blocks.spawn(key, program, 2), suffix_mh, 0, times=2)[0])


@pytest.mark.parametrize("n", [1, 3])
@given(program=finite.statics())
@FEW
def test_spawn_keeps_the_meaning(laws, n, program):
    laws.holds("block: spawn", po.check.properly_weighted(spawned(n), program))


@pytest.mark.parametrize(("scheme", "n"), [*((scheme, 2) for scheme in SCHEMES), ("systematic", 3)])
@given(program=finite.statics())
@FEW
def test_resample_keeps_the_meaning(laws, scheme, n, program):
    laws.holds(f"block: resample, {scheme}", po.check.properly_weighted(resampled(n, SCHEMES[scheme]), program))


@given(program=finite.stoppings())
@FEW
def test_advance_keeps_the_meaning(laws, program):
    laws.holds("block: advance", po.check.properly_weighted(advanced, program))


@given(program=finite.stoppings())
@FEW
def test_pushing_the_evidence_out_and_collapsing_keeps_the_meaning(laws, program):
    laws.holds("block: push evidence, collapse", po.check.properly_weighted(collapsed, program))


@given(program=finite.statics())
@FEW
def test_move_keeps_the_meaning(laws, program):
    laws.holds("block: move", po.check.properly_weighted(moved, program))


def forgets(key, program):
    """Collapses without pushing the evidence out."""
    return collapsed(key, program)._replace(log_evidence=jnp.zeros(()))


def uniform(key, program):
    """Collapses to the first particle, whatever the weights."""
    population = to_the_end(key, program)
    return Measured(jax.tree.map(lambda x: x[:1], program.value(population.particles)), jnp.zeros(1), blocks.evidence(population))


@pytest.mark.parametrize(("mutant", "algorithm"), [("collapse forgets the evidence", forgets), ("collapse takes the first", uniform)])
def test_the_proof_refutes(laws, mutant, algorithm):
    program = finite.stopping(*finite.arrays([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]], [1.0, 3.0, 0.25]))
    laws.fails(mutant, po.check.properly_weighted(algorithm, program))
