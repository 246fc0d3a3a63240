"""Chunks: the same program in larger steps (that they keep the meaning is proved in tests/exact)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.ppl.chunk import chunk
from posterity.tests.fixtures.references import walk

LENGTH = 6


@po.program
def coins():
    """Heads and tails, a weight each; its value is the row of coins so far and how many there are."""

    def step(carry, _):
        row, t = carry
        heads = po.sample("heads", dist.Bernoulli(0.5))
        po.factor("weight", jnp.where(heads == 1, 0.5, -0.25))
        return row.at[t].set(heads), t + 1

    return po.scan(step, (jnp.full(LENGTH, -1), 0), length=LENGTH)


def at_heads(value):
    row, t = value
    return row[t - 1] == 1


def test_a_chunk_ends_at_each_particles_own_boundary():
    program = chunk(coins(), at_heads)
    particles, _ = program.init(jax.random.key(0), 20)
    total = jnp.zeros(20)
    for i in range(2):
        particles, log_potential = program.step(jax.random.key(i + 1), particles)
        total += log_potential
        row, t = map(np.asarray, program.value(particles))
        for coins_so_far, length in zip(row, t):
            made = coins_so_far[:length]
            assert made.sum() == i + 1 or (length == LENGTH and made.sum() <= i + 1)
            assert made[-1] == 1 or length == LENGTH
    np.testing.assert_allclose(total, np.where(row == 1, 0.5, np.where(row == 0, -0.25, 0)).sum(axis=1), rtol=1e-5)
    assert len(set(t)) > 1


def test_resampling_happens_between_chunks():
    whole = po.smc(jax.random.key(0), chunk(coins(), lambda value: False), n=10, threshold=1)
    assert int(whole.steps) == 1
    assert not whole.resampled.any()
    assert (np.asarray(whole.values[1]) == LENGTH).all()


def test_particles_that_move_together_have_no_chunks():
    with pytest.raises(ValueError, match=r"walk: particles driven by per-step inputs \(xs\) move together"):
        po.smc(jax.random.key(0), chunk(walk(jnp.ones(3)), lambda x: x > 0), n=4)


def test_chunks_say_what_they_are():
    assert repr(chunk(coins(), at_heads)) == "<<program coins> in chunks until at_heads>"
