"""What was learned keeps the meaning, however well it was learned: twists and proposals, with all draws enumerated."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import struct

import posterity as po
from posterity.ppl.propose import Propose
from posterity.ppl.region import rewritten
from posterity.ppl.twist import Twisted
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import arrays

STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.1], [0.3, 1.5]], [1.0, 3.0, 0.25])
EMITTING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.2, 0.8]])


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64():
        yield


def ones(path):
    return jnp.stack([jnp.sum(path == 1), jnp.sum(path >= 0)]).astype(float)


def smc_of_two(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


@pytest.fixture(scope="module")
def stopping():
    """A program, and a twist that a run of 64 particles taught."""
    program = finite.stopping(*arrays(*STOPPING))
    return program, po.learn.twist(jax.random.key(0), program, ones, n=64, rounds=1, steps=50)


def test_a_learned_twist_keeps_the_meaning(laws, stopping):
    program, learned = stopping
    assert float(jnp.max(jnp.abs(learned.parameters["weight"]))) > 0.1  # it is a twist
    twisted = po.twist(program, learned.log_psi)
    laws.holds("learned twist", po.check.same_meaning(twisted, program))


@pytest.mark.slow
def test_smc_is_properly_weighted_on_what_was_learned(laws, stopping, emitting):
    program, learned = stopping
    twisted = po.twist(program, learned.log_psi)
    laws.holds("learned twist", po.check.properly_weighted(smc_of_two, twisted, meaning=program))
    program, learned = emitting
    proposed = po.propose(program, learned.proposals)
    laws.holds("learned proposals", po.check.properly_weighted(smc_of_two, proposed, meaning=program))


@struct.dataclass
class NeverPaidBack(Twisted):
    """psi stays in the weights at the end."""

    def _to_go(self, key, particles, last):
        return self.log_psi(key, self.inner, particles, last)


def test_a_learned_twist_that_is_not_divided_out_is_refuted(laws, stopping):
    program, learned = stopping
    mutant = NeverPaidBack(program, po.twist(program, learned.log_psi).log_psi)
    laws.fails("a learned twist that is not divided out", po.check.same_meaning(mutant, program))


def states(parameters, path, y):
    return dist.Categorical(logits=parameters["state"][y])


def letters(parameters, path, y):
    return dist.Categorical(logits=parameters["letter"][y])


@pytest.fixture(scope="module")
def emitting():
    """A program that data drive, and proposals for its choices that 50 steps of dreaming taught."""
    program, start = finite.emitting(*arrays(*EMITTING), jnp.array([1])), {"state": jnp.zeros((2, 2)), "letter": jnp.zeros((2, 2))}
    return program, po.learn.proposals(jax.random.key(0), program, {"x": states, "z": letters}, start, n=16, steps=50)


def test_learned_proposals_keep_the_meaning(laws, emitting):
    program, learned = emitting
    assert float(learned.parameters["letter"][1, 1]) > 0.2  # they are another law
    proposed = po.propose(program, learned.proposals)
    laws.holds("learned proposals", po.check.same_meaning(proposed, program))


class Unpaid(Propose):
    """Draws from the proposal, and forgets its weight."""

    def chose(self, name, value):
        pass


def test_learned_proposals_whose_weight_is_forgotten_are_refuted(laws, emitting):
    program, learned = emitting
    laws.fails("learned proposals without their weight", po.check.same_meaning(rewritten(Unpaid, program, learned.proposals), program))
