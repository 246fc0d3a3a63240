"""The decoder against a Llama in plain NumPy, over whole sequences and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posterity.models.lm import gguf_file, huggingface
from posterity.models.lm.attention import KeysValues
from posterity.models.lm.cache import Cache, CachedDecoder
from posterity.models.lm.decoder import Decoder
from posterity.tests.fixtures.tiny_llama import Shape, log_probs, random_tensors, write_gguf, write_huggingface

CHECKPOINTS = {
    "half layout, grouped queries, tied head": ("huggingface", Shape()),
    "half layout, biases, free head": ("huggingface", Shape(bias=True, tied=False)),
    "GGUF, one key head, free head": ("gguf", Shape(tied=False, kv_heads=1, theta=10_000.0)),
    "GGUF, heads wider than the model": ("gguf", Shape(heads=3, kv_heads=3, size=16, epsilon=1e-3)),
}
TOKENS = [1, 250, 7, 7, 33, 120, 299, 0, 64, 5, 18]


@pytest.fixture(params=CHECKPOINTS, scope="module")
def checkpoint(request, tmp_path_factory) -> tuple[Decoder, Shape]:
    form, shape = CHECKPOINTS[request.param]
    place, tensors = tmp_path_factory.mktemp("checkpoint"), random_tensors(shape)
    if form == "huggingface":
        return huggingface.load(write_huggingface(place, tensors, shape))[0], shape
    return gguf_file.load(write_gguf(place / "tiny.gguf", tensors, shape))[0], shape


@nnx.jit
def whole(decoder: Decoder, tokens: jax.Array) -> tuple[jax.Array, list[KeysValues]]:
    hidden, kept = decoder(tokens)
    return jax.nn.log_softmax(decoder.logits(hidden)), kept


@nnx.jit
def start(decoder: Decoder, prompt: jax.Array, length: jax.Array) -> tuple[jax.Array, Cache]:
    logits, memory = CachedDecoder(decoder).start(prompt, length, 2, len(TOKENS))
    return jax.nn.log_softmax(logits), memory


@nnx.jit
def one_more(decoder: Decoder, memory: Cache, tokens: jax.Array, active: jax.Array) -> tuple[jax.Array, Cache]:
    logits, memory = CachedDecoder(decoder).advance(memory, tokens, active)
    return jax.nn.log_softmax(logits), memory


def test_whole_sequences_have_the_log_probabilities_of_plain_numpy(checkpoint):
    decoder, shape = checkpoint
    found, _ = whole(decoder, jnp.array([TOKENS]))
    expected = log_probs(random_tensors(shape), shape, TOKENS)[None]
    assert expected.max() > -2.0  # far from uniform, so that agreement says something
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("prompt_length", [1, 4])
def test_token_by_token_decoding_has_the_log_probabilities_of_plain_numpy(checkpoint, prompt_length):
    """Two particles over one padded prompt; the second goes another way, and stands still in the first step."""
    decoder, shape = checkpoint
    other = TOKENS[:prompt_length] + [(token + 1) % shape.vocab for token in TOKENS[prompt_length:]]
    expected = [log_probs(random_tensors(shape), shape, tokens) for tokens in (TOKENS, other)]
    prompt = TOKENS[:prompt_length] + [9] * (len(TOKENS) - prompt_length)
    found, memory = start(decoder, jnp.array(prompt), jnp.array(prompt_length))
    np.testing.assert_allclose(found, [rows[prompt_length - 1] for rows in expected], atol=2e-4)
    for i in range(len(TOKENS) - prompt_length):
        places = [prompt_length + i, prompt_length + max(i - 1, 0)]
        found, memory = one_more(decoder, memory, jnp.array([TOKENS[places[0]], other[places[1]]]), jnp.array([True, i > 0]))
        for k in range(2 if i else 1):
            np.testing.assert_allclose(found[k], expected[k][places[k]], atol=2e-4)


def test_decoding_does_not_depend_on_what_a_prompt_is_padded_with(checkpoint):
    decoder, _ = checkpoint
    found = []
    for padding in (3, 250):
        _, memory = start(decoder, jnp.array(TOKENS[:4] + [padding] * 7), jnp.array(4))
        found.append(one_more(decoder, memory, jnp.array(TOKENS[4:6]), jnp.array([True, True]))[0])
    np.testing.assert_array_equal(found[0], found[1])
