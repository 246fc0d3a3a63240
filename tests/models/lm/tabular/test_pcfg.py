"""Grammars as language models: prefix probabilities against all texts where these are few, and against closed forms where they are not."""

import itertools
import math

import jax
import numpy as np
import pytest

from posterity.models.lm.tabular import pcfg
from posterity.tests.fixtures.tabular_texts import laws_along

ENGLISH = {
    "S": {"NP VP": 0.9, "VP": 0.1},
    "NP": {"Det N": 0.7, "'Kim'": 0.2, "": 0.1},
    "VP": {"V NP": 0.6, "V NP PP": 0.3, "V": 0.1},
    "PP": {"with NP": 0.5, "": 0.5},
    "Det": {"the": 0.6, "a": 0.3, "": 0.1},
    "N": {"dog": 0.5, "dog dog": 0.25, "N2": 0.25},
    "N2": {"cat": 1.0},
    "V": {"sees": 0.7, "dog": 0.3},
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def all_texts(rules, symbol="S"):
    """Every text of a grammar without recursion, as a tuple of words, with its probability."""
    if symbol not in rules:
        return {(symbol.strip("'"),): 1.0}
    found = {}
    for right, p in rules[symbol].items():
        parts = [all_texts(rules, part) for part in right.split()]
        for texts in itertools.product(*(part.items() for part in parts)):
            words = sum((text for text, _ in texts), ())
            found[words] = found.get(words, 0.0) + p * math.prod(q for _, q in texts)
    return found


def test_prefix_probabilities_are_sums_over_all_texts():
    lm, texts = pcfg(ENGLISH), all_texts(ENGLISH)
    assert sum(texts.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    chosen = [text for text in texts if len(text) == 6]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))[:20]]
    laws = laws_along(lm, [" ".join(text) for text in chosen])
    names = [lm.tokenizer.decode([i]) for i in range(lm.model().vocab_size - 2)]
    for text, along in zip(chosen, laws):
        for length, law in enumerate(along):
            begun = {other: p for other, p in texts.items() if other[:length] == text[:length]}
            before = sum(begun.values())
            expected = [sum(p for other, p in begun.items() if other[length : length + 1] == (name,)) / before for name in names]
            np.testing.assert_allclose(law, [*expected, texts.get(text[:length], 0.0) / before, 0], atol=1e-12)


@pytest.mark.parametrize("p", [0.4, 1e-200], ids=["", "far below the smallest float"])
def test_a_recursive_grammar_has_its_closed_form(p):
    laws = laws_along(pcfg({"S": {"a S b": p, "c": 1 - p}}), ["aaacbbb"])[0]
    logs = np.cumsum([np.log(law[token]) for law, token in zip(laws, [0, 0, 0, 2, 1, 1, 1, 3])])  # a, b, c and the end
    np.testing.assert_allclose(logs, np.log(p) * np.array([1, 2, 3, 3, 3, 3, 3, 3]) + np.log1p(-p) * np.array([0, 0, 0, 1, 1, 1, 1, 1]), rtol=1e-13)
    assert laws[6, 3] == 0  # it does not end while a bracket is open


@pytest.mark.parametrize("p", [0.3, 0.5], ids=["", "critical"])
def test_left_recursion_and_ambiguity_have_their_closed_form(p):
    # Texts of n letters have Catalan(n - 1) derivations of probability p^(n-1) (1-p)^n.
    lm = pcfg({"S": {"S S": p, "a": 1 - p}})
    lengths = [math.comb(2 * n - 2, n - 1) / n * p ** (n - 1) * (1 - p) ** n for n in range(1, 12)]
    laws = laws_along(lm, ["a" * 11])[0]
    for n in range(1, 11):
        assert laws[n, 1] == pytest.approx(lengths[n - 1] / (1 - sum(lengths[: n - 1])), abs=1e-7 if p == 0.5 else 1e-12)


