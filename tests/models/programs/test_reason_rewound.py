"""Reasoning goes back to an earlier step: text, scores, and what a reward model has read; chains move it by whole suffixes of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import posterity as po
from posterity.inference.mcmc.on_runs import suffix
from posterity.inference.mcmc.runs import Kept
from posterity.inference.mcmc.sequences import roomy
from posterity.inference.mcmc.tries import on
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
def test_a_reward_model_has_read_what_the_chains_have_come_to():
    program = po.reason(po.load("abacus"), "47+6*(12-8)=", reward=po.load("abacus-prm"), max_steps=3, max_step_tokens=16)
    kernel, chains = suffix(), 3

    @jax.jit
    def moved(program, key):
        target = Kept(program)
        runs, _ = target.init(key, chains)
        runs = roomy(target, kernel, on(key, target, runs, 3, jnp.ones(chains, bool)))
        runs = jax.lax.fori_loop(0, 6, lambda k, runs: kernel(jax.random.fold_in(key, k), target, runs)[0], runs)
        return program.select(runs.now, jnp.arange(chains))

    @jax.jit
    def again(program, particles):
        given, _ = program.past(particles)
        anew, _ = program.init(jax.random.key(0), chains)
        told = lambda t, anew: program.told(jax.random.key(0), anew, jax.tree.map(lambda x: x[:, t], given))[0]  # noqa: E731
        return jax.lax.fori_loop(0, 3, told, anew)

    particles = moved(program, jax.random.key(1))
    anew = again(program, particles)
    np.testing.assert_array_equal(particles.texts.text.tokens, anew.texts.text.tokens)
    np.testing.assert_allclose(particles.scores, anew.scores, atol=1e-4)
