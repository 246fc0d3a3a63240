"""Reasoning in steps over tabular models: each rule has its own target, filters are properly weighted for it, chains leave it invariant."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import posterity as po
from posterity.inference.search.particle_gibbs import move
from posterity.models.programs.reason import Given, Reason

STEPS, TOKENS = 2, 2
TABLE = np.array([0.9, 0.3, 0.6, 0.45, 0.8])
LM = po.tabular.ngram(["a;aa;", "a", ";a;;"], order=2, smoothing=0.5)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def reward(table, text):
    """A score for each number of tokens and last token."""
    return table[(text.generated + 2 * (text.last == 0)) % len(TABLE)]


def reasoning(rule, potential="identity", sharpness=1.0, *, steps=STEPS, tokens=TOKENS):
    score = jax.tree_util.Partial(reward, jnp.asarray(TABLE))
    options = {"potential": potential, "sharpness": sharpness, "rule": rule, "delimiter": ";", "max_steps": steps, "max_step_tokens": tokens}
    return po.reason(LM, "a", reward=score, extract=str, **options)


G = {"identity": lambda r: r, "exp": np.exp, "odds": lambda r: r / (1 - r)}
TARGETS = {
    "product": lambda g: np.prod(g),
    "telescoped": lambda g: g[-1],
    "prefix": lambda g: np.prod(g) * g[-1] ** (STEPS - len(g)),
}


def masses(rule, potential="identity", sharpness=1.0):
    """The model's mass of every text in steps, times what its scores weigh by the rule: {text: mass}, in plain Python."""
    automaton = LM.model().reader
    laws = [np.exp(np.asarray(automaton.log_probs, float)[automaton.following[0, before]]) for before in range(2)]
    found: dict[str, float] = {}

    def go(letters, mass, scores, in_step):
        for token in range(3):  # a, ; and the end
            after, probability = [*letters, token], mass * laws[letters[-1]][token]
            ends = token >= 1 or in_step + 1 == TOKENS
            if not ends:
                go(after, probability, scores, in_step + 1)
                continue
            generated = len(after) - 1
            given = [*scores, TABLE[(generated + 2 * (token == 0)) % len(TABLE)]]
            if token < 2 and len(given) < STEPS:
                go(after, probability, given, 0)
                continue
            text = "".join("a;"[i] for i in after[1:] if i < 2)
            found[text] = found.get(text, 0.0) + probability * TARGETS[rule](G[potential](np.array(given)) ** sharpness)

    go([0], 1.0, [], 0)
    return found


@pytest.mark.parametrize(("rule", "potential"), [("product", "identity"), ("telescoped", "exp"), ("prefix", "odds"), ("telescoped", "identity")])
def test_each_rule_has_the_target_that_a_plain_sum_gives(laws, rule, potential):
    sharpness = 1.5 if potential == "exp" else 1.0
    laws.holds(f"reason, {rule}", po.check.same_meaning(reasoning(rule, potential, sharpness), masses(rule, potential, sharpness)))


def test_no_rule_has_the_target_of_another(laws):
    for rule, other in (("product", "telescoped"), ("telescoped", "prefix"), ("prefix", "product")):
        laws.fails(f"reason by {rule} for {other}", po.check.same_meaning(reasoning(rule), masses(other)))


def filtered(key, program):
    posterior = po.search.particle_filter(key, program, n=2, resampling="multinomial", threshold=1.0)
    return replace(posterior, values=posterior.values.text.tokens)  # without the accounts of both texts, which would be told apart


@pytest.mark.parametrize("rule", ["product", pytest.param("telescoped", marks=pytest.mark.slow), pytest.param("prefix", marks=pytest.mark.slow)])
def test_the_particle_filter_is_properly_weighted_for_the_rules_target(laws, rule):
    program = reasoning(rule, tokens=1)
    laws.holds("particle filter over steps", po.check.properly_weighted(filtered, program, meaning=Texts(program)))


@struct.dataclass
class Texts:
    """A program whose values are the tokens of its texts."""

    inner: Reason

    @property
    def length(self):
        return self.inner.length

    def init(self, key, n):
        return self.inner.init(key, n)

    def step(self, key, particles, *, where=None):
        return self.inner.step(key, particles, where=where)

    def select(self, particles, ancestors):
        return self.inner.select(particles, ancestors)

    def done(self, particles):
        return self.inner.done(particles)

    def value(self, particles):
        return self.inner.value(particles).text.tokens


@struct.dataclass
class OffByOne(Texts):
    """The published particle Gibbs: the text that is followed is weighed by the score of its next step."""

    def value(self, particles):
        return self.inner.value(particles)

    def past(self, particles):
        choices, steps = self.inner.past(particles)
        return (choices, jax.tree.map(lambda x: jnp.roll(x, -1, axis=1), choices), steps[:, None] + jnp.zeros((1, STEPS), steps.dtype)), steps

    def told(self, key, particles, given, which=None, *, where=None):
        now, later, steps = given
        after, log_potential, log_prior = self.inner.told(key, particles, Given(*now), which, where=where)
        _, ahead, _ = self.inner.told(key, after, Given(*later))
        more = which & (particles.rounds + 1 < steps)
        return after, jnp.where(more, ahead, log_potential), log_prior


@pytest.mark.parametrize("ancestors", ["ancestor", pytest.param("trace", marks=pytest.mark.slow)])
def test_particle_gibbs_over_steps_leaves_the_target_invariant(laws, ancestors):
    laws.holds(f"particle gibbs over steps, {ancestors}", po.check.invariant(partial(move, n=2, ancestors=ancestors), reasoning("product", tokens=1)))


def test_the_published_weight_of_the_followed_text_does_not(laws):
    program = OffByOne(reasoning("product", tokens=1))
    laws.fails("the followed text's next score", po.check.invariant(partial(move, n=2, ancestors="trace"), program))