def test_empty_productions_have_their_closed_form():
    # Balanced brackets: one opens with probability 0.45 wherever it may, else the last one closes, or the text ends.
    laws = laws_along(pcfg({"S": {"S a S b": 0.45, "": 0.55}}), ["aabbab"])[0]
    height = 0
    for law, letter in zip(laws, "aabbab$"):
        np.testing.assert_allclose(law, [0.45, 0.55 if height else 0, 0 if height else 0.55, 0], atol=1e-12)
        height += {"a": 1, "b": -1, "$": 0}[letter]


def test_a_nonterminal_that_writes_nothing_is_no_obstacle():
    laws = laws_along(pcfg({"S": {"E a E S": 0.3, "E b": 0.7}, "E": {"": 1.0}}), ["aab"])[0]
    np.testing.assert_allclose(laws, [[0.3, 0.7, 0, 0]] * 3 + [[0, 0, 1, 0]], atol=1e-13)


TANGLED = {"S": ["A B", "S A", "a S b", "", "A", "a"], "A": ["B", "S B", "", "a", "b A"], "B": ["A", "B b", "S S A", "b", "b b a"]}


def by_iteration(rules, longest):
    """The probability of every text of up to `longest` letters, from the equations that the rules are, iterated from zero (Kleene)."""
    texts = ["".join(letters) for n in range(longest + 1) for letters in itertools.product("ab", repeat=n)]
    mass = {symbol: dict.fromkeys(texts, 0.0) for symbol in rules} | {letter: {letter: 1.0} for letter in "ab"}

    def of(parts, text):
        if not parts:
            return float(not text)
        return sum(mass[parts[0]].get(text[:i], 0.0) * of(parts[1:], text[i:]) for i in range(len(text) + 1) if mass[parts[0]].get(text[:i], 0.0))

    for _ in range(60):
        mass |= {symbol: {text: sum(p * of(right.split(), text) for right, p in rules[symbol].items()) for text in texts} for symbol in rules}
    return mass["S"]


@pytest.mark.parametrize("seed", range(3))
def test_empty_unit_and_left_recursive_rules_together_write_what_their_equations_say(seed):
    rng = np.random.default_rng(seed)
    rules = {left: dict(zip(right, rng.dirichlet([3.0 if len(r) == 1 and r.islower() else 0.6 for r in right]))) for left, right in TANGLED.items()}
    expected = by_iteration(rules, 3)
    lm = pcfg(rules)
    a, b, end = (lm.tokenizer.encode(symbol)[-1] for symbol in ("a", "b", "<end>"))
    texts = ["".join(letters) for letters in itertools.product("ab", repeat=3)]
    for text, laws in zip(texts, laws_along(lm, texts)):
        before = 1.0
        for i, law in enumerate(laws):
            assert before * law[end] == pytest.approx(expected[text[:i]], abs=1e-12)
            before *= law[{"a": a, "b": b}[text[i]]] if i < 3 else 1.0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "start symbol 'S' has no rules; those that have are none"),
        ({"A": {"a": 1.0}}, "start symbol 'S' has no rules; those that have are 'A'"),
        ({"S": ["a", "b"]}, r"the rules of S must be texts with their probabilities, .* got \['a', 'b'\]"),
        ({"S": {("a", "b"): 1.0}}, "the rules of S must be texts"),
        ({"S": {"a": 0.5, "b": 0.4}}, "the probabilities of the rules of S must sum to one, they sum to 0.9"),
        ({"S": {"a": 1.5, "b": -0.5}}, r"the probability of S -> a must lie in \[0, 1\], got 1.5"),
        ({"S": {"a Noun": 1.0}}, "'Noun' in S -> a Noun has no rules; if it is a word, write it in quotes"),
        ({"S": {"S S": 0.6, "a": 0.4}}, "loses probability to derivations that never end: those from S end with probability 0.666667"),
        ({"S": {"a": 0.5, "T": 0.5}, "T": {"T a": 1.0}}, "loses probability .* those from T end with probability 0;"),
        ({"S": {"S": 1.0}}, "writes no words"),
        ({"S": {"S": 1.0}, "A": {"a": 1.0}}, "those from S end with probability 0;"),
        ({"S": {"": 1.0}}, "writes no words"),
    ],
)
def test_grammars_that_are_no_law_of_texts_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        pcfg(rules)
