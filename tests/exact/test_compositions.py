"""Resample-move SMC and SMC^2 are properly weighted, nested programs mean what they are nested from: exactly, on random finite programs."""

from functools import cache

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

import posterity as po
from posterity.inference import blocks
from posterity.inference.drive import drive
from posterity.inference.mcmc import pmmh
from posterity.inference.mcmc.metropolis import suffix_mh
from posterity.ppl.effects import cond
from posterity.tests.fixtures import finite, hierarchical
from posterity.tests.fixtures.finite import FEW, arrays

pytestmark = pytest.mark.slow

STOPPING = ([0.75, 0.25], [[0.5, 0.5], [0.25, 0.75]], [[1.0, 1.0], [0.25, 2.0], [0.5, 1.5]], [1.0, 3.0, 0.25])
HIERARCHY = ([0.25, 0.75], [0.875, 0.25], [[0.5, 2.0], [1.0, 0.25]])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@cache
def moving(n, threshold=1.0, moves=1):
    return lambda key, program: po.resample_move(key, program, n=n, moves=moves, threshold=threshold)


@cache
def smc2(n, inner):
    return lambda key, program: po.smc2(key, program.parameters, program.model, n=n, inner=inner, threshold=0.8)


def a_stopping_one():
    return finite.stopping(*arrays(*STOPPING))


@pytest.mark.parametrize(("n", "threshold", "moves"), [(2, 0.8, 1), (1, 1.0, 2)])
@given(program=finite.stoppings())
@settings(FEW, max_examples=3)
def test_resample_move_is_properly_weighted(laws, n, threshold, moves, program):
    laws.holds("resample_move", po.check.properly_weighted(moving(n, threshold, moves), program))


@given(tables=hierarchical.hierarchies())
@FEW
def test_nested_programs_keep_the_meaning(laws, tables):
    laws.holds("nested", po.check.same_meaning(hierarchical.nested(*tables, inner=2), hierarchical.joint(*tables)))


@pytest.mark.parametrize(("n", "inner"), [(2, 1), (1, 2)])
@given(tables=hierarchical.hierarchies())
@settings(FEW, max_examples=3)
def test_smc2_is_properly_weighted(laws, n, inner, tables):
    program = hierarchical.nested(*tables, inner=inner)
    laws.holds("smc2", po.check.properly_weighted(smc2(n, inner), program, meaning=hierarchical.joint(*tables)))


def only_after_resampling(key, program, population):
    """Resample-move that moves when the weights were uneven: which the particles decide."""
    population, info = blocks.resample_below(0.8, key, program, population)
    time = jnp.max(population.particles.time)
    population = cond(info.resampled, lambda p: blocks.move(key, program, p, suffix_mh, time)[0], lambda p: p, population)
    return blocks.advance(key, program, population), info._replace(accepted=jnp.ones(()))


def run_with(step, **options):
    return lambda key, program: drive(key, po.recorded(program), 2, blocks.spawn, jax.tree_util.Partial(step), history=False, progress=False, **options)


def always(key, program, population):
    population, _ = blocks.move(key, program, population, suffix_mh, jnp.max(population.particles.time))
    return blocks.advance(key, program, population), blocks.Info(jnp.ones(()), jnp.zeros((), bool), None, jnp.ones(()))


def test_resample_move_is_properly_weighted_where_its_mutants_are_not(laws):
    laws.holds("resample_move", po.check.properly_weighted(moving(2, threshold=0.8), a_stopping_one()))


def test_moving_only_after_resampling_is_biased(laws):
    laws.fails("resample-move that moves after resampling only", po.check.properly_weighted(run_with(only_after_resampling, moves=True), a_stopping_one()))


def test_stopping_when_all_particles_have_ended_is_biased_where_moves_may_revive_them(laws):
    laws.fails("resample-move that stops when all have ended", po.check.properly_weighted(run_with(always), a_stopping_one()))


def test_smc2_whose_moves_forget_the_inner_evidence_is_refuted(laws, monkeypatch):
    accept = pmmh.accept
    monkeypatch.setattr(pmmh, "accept", lambda key, log_new, log_old, log_factor: accept(key, jnp.zeros_like(log_new), jnp.zeros_like(log_old), log_factor))
    program = hierarchical.nested(*arrays(*HIERARCHY), inner=1)
    report = po.check.properly_weighted(lambda *given: smc2(1, 1)(*given), program, meaning=hierarchical.joint(*arrays(*HIERARCHY)))
    laws.fails("smc2 whose moves forget the inner evidence", report)


def test_smc2_that_forgets_the_inner_evidence_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(blocks, "evidence", lambda population: jnp.zeros(()))
    program = hierarchical.nested(*arrays(*HIERARCHY), inner=1)
    report = po.check.properly_weighted(lambda *given: smc2(1, 1)(*given), program, meaning=hierarchical.joint(*arrays(*HIERARCHY)))
    laws.fails("smc2 that forgets the inner evidence", report)
