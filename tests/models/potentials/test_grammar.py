"""Grammars: what they allow is allowed whatever the tokens, and what comes out derives from them."""

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.potentials import check, grammar
from posterity.tests.fixtures.byte_texts import language_model, tokenizer

NESTED = 'start: "(" start ")" | "x"'
SPELLED = 'start: "é" start | "日本" | "the end"'


@pytest.mark.slow  # a larger run of what the docstring shows
def test_texts_derive_from_the_grammar():
    lm = po.load("abacus")
    nested = grammar(NESTED.replace("x", "1"), lm.tokenizer, max_tokens=8)
    posterior = po.smc(jax.random.key(0), po.constrained(lm, "2+3=", nested, max_tokens=8), n=30)
    depths = {(len(text) - 1) // 2 for text in posterior.answers()}
    assert set(posterior.answers()) == {"(" * depth + "1" + ")" * depth for depth in depths}


def test_the_posterior_of_a_grammar_is_a_plain_sum():
    lm = po.tabular.ngram(["(x)", "((x", "x)", "()x)"], order=2)
    program = po.constrained(lm, "", grammar(NESTED, lm.tokenizer, max_tokens=4), max_tokens=4)
    lifted = po.potentials.over(po.potentials.regex(r"x|\(x\)"), lm.tokenizer)  # all that four tokens have room for
    assert po.check.same_meaning(program, po.constrained(lm, "", lifted, max_tokens=4))


def test_every_way_to_write_a_text_is_allowed():
    spelled, bytes_of = grammar(SPELLED, tokenizer(), max_tokens=16), tokenizer().token_bytes
    ends = [text.encode() for text in ("é", "日本", "the end")]
    allowed = {bytes_of[token] for token in np.flatnonzero(np.asarray(spelled.scores(spelled.start())) == 0)}
    assert {text[:1] for text in ends} <= allowed
    assert any(len(token) > 1 for token in allowed)
    assert all(any((text + text + text + ends[1]).startswith(token) or (text + end).startswith(token) for text in ends for end in ends) for token in allowed)
    found = check.potential(spelled, language_model(), ["é日本", "the end", "日日"])
    assert found, found


@pytest.mark.parametrize(
    ("source", "says"),
    [('start: "a" (\n', r"1\(13\)"), ("start: x", 'unknown name: "x"'), ("", "no start rule"), ('start: "z"', "no text of this vocabulary")],
)
def test_what_is_no_grammar_is_said(source, says):
    with pytest.raises(ValueError, match=says):
        grammar(source, po.load("abacus").tokenizer)
