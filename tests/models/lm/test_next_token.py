"""The changes of the next token's law, against sorting in NumPy, and what their corrections bring back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posterity.models.lm.next_token import NextToken, next_token

VOCAB = 8
LOGITS = np.log([0.4, 0.1, 0.2, 0.2, 0.1])


class Changed(NamedTuple):
    """A changed law of few tokens."""

    logits: np.ndarray
    probabilities: np.ndarray
    corrections: np.ndarray
    drawn: int


@jax.jit
def compiled(logits, options):
    law = next_token(logits, **options)
    return Changed(law.logits, jnp.exp(law.log_prob(jnp.arange(VOCAB))), law.correction(jnp.arange(VOCAB)), law.sample(jax.random.key(0)))


def changed(logits, **options):
    """By one compiled program for each set of options, in 64 bits; tokens that are lacking are impossible ones."""
    padded = np.pad(np.asarray(logits, float), (0, VOCAB - len(logits)), constant_values=-np.inf)
    with jax.enable_x64():
        return jax.tree.map(lambda x: np.asarray(x)[: len(logits)] if x.ndim else int(x), compiled(padded, {"temperature": 1.0} | options))


def by_sorting(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The changed law, one rule after the other, in float64; tokens as probable as the last one kept are kept too."""

    def law():
        weights = np.where(kept, np.exp(scaled - scaled[kept].max()), 0.0)
        return weights / weights.sum()

    scaled, kept = np.asarray(logits, float) / temperature, np.isfinite(logits)
    if top_k is not None and top_k < kept.sum():
        kept &= scaled >= np.sort(scaled[kept])[::-1][top_k - 1]
    if top_p is not None and top_p < 1:
        falling = np.sort(law())[::-1]
        last = np.argmax(np.cumsum(falling) >= top_p - 1e-9)
        kept &= law() >= falling[last]
    if min_p is not None:
        kept &= law() >= min_p * law().max()
    return law()


logits = st.lists(st.sampled_from([-np.inf, -40.0, -3.0, -1.5, -0.0, 0.0, 0.3, 0.7, 2.0, 8.0]), min_size=8, max_size=8).filter(lambda x: max(x) > -np.inf)
options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.5, 1.0, 3.0]),
        "top_k": st.integers(1, 10),
        "top_p": st.sampled_from([1e-6, 0.31, 0.577, 0.93, 1.0]),
        "min_p": st.sampled_from([0.0, 0.013, 0.41, 1.0]),
    }
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logits, options)
def test_changed_laws_are_those_of_sorting(logits, options):
    law = changed(logits, **options)
    np.testing.assert_allclose(law.probabilities, by_sorting(logits, **options), atol=1e-12)
    assert law.probabilities[law.drawn] > 0


@pytest.mark.parametrize("option", [{"top_k": 50}, {"top_p": 0.9}])
def test_rows_of_a_large_vocabulary_are_cut_as_by_sorting(option):
    rows = 3 * np.random.default_rng(0).normal(size=(4, 20_000)).astype(np.float32)
    together = np.asarray(jax.jit(lambda rows: next_token(rows, **option).logits)(rows)) > -np.inf
    one_by_one = np.asarray(jax.jit(jax.vmap(lambda row: next_token(row, **option).logits))(rows)) > -np.inf
    for row, kept in zip(rows, together):
        np.testing.assert_array_equal(kept, by_sorting(row, **option) > 0)
    np.testing.assert_array_equal(one_by_one, together)


def test_tokens_of_equal_probability_stay_together():
    np.testing.assert_allclose(changed(LOGITS, top_k=2).probabilities, [0.5, 0, 0.25, 0.25, 0])
    np.testing.assert_allclose(changed(LOGITS, top_p=0.45).probabilities, [0.5, 0, 0.25, 0.25, 0])


@pytest.mark.parametrize("option", [{"top_k": 4}, {"top_k": 5}, {"top_k": 10**6}, {"top_p": 1.0}, {"min_p": 0.0}, {}], ids=str)
def test_options_that_keep_all_keep_all(option):
    faint = [0.0, -1e30, -200.0, -np.inf, 5.0]
    np.testing.assert_array_equal(changed(faint, **option).logits, faint)


def test_a_single_possible_token_stays():
    law = changed([-np.inf, -70.0, -np.inf], temperature=0.1, top_k=1, top_p=0.01, min_p=1.0)
    np.testing.assert_array_equal(law.probabilities, [0, 1, 0])
    assert (law.drawn, law.corrections[1]) == (1, 0)


def test_a_broken_model_stays_visible():
    assert np.isnan(changed([0.0, np.nan, 1.0], top_k=1, min_p=0.5).logits[1])


def test_half_precision_is_ordered_too():
    law = jax.jit(lambda logits: next_token(logits, top_k=2).logits)(jnp.array([-2.0, 3.0, -1.0], jnp.bfloat16))
    np.testing.assert_array_equal(law, [-np.inf, 3, -1])


@pytest.mark.parametrize("option", [{"temperature": 2.5}, {"top_k": 1}, {"top_p": 0.75, "temperature": 0.5}, {"min_p": 0.3}], ids=str)
def test_the_correction_is_the_ratio_of_densities(option):
    law, p = changed(LOGITS, **option), np.exp(LOGITS)
    drawn = law.probabilities > 0
    np.testing.assert_allclose(law.probabilities[drawn] * np.exp(law.corrections[drawn]), p[drawn])
    assert (law.corrections[~drawn] == np.inf).all()


def test_changed_laws_have_the_gradients_of_what_is_kept():
    def log_prob(logits):
        return next_token(logits, top_k=3, top_p=0.9).log_prob(jnp.array(0))

    found = jax.jit(jax.grad(log_prob))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, [0.5, 0, -0.25, -0.25, 0], atol=1e-6)


def test_a_law_that_is_not_changed_needs_no_correction():
    np.testing.assert_array_equal(changed([0.5, -np.inf, 1.0]).corrections, [0, -np.inf, 0])
    assert float(NextToken(jnp.zeros(3)).correction(jnp.array(1))) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1}, "temperature must be positive, got -1"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"temperature": float("inf")}, "temperature must be positive and finite, got inf"),
        ({"top_k": 0}, "top_k must be a whole number from 1 on, got 0; leave it out to keep all"),
        ({"top_k": 2.5}, "top_k must be a whole number from 1 on, got 2.5"),
        ({"top_k": True}, "top_k must be a whole number from 1 on, got True"),
        ({"top_p": 0.0}, "top_p must lie above 0 and be at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must lie above 0 and be at most 1, got 1.1"),
        ({"top_p": float("nan")}, "top_p must lie above 0 and be at most 1, got nan"),
        ({"min_p": -0.1}, r"min_p must lie in \[0, 1\], got -0.1"),
        ({"min_p": 1.5}, r"min_p must lie in \[0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        next_token(LOGITS, **option)
