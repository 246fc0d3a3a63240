"""Hidden Markov models as language models, against the forward recursion in plain Python."""

import itertools

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.tabular import hmm
from posterity.tests.fixtures.tabular_texts import laws_along, written

INITIAL = [0.6, 0.4, 0.0]
MOVES = [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.0, 0.5]]
WRITES = [[0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]
ENDS = [0.1, 0.3, 0.0]
LETTERS = "abc"


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def forward(text):
    """The probability that a text begins with this one, and that it is this one."""
    states, before = range(3), INITIAL
    if not text:
        return 1.0, 0.0
    for i, letter in enumerate(text):
        here = [before[s] * WRITES[s][LETTERS.index(letter)] for s in states]
        before = [sum(here[r] * (1 - ENDS[r]) * MOVES[r][s] for r in states) for s in states]
        if i == len(text) - 1:
            return sum(here), sum(here[s] * ENDS[s] for s in states)
    return None


def model():
    return hmm(INITIAL, MOVES, WRITES, symbols=LETTERS, end=ENDS)


def test_the_next_letters_law_is_the_forward_recursions():
    text = "abccba" * 10
    assert forward(text)[0] < 1e-25  # the recursion in the model does not underflow
    for i, law in enumerate(laws_along(model(), [text])[0]):
        before, ended = forward(text[:i])
        expected = [forward(text[:i] + letter)[0] / before for letter in LETTERS]
        np.testing.assert_allclose(law, [*expected, ended / before, 0], atol=1e-13)


def test_all_short_texts_have_their_probabilities():
    found = {text: e.value for text, e in po.exact(written(model(), model().prompt(""), 4)).answers().items()}
    for length in (1, 2, 3):
        for text in map("".join, itertools.product(LETTERS, repeat=length)):
            assert found.get(text, 0.0) == pytest.approx(forward(text)[1], abs=1e-14)
    for text in map("".join, itertools.product(LETTERS, repeat=4)):  # cut off there, or ended a step later
        assert found.get(text, 0.0) == pytest.approx(forward(text)[0], abs=1e-14)


def test_without_ends_texts_end_only_after_what_is_impossible():
    lm = hmm([1.0], [[1.0]], [[1.0, 0.0]], symbols="ab")
    np.testing.assert_array_equal(laws_along(lm, ["aab"])[0], [[1, 0, 0, 0]] * 3 + [[0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"initial": [0.6, 0.3, 0.0]}, "hmm: initial must sum to one along its last axis; it sums to 0.9"),
        ({"transition": [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.0, 0.6]]}, "hmm: transition must sum to one along its last axis; row 2 sums to 1.1"),
        ({"transition": MOVES[:2]}, r"hmm: transition must have shape \(3, 3\), got \(2, 3\)"),
        ({"emission": [[1.5, -0.5, 0.0]] * 3}, "hmm: emission must hold probabilities, got 1.5"),
        ({"emission": [[float("nan"), 0.5, 0.5]] * 3}, "hmm: emission must hold probabilities, got nan"),
        ({"symbols": "ab"}, r"hmm: emission must have shape \(3, 2\), got \(3, 3\)"),
        ({"symbols": "aba"}, "symbols must differ from each other; 'a' come more than once"),
        ({"symbols": []}, "at least one state and one symbol, got 3 and 0"),
        ({"end": [0.1, 0.2]}, "hmm: end must hold 3 probabilities"),
        ({"end": [0.1, 0.2, 1.2]}, "hmm: end must hold 3 probabilities"),
    ],
)
def test_tables_that_are_no_model_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        hmm(**{"initial": INITIAL, "transition": MOVES, "emission": WRITES, "symbols": LETTERS, "end": ENDS} | changed)
