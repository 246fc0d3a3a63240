"""Generated texts: their law is the model's with the changes asked for, and what is out of range is refused."""

import jax
import pytest

import posterity as po
from posterity.models.lm.tabular import ngram
from posterity.models.programs.generate import generate, trimmed

LM = ngram(["abcab", "cab", "bba"], order=2)


def laws(**options):
    with jax.enable_x64():
        return {text: estimate.value for text, estimate in po.exact(generate(LM, "a", **options)).answers().items()}


def test_a_temperature_near_zero_and_the_most_probable_token_alone_are_one_text():
    greedy = laws(max_tokens=4, top_k=1)
    assert len(greedy) == 1
    assert laws(max_tokens=4, temperature=0.01)[next(iter(greedy))] == pytest.approx(1)


def test_other_values_of_an_option_are_data():
    one, other = (generate(LM, "a", max_tokens=2, temperature=t, top_k=k, top_p=p, min_p=m) for t, k, p, m in ((1.0, 2, 0.9, 0.1), (2, 3, 1, 0.0)))
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_a_stop_text_ends_a_text_that_tabular_models_write():
    for text in laws(max_tokens=5, stop="ab"):
        assert "ab" not in text[:-2]
        assert trimmed(text, "ab") in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "generate: max_tokens must be at least 1, got 0"),
        ({"stop": ""}, "generate: stop must not be empty"),
        ({"temperature": 0.0}, "generate: temperature must be positive, got 0"),
        ({"top_k": 0}, "generate: top_k must be a whole number from 1 on, got 0"),
        ({"top_p": 0.0}, "generate: top_p must lie above 0"),
        ({"min_p": 2.0}, "generate: min_p must lie in"),
        ({"max_tokens": 10**6}, "do not fit the context of ngram, 65536 tokens"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate(LM, "a", **options)
