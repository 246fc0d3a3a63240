"""Weighted sets and grammars in the place of constraints: the posterior is a plain sum."""

import math

import jax
import pytest

import posterity as po
from posterity.models.potentials import weighted_grammar, weighted_texts

CRITIC = {"0": 1, "00": 2, "1": 3}
GRAMMAR = {"S": {"A B": 3, "A B B": 2}, "A": {"a": 1}, "B": {"b": 1}}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def digits():
    return po.tabular.ngram(["0"] * 3 + ["00"] * 2 + ["1"], order=3, smoothing=0.0)


def letters():
    return po.tabular.ngram(["abb", "ac", "cab"], order=2)


def test_the_posterior_of_a_weighted_set_with_a_critic(laws):
    # The model knows the set up to its total of 6; the rest is the critic's.
    program = po.constrained(digits(), "", weighted_texts(CRITIC, digits().tokenizer), max_tokens=3)
    laws.holds("weighted set with a critic", po.check.same_meaning(program, {"0": 3 / 6, "00": 4 / 6, "1": 3 / 6}))


@pytest.mark.slow
def test_the_posterior_of_a_weighted_grammar_is_a_plain_sum(laws):
    lm = letters()
    free = po.exact(po.constrained(lm, "", po.potentials.over(po.potentials.regex("abb?"), lm.tokenizer), max_tokens=3))
    masses = {text: estimate.value * math.exp(free.log_evidence) * {"ab": 3, "abb": 2}[text] for text, estimate in free.answers().items()}
    assert set(masses) == {"ab", "abb"}
    laws.holds("weighted grammar", po.check.same_meaning(po.constrained(lm, "", weighted_grammar(GRAMMAR, lm.tokenizer, max_bytes=4), max_tokens=3), masses))
