"""N-grams: the law after every context is the textbook's, worked out here from the texts by plain recursion."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.tabular import ngram
from posterity.tests.fixtures.tabular_texts import laws_along, written

TEXTS = ["abracadabra", "abra", "cab", "dab"]
LETTERS = "abrcd"
TOKENS = [*LETTERS, "$"]  # as the model numbers them; $ is the end


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def followers(context, texts, order):
    """How often each token follows a context, in texts that are padded by beginnings (^)."""
    padded = ["^" * (order - 1) + text + "$" for text in texts]
    places = [(text, i) for text in padded for i in range(order - 1, len(text)) if text[i - len(context) : i] == context]
    return Counter(text[i] for text, i in places)


def witten_bell(token, context, order):
    found, lower = followers(context, TEXTS, order), witten_bell(token, context[1:], order) if context else 1 / len(TOKENS)
    return (found[token] + len(found) * lower) / (found.total() + len(found)) if found else lower


def kneser_ney(token, context, order):
    lower = kneser_ney(token, context[1:], order) if context else 1 / len(TOKENS)
    if len(context) == order - 1:
        found = followers(context, TEXTS, order)
    else:
        alphabet = {"^", *LETTERS}
        found = Counter(t for t in TOKENS for before in alphabet if followers(before + context, TEXTS, order)[t])
    return (max(found[token] - 0.75, 0) + 0.75 * len(found) * lower) / found.total() if found else lower


def added(token, context, order):
    found = followers(context, TEXTS, order)
    return (found[token] + 0.5) / (found.total() + 0.5 * len(TOKENS))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("smoothing", "by_hand"), [("witten-bell", witten_bell), ("kneser-ney", kneser_ney), (0.5, added)])
def test_the_law_after_every_context_is_the_textbooks(smoothing, by_hand, order):
    lm = ngram(TEXTS, order=order, smoothing=smoothing)
    text = "abracadabra" + "ddrab" + "cc"  # with contexts that were never seen
    laws = laws_along(lm, [text])[0]
    for i, law in enumerate(laws):
        context = ("^" * order + text[:i])[len(text[:i]) + 1 :]
        np.testing.assert_allclose(law[:6], [by_hand(token, context, order) for token in TOKENS], atol=1e-14)
        assert law[6] == 0  # nothing writes the start


def test_frequencies_alone_end_a_text_after_what_was_never_seen():
    lm = ngram(["aab", "ab"], order=2, smoothing=0.0)
    after_a, after_b, after_bb = laws_along(lm, ["abb"])[0][1:]
    np.testing.assert_allclose(after_a, [1 / 3, 2 / 3, 0, 0], atol=1e-14)
    np.testing.assert_allclose(after_b, [0, 0, 1, 0])
    np.testing.assert_allclose(after_bb, [0, 0, 1, 0])
    never = laws_along(ngram(["ab"], order=3, smoothing=0.0), ["ba"])[0][-1]
    np.testing.assert_allclose(never, [0, 0, 1, 0])


def test_a_model_of_words_reads_and_writes_words():
    lm = ngram(["the dog  barks", "the cat\nsleeps"], order=2, smoothing=0.0, words=True)
    assert lm.tokenizer.encode("the cat") == [6, 0, 3]
    found = po.exact(written(lm, lm.prompt("the"), 3)).answers()
    assert {text: round(estimate.value, 12) for text, estimate in found.items()} == {"dog barks": 0.5, "cat sleeps": 0.5}
    assert lm.tokenizer.token_bytes[3] == b" cat"


def test_lists_of_tokens_are_taken_as_they_are():
    lm = ngram([["ba", "na", "na"], ["na"]], order=2, smoothing=0.0)
    np.testing.assert_allclose(laws_along(lm, ["ba na"])[0], [[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 1 / 3, 2 / 3, 0]], atol=1e-14)


def test_what_it_writes_has_the_law_of_its_table():
    lm = ngram(TEXTS, order=3)
    masses = {text: estimate.value for text, estimate in po.exact(written(lm, lm.prompt("ab"), 3)).answers().items()}
    found = 0.0
    for letters in itertools.product(LETTERS, repeat=3):
        text = "ab" + "".join(letters)
        expected = np.prod([witten_bell(text[i], text[i - 2 : i], 3) for i in range(2, 5)])
        assert masses["".join(letters)] == pytest.approx(expected, abs=1e-14)
        found += expected
    ended = {text: mass for text, mass in masses.items() if len(text) < 3}
    assert found + sum(ended.values()) == pytest.approx(1, abs=1e-12)
    assert ended[""] == pytest.approx(witten_bell("$", "ab", 3), abs=1e-14)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "there is nothing to count: 0 texts"),
        (["", ""], {}, "there is nothing to count: 2 texts without any token"),
        (" \n", {"words": True}, "there is nothing to count"),
        ("ab", {"order": 0}, "order must be a whole number from 1 on, got 0"),
        ("ab", {"order": 2.0}, "order must be a whole number"),
        ("ab", {"smoothing": "good-turing"}, "smoothing must be 'witten-bell', 'kneser-ney', or a number"),
        ("ab", {"smoothing": -1.0}, "smoothing must be"),
        ("ab", {"smoothing": float("nan")}, "smoothing must be"),
        ([["a", ""]], {}, "symbols must be texts of at least one character"),
        ([["new york", "paris"]], {}, "without white space and other than <end> and <start>; got 'new york'"),
        ([["a", "<end>"]], {}, "other than <end> and <start>; got '<end>'"),
    ],
)
def test_texts_and_options_that_make_no_model_are_refused(texts, options, message):
    with pytest.raises(ValueError, match=message):
        ngram(texts, **options)


def test_tables_that_would_not_fit_are_refused():
    rng = np.random.default_rng(0)
    text = " ".join(map(str, rng.integers(0, 20_000, 60_000)))
    with pytest.raises(ValueError, match=r"contexts of 19,\d\d\d tokens make tables of \d+\.\d GB; choose an order below 2"):
        ngram(text, order=2, words=True)


def test_unknown_words_in_a_prompt_are_named():
    with pytest.raises(ValueError, match="no token for 'x'"):
        ngram("abc").prompt("axb")
    with pytest.raises(ValueError, match="no token for 'cow', 'mouse'"):
        ngram(["the dog", "the cat"], words=True).prompt("the cow the mouse")
