"""Reasoning goes back to an earlier step: text, scores, and what a reward model has read; chains move it by whole suffixes of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import posterity as po
from posterity.inference.mcmc.on_runs import suffix
from posterity.inference.mcmc.runs import Kept
from posterity.ppl.rewind import mark, rewind


def shorter(text):
    return 1.0 / (1 + text.generated)


def reasoning():
    lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    return po.reason(lm, "a", reward=shorter, delimiter=";", max_steps=2, max_step_tokens=2)


def test_a_text_goes_back_to_the_end_of_a_step_with_its_scores():
    program = reasoning()
    first, _ = program.step(jax.random.key(1), program.init(jax.random.key(0), 6)[0])
    last, _ = program.step(jax.random.key(2), first)
    found = rewind(program, last, mark(program, first))
    for a, b in zip(jax.tree.leaves(mark(program, found)), jax.tree.leaves(mark(program, first)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(program.value(found).scores, program.value(first).scores)
    assert int(found.work.generated) == int(last.work.generated)


@struct.dataclass
class Said(Kept):
    """Runs of which only the text is told: what all have cost is no part of their law."""

    def value(self, particles):
        return super().value(particles).text.tokens


def short(text):
    return jnp.where(text.generated == 1, 0.3, 0.9)


@pytest.mark.slow
def test_suffix_moves_leave_the_law_of_reasoning_invariant():
    lm = po.tabular.ngram(["a;a", ";", "aa"], order=2)
    program = po.reason(lm, "a", reward=short, delimiter=";", max_steps=2, max_step_tokens=1)
    with jax.enable_x64():
        assert po.check.invariant(lambda key, program, runs: suffix()(key, program, runs)[0], Said(program))


@pytest.mark.slow
def test_chains_improve_reasoning_under_a_reward_model():
    lm = po.load("abacus")
    program = po.reason(lm, "47+6*(12-8)=", reward=po.load("abacus-prm"), max_steps=6)
    found = po.mcmc_sequences(jax.random.key(0), program, chains=4, draws=5)
    assert next(iter(found.answers())) == "71"
    assert bool(jnp.all(jnp.isfinite(found.log_weights)))
