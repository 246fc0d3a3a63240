"""Weighted sets, automata and grammars say of texts, and of their beginnings, what was worked out by hand."""

import math

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.potentials import check, weighted_automaton, weighted_grammar, weighted_texts
from posterity.tests.fixtures.byte_texts import language_model, tokenizer

SET, CRITIC = {"0": 3, "00": 2, "1": 1}, {"0": 1, "00": 2, "1": 3}
GRAMMAR = {"S": {"A B": 3, "A B B": 2}, "A": {"a": 1}, "B": {"b": 1}}


def digits():
    return po.tabular.ngram(["0"] * 3 + ["00"] * 2 + ["1"], order=3, smoothing=0.0)


def letters():
    return po.tabular.ngram(["abb", "ac", "cab"], order=2)


def either(weight):
    """a then b or c, each of a weight."""
    return weighted_automaton([(0, "a", 1, 1.0), (1, "b", 2, weight), (1, "c", 2, weight)], {2: 1.0}, letters().tokenizer)


def said(potential, lm, text):
    """What a potential says of a text, whole and as a beginning, nats."""
    state, gained, update = potential.start(), 0.0, jax.jit(potential.update)
    for token in lm.tokenizer.encode(text)[1:]:
        state, gain = update(state, np.asarray(token))
        gained += float(gain)
    return gained + float(potential.complete(state)), gained if gained == -math.inf else gained + float(potential.to_go(state))


def test_a_weighted_set_times_a_critic():
    product = weighted_texts(SET, digits().tokenizer) * weighted_texts(CRITIC, digits().tokenizer)
    weights = {text: math.exp(said(product, digits(), text)[0]) for text in SET}
    assert sum(weights.values()) == pytest.approx(10)
    assert [weights[text] / 10 for text in SET] == pytest.approx([0.3, 0.4, 0.3])


def test_a_weighted_automaton_of_two_halves():
    assert said(either(0.5), letters(), "ab")[0] == pytest.approx(math.log(0.5))
    assert said(either(0.5), letters(), "a")[1] == pytest.approx(0.0)
    assert said(either(0.5), letters(), "c")[1] == -math.inf


def test_a_weighted_automaton_of_two_twos():
    assert said(either(2.0), letters(), "ab")[0] == pytest.approx(math.log(2))
    assert said(either(2.0), letters(), "a")[1] == pytest.approx(math.log(4))


def test_a_weighted_grammar():
    grammar = weighted_grammar(GRAMMAR, letters().tokenizer, max_bytes=4)
    assert said(grammar, letters(), "ab")[0] == pytest.approx(math.log(3))
    assert said(grammar, letters(), "abb")[0] == pytest.approx(math.log(2))
    assert said(grammar, letters(), "a")[1] == pytest.approx(math.log(5))


def test_ways_to_write_a_text_add_up_and_loops_sum():
    # Two ways through ab, of .5 and .25, and a loop of b, which halves.
    arcs = [(0, "a", 1, 0.5), (0, "ab", 2, 0.25), (1, "b", 2, 1.0), (2, "b", 2, 0.5)]
    automaton = weighted_automaton(arcs, {2: 1.0}, letters().tokenizer)
    assert said(automaton, letters(), "ab")[0] == pytest.approx(math.log(0.75))
    assert said(automaton, letters(), "abb")[0] == pytest.approx(math.log(0.375))
    assert said(automaton, letters(), "a")[1] == pytest.approx(math.log(1.5))


@pytest.mark.slow
def test_they_agree_with_themselves_over_tokens_that_write_several_bytes():
    # "é" and "日" take two and three bytes, which tokens cut and bridge.
    automaton = weighted_automaton([(0, "é日", 1, 0.5), (1, "é", 0, 0.5), (1, "the ", 1, 0.25)], {1: 1.0}, tokenizer())
    grammar = weighted_grammar({"S": {"A B": 3, "A B S": 0.1}, "A": {"é": 1, '"the "': 2}, "B": {"b": 1, "日": 1}}, tokenizer(), max_bytes=24)
    for potential in (automaton, grammar):
        found = check.potential(potential, language_model(), ["é日the ", "the 日éb", "é日é日"])
        assert found, found
