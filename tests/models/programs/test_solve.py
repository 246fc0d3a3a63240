"""Solutions are conditioned on being finished, not on having stopped."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import posterity as po
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.language_model import LanguageModel
from posterity.models.programs.solve import solve


@pytest.fixture(scope="module")
def cramped():
    """A model of arithmetic's characters whose context holds sixteen tokens."""
    tokenizer = po.load("abacus").tokenizer
    config = DecoderConfig(tokenizer.vocab_size, 16, 16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, context_length=16)
    return LanguageModel.of(Decoder(config, rngs=nnx.Rngs(0)), tokenizer, "cramped")


@pytest.mark.slow
def test_a_text_that_stops_for_want_of_room_is_no_solution(cramped):
    prompt = "10+20+30*40+50="  # leaves room for one token, which cannot be a whole solution
    alone = po.importance(jax.random.key(0), solve(cramped, prompt, potential="none"), n=30)
    assert alone.log_evidence == pytest.approx(0.0, abs=1e-5)
    assert jnp.all(alone.values.ended)
    assert po.importance(jax.random.key(0), solve(cramped, prompt), n=30).log_evidence == -jnp.inf
