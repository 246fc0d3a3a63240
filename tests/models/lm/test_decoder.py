"""The decoder against a Llama in plain NumPy, over whole sequences and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posterity.models.lm import gguf_file, huggingface
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder, KeysValues, rotate
from posterity.tests.fixtures.tiny_llama import Shape, log_probs, random_tensors, write_gguf, write_huggingface

CHECKPOINTS = {
    "half layout, grouped queries, tied head": ("huggingface", Shape()),
    "half layout, biases, free head": ("huggingface", Shape(bias=True, tied=False)),
    "interleaved layout, one key head, free head": ("gguf", Shape(tied=False, kv_heads=1, theta=10_000.0)),
    "interleaved layout, heads wider than the model": ("gguf", Shape(heads=3, kv_heads=3, size=16, epsilon=1e-3)),
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
def one_more(decoder: Decoder, token, prompt, prompt_length, suffix, lengths) -> tuple[jax.Array, list[KeysValues]]:
    hidden, suffix = decoder.decode(token, prompt, prompt_length, suffix, lengths)
    return jax.nn.log_softmax(decoder.logits(hidden)), suffix


def nothing_yet(shape: Shape) -> list[KeysValues]:
    empty = jnp.zeros((2, len(TOKENS), shape.kv_heads, shape.size))
    return [KeysValues(empty, empty)] * shape.layers


def test_whole_sequences_have_the_log_probabilities_of_plain_numpy(checkpoint):
    decoder, shape = checkpoint
    found, _ = whole(decoder, jnp.array([TOKENS]))
    expected = log_probs(random_tensors(shape), shape, TOKENS)[None]
    assert expected.max() > -2.0  # far from uniform, so that agreement says something
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("prompt_length", [1, 4])
def test_token_by_token_decoding_has_the_log_probabilities_of_plain_numpy(checkpoint, prompt_length):
    """Two particles over one padded prompt; the second goes another way, and from its second step on is one token shorter."""
    decoder, shape = checkpoint
    other = TOKENS[:prompt_length] + [(token + 1) % shape.vocab for token in TOKENS[prompt_length:]]
    expected = [log_probs(random_tensors(shape), shape, tokens) for tokens in (TOKENS, other)]
    _, prompt = whole(decoder, jnp.array([TOKENS[:prompt_length] + [9] * (len(TOKENS) - prompt_length)]))
    suffix = nothing_yet(shape)
    for i in range(len(TOKENS) - prompt_length):
        lengths = np.array([i, max(i - 1, 0)])
        token = jnp.array([TOKENS[prompt_length + lengths[0]], other[prompt_length + lengths[1]]])
        found, suffix = one_more(decoder, token, prompt, jnp.array(prompt_length), suffix, jnp.array(lengths))
        np.testing.assert_allclose(found, [expected[k][prompt_length + lengths[k]] for k in range(2)], atol=2e-4)


def test_decoding_does_not_depend_on_what_a_prompt_is_padded_with(checkpoint):
    decoder, shape = checkpoint
    found = []
    for padding in (3, 250):
        _, prompt = whole(decoder, jnp.array([TOKENS[:4] + [padding] * 7]))
        found.append(one_more(decoder, jnp.array(TOKENS[4:6]), prompt, jnp.array(4), nothing_yet(shape), jnp.array([0, 0]))[0])
    np.testing.assert_array_equal(found[0], found[1])


def test_the_layouts_of_rope_differ_only_in_the_order_of_channels():
    half, interleaved = (DecoderConfig(4, 8, 8, 1, 1, 1, 8, 64, rope_layout=layout) for layout in ("half", "interleaved"))
    x, positions = jnp.arange(24.0).reshape(1, 3, 1, 8), jnp.array([0, 1, 30])
    order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
    np.testing.assert_allclose(rotate(x, positions, half)[..., order], rotate(x[..., order], positions, interleaved), rtol=1e-6)
    assert not np.allclose(rotate(x, positions, half), rotate(x, positions, interleaved))
