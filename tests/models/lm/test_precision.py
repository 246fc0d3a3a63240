"""The type of number that a model computes in: bfloat16 throughout, but for sums, norms and probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.models.lm import precision
from posterity.tests.fixtures.tiny_lm import language_model

LM = language_model()
TOKENS = jnp.array([[0, 1, 2, 0, 3, 3, 1]])


def test_bfloat16_is_near_float32_and_kept_throughout():
    rounded = LM.astype("bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(rounded.weights)} == {"bfloat16"}
    hidden, kept = rounded.decoder(TOKENS)
    assert {str(x.dtype) for x in (hidden, *jax.tree.leaves(kept))} == {"bfloat16"}
    found, exact = (jax.nn.softmax(lm.decoder.logits(lm.decoder(TOKENS)[0]).astype(jnp.float32)) for lm in (rounded, LM))
    np.testing.assert_allclose(found, exact, atol=0.05)
    assert np.abs(found - exact).max() > 0


def test_products_in_bfloat16_sum_in_float32():
    """256 ones and a thousand more: in bfloat16 sums of ones end at 256."""
    from posterity.models.lm.decoder import product

    ones = jnp.ones((1, 1256), jnp.bfloat16)
    total = product(ones, ones.T, (((1,), (0,)), ((), ())))
    assert total.dtype == jnp.bfloat16
    assert float(total[0, 0]) == 1256


@pytest.mark.slow
def test_the_cache_holds_bfloat16_by_its_bits():
    lm, tokens = LM.astype("bfloat16"), TOKENS[0]
    whole = jax.nn.softmax(lm.decoder.logits(lm.decoder(TOKENS)[0])[0].astype(jnp.float32))
    logits, memory = lm.model().start(tokens[:2], jnp.array(2), 3, 5)
    for t in range(2, 7):
        np.testing.assert_allclose(jax.nn.softmax(logits.astype(jnp.float32)), jnp.tile(whole[t - 1], (3, 1)), atol=0.05)
        logits, memory = lm.model().advance(memory, jnp.full(3, tokens[t]), jnp.ones(3, bool))
    assert (memory.keys.dtype, memory.values.dtype) == (jnp.uint16, jnp.uint16)


def test_texts_are_sampled_in_either_type_and_compiled_once():
    traced = []

    @po.program
    def letters(lm, prompt):
        traced.append(lm)
        return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=3)

    def run(lm, seed):
        traced.clear()
        return po.smc(jax.random.key(seed), letters(lm, lm.prompt("ab")), n=8), len(traced)

    (first, times), (second, again) = run(LM.astype("bfloat16"), 0), run(language_model(1).astype("bfloat16"), 1)
    assert times > 0
    assert again == 0
    assert first.values.tokens.dtype == jnp.int32
    assert np.isfinite(first.log_evidence)
    assert not np.array_equal(first.values.tokens, second.values.tokens)


def test_the_fastest_type_is_one_of_the_known_and_measured_once():
    lm = LM.fastest(4)
    assert str(jax.tree.leaves(lm.weights)[0].dtype) in precision.TYPES
    before = precision._fastest.cache_info().misses
    LM.fastest(4)
    assert precision._fastest.cache_info().misses == before


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'bfloat16', got 'float16'"):
        LM.astype("float16")
    with pytest.raises(ValueError, match="no matrices whose products could be timed"):
        precision.fastest({"scale": jnp.ones(3)}, 4)
