"""The changes of the next token's law, against sorting in NumPy, and what their corrections bring back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posterity.models.lm.next_token import NextToken, most_probable, next_token

LOGITS = jnp.log(jnp.array([0.4, 0.1, 0.2, 0.2, 0.1]))


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
    {"temperature": st.sampled_from([0.5, 1.0, 3.0])},
    optional={"top_k": st.integers(1, 10), "top_p": st.sampled_from([1e-6, 0.31, 0.577, 0.93, 1.0]), "min_p": st.sampled_from([0.0, 0.013, 0.41, 1.0])},
)


@jax.jit
def changed(logits, options):
    return next_token(logits, **options)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logits, options)
def test_changed_laws_are_those_of_sorting(logits, options):
    with jax.enable_x64():
        found = jax.nn.softmax(changed(jnp.asarray(logits), options).logits)
    np.testing.assert_allclose(found, by_sorting(logits, **options), atol=1e-12)


@pytest.mark.parametrize("option", [{"top_k": 50}, {"top_p": 0.9}, {"top_p": 0.3, "top_k": 1_000}, {"min_p": 0.05}])
def test_rows_of_a_large_vocabulary_are_cut_as_by_sorting(option):
    rows = 3 * np.random.default_rng(0).normal(size=(4, 20_000)).astype(np.float32)
    found = np.asarray(changed(rows, option).logits) > -np.inf
    for row, kept in zip(rows, found):
        np.testing.assert_array_equal(kept, by_sorting(row, **option) > 0)
    one_by_one = jax.jit(jax.vmap(lambda row: next_token(row, **option).logits))(rows)
    np.testing.assert_array_equal(np.asarray(one_by_one) > -np.inf, found)


def test_tokens_of_equal_probability_stay_together():
    np.testing.assert_allclose(jax.nn.softmax(changed(LOGITS, {"top_k": 2}).logits), [0.5, 0, 0.25, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(changed(LOGITS, {"top_p": 0.45}).logits), [0.5, 0, 0.25, 0.25, 0], atol=1e-6)


def test_options_that_keep_all_keep_all():
    faint = jnp.array([0.0, -1e30, -200.0, -jnp.inf, 5.0])
    for option in ({"top_k": 4}, {"top_k": 5}, {"top_k": 10**6}, {"top_p": 1.0}, {"top_p": jnp.float32(1)}, {"min_p": 0.0}, {"temperature": 1.0}):
        np.testing.assert_array_equal(next_token(faint, **option).logits, faint)


def test_a_single_possible_token_stays():
    alone = jnp.array([-jnp.inf, -70.0, -jnp.inf])
    law = changed(alone, {"temperature": 0.1, "top_k": 1, "top_p": 0.01, "min_p": 1.0})
    np.testing.assert_array_equal(jax.nn.softmax(law.logits), [0, 1, 0])
    assert int(law.sample(jax.random.key(0))) == 1
    assert float(law.correction(jnp.array(1))) == 0


def test_a_broken_model_stays_visible():
    assert jnp.isnan(next_token(jnp.array([0.0, jnp.nan, 1.0]), top_k=1, min_p=0.5).logits[1])


def test_half_precision_is_ordered_too():
    np.testing.assert_array_equal(most_probable(jnp.array([-2.0, 3.0, -1.0], jnp.bfloat16), lambda kept: kept.sum(-1, keepdims=True) >= 2), [False, True, True])


def test_options_may_be_arguments_of_compiled_code():
    law = jax.jit(lambda t, k, p, m: next_token(LOGITS, temperature=t, top_k=k, top_p=p, min_p=m).logits)
    found = jax.nn.softmax(law(2.0, 4, 0.95, 0.4))
    np.testing.assert_allclose(found, by_sorting(LOGITS, 2.0, 4, 0.95, 0.4), atol=1e-6)


def test_the_correction_is_the_ratio_of_densities():
    tokens = jnp.arange(5)
    for option in ({"temperature": 2.5}, {"top_k": 1}, {"top_p": 0.75, "temperature": 0.5}, {"min_p": 0.3}):
        law = changed(LOGITS, option)
        q, p = np.exp(law.log_prob(tokens)), np.asarray(jax.nn.softmax(LOGITS))
        drawn = q > 0
        np.testing.assert_allclose(q[drawn] * np.exp(law.correction(tokens)[drawn]), p[drawn], rtol=1e-5)
        assert (law.correction(tokens)[~drawn] == jnp.inf).all()


def test_a_law_that_is_not_changed_needs_no_correction():
    np.testing.assert_array_equal(NextToken(LOGITS).correction(jnp.arange(5)), np.zeros(5))
    assert next_token(jnp.array([0.0, -jnp.inf])).correction(jnp.array(1)) == -jnp.inf


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
