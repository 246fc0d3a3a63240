"""Runs over many devices and islands are properly weighted; here the devices are the entries of a mapped axis, on which the same collectives run."""

from functools import cache

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

import posterity as po
from posterity.inference import blocks
from posterity.inference.drive import Info, drive
from posterity.inference.scale import islands
from posterity.inference.smc.resampling import Systematic
from posterity.ppl.effects import draw
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays

pytestmark = pytest.mark.slow

TWO = AbstractMesh((2,), ("particles",))


@po.program
def pair(start, move, potential):
    """One step of a chain of two states, weighed before and after."""
    x0 = po.sample("x0", dist.Categorical(start))
    po.factor("potential at 0", jnp.log(potential)[0, x0])

    def step(path, _):
        x = po.sample("x", dist.Categorical(move[path[0]]))
        po.factor("potential", jnp.log(potential)[1, x])
        return path.at[1].set(x)

    return po.scan(step, jnp.stack([x0, 0]), length=1)


PAIRS = st.tuples(finite.laws(2), finite.tables(2, 2), finite.potentials(2, 2)).map(lambda tables: pair(*arrays(*tables)))
STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.0], [0.3, 1.5]], [1.0, 3.0, 0.25])


def the_pair():
    return pair(*arrays([0.6, 0.4], [[0.7, 0.3], [0.2, 0.8]], [[1.0, 0.5], [0.2, 3.0]]))


@cache
def algorithm(method, **options):
    return lambda key, program: getattr(po, method)(key, program, **options)


@given(program=PAIRS)
@FEW
def test_smc_over_devices_is_properly_weighted(laws, program):
    over_devices = algorithm("sharded_smc", n=4, mesh=TWO, threshold=1.0, history=False)
    laws.holds("smc over 2 devices", po.check.properly_weighted(over_devices, program))


def test_islands_over_devices_are_properly_weighted(laws):
    over_devices = algorithm("island_smc", n=4, islands=2, mesh=TWO, threshold=1.0, exchange=1.0)
    laws.holds("island smc over 2 devices", po.check.properly_weighted(over_devices, the_pair()))


def test_islands_that_end_apart_are_properly_weighted(laws):
    program = finite.stopping(*arrays(*STOPPING))
    laws.holds("island smc", po.check.properly_weighted(algorithm("island_smc", n=2, islands=2, exchange=0.75), program))


def test_stepping_in_blocks_keeps_the_weights_proper(laws):
    laws.holds("in blocks", po.check.properly_weighted(in_uneven_blocks, the_pair()))


def in_uneven_blocks(key, program):
    return po.smc(key, po.in_blocks(program, size=2), n=3, threshold=1.0)


def each_for_itself(key, program, population):
    """Each of two devices resamples its own particle, and then both are taken to weigh the same."""
    own = [draw(key, f"ancestors on {device}", Systematic(population.log_weights[device : device + 1])) + device for device in (0, 1)]
    after = blocks.select(program, population, jnp.concatenate(own), blocks.evidence(population))
    return blocks.advance(key, program, after), Info(jnp.zeros(()), jnp.ones((), bool), None)


def local_resampling(key, program):
    return drive(key, program, 2, blocks.spawn, jax.tree_util.Partial(each_for_itself), history=False, progress=False)


def massless_islands(key, program):
    """Islands that all count the same at the end."""
    found = po.smc(key, po.islands(program, size=1, threshold=1.0), n=2, threshold=0.0, history=False)
    return islands.together(found.replace(log_weights=jnp.full(2, -jnp.log(2))))


def test_the_proof_refutes_local_resampling_and_islands_without_mass(laws):
    laws.fails("devices that resample alone", po.check.properly_weighted(local_resampling, the_pair()))
    laws.fails("islands without mass", po.check.properly_weighted(massless_islands, the_pair()))
