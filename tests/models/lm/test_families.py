"""Every family against `transformers`, on small random checkpoints, over whole texts and token by token.

The reference values are made by tests/fixtures/make_families_reference.py.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from posterity.models.lm import huggingface
from posterity.models.lm.cache import CachedDecoder
from posterity.models.lm.decoder import Decoder
from posterity.tests.fixtures.families import CASES, TOKENS, VOCABULARY, tensors, write

TOLERANCE = 1e-4
# What is decoded differently: windows and soft caps, and a state. The others differ in what their layers compute, and are slow tests.
DECODED = ("Gemma 2", "Mamba-2")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[2] / "fixtures" / "families_reference.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    """Each checkpoint in three shards."""
    return {name: write(tmp_path_factory.mktemp("family"), settings, shards=3) for name, settings in CASES.items()}


@nnx.jit
def token_by_token(model, prompt, length, rest):
    """Logits of two texts after the prompt and after each further token, [1 + rest, 2, vocabulary]."""
    model = CachedDecoder(model) if isinstance(model, Decoder) else model
    logits, memory = model.start(prompt, length, 2, rest.shape[0])

    def step(memory, token):
        logits, memory = model.advance(memory, jnp.full(2, token), jnp.ones(2, bool))
        return memory, logits

    return jnp.concatenate([logits[None], jax.lax.scan(step, memory, rest)[1]])


@pytest.mark.parametrize("family", CASES)
def test_logits_of_a_whole_text_are_those_of_transformers(family, directories, reference):
    model, tokenizer = huggingface.load(directories[family])
    hidden, _ = model(jnp.array([TOKENS]))
    assert np.ptp(reference[family], axis=-1).min() > 3.0  # far from uniform, so that agreement says something
    np.testing.assert_allclose(model.logits(hidden)[0], reference[family], atol=TOLERANCE, rtol=0)
    assert (tokenizer.vocab_size, tokenizer.end_ids) == (VOCABULARY, (2,))


@pytest.mark.parametrize("family", [family if family in DECODED else pytest.param(family, marks=pytest.mark.slow) for family in CASES])
def test_logits_of_token_by_token_decoding_are_those_of_transformers(family, directories, reference):
    model, _ = huggingface.load(directories[family])
    found = token_by_token(model, jnp.array([*TOKENS[:5], 9, 9, 9]), jnp.array(5), jnp.array(TOKENS[5:]))
    for text in range(2):
        np.testing.assert_allclose(found[:, text], reference[family][4:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", [pytest.param("Gemma 2", marks=pytest.mark.slow), "Mamba-2"])
def test_weights_in_bfloat16_stay_and_compute_in_bfloat16(family, directories, reference):
    model, _ = huggingface.load(directories[family], "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
    hidden, _ = model(jnp.array([TOKENS]))
    assert hidden.dtype == jnp.bfloat16
    # Rounding to 8 bits: not the same, and not far from it.
    error = np.abs(np.asarray(model.logits(hidden)[0], np.float32) - reference[family])
    assert 1e-3 < np.median(error) < 0.05 * np.std(reference[family])


@pytest.mark.parametrize("family", [family for family in CASES if family != "Mamba-2"])
def test_a_saved_decoder_of_any_family_is_the_one_that_was_loaded(family, directories, tmp_path):
    model, tokenizer = huggingface.load(directories[family])
    huggingface.save(tmp_path, model, tokenizer)
    found, expected = safetensors.numpy.load_file(tmp_path / "model.safetensors"), tensors(CASES[family])
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=1e-6, err_msg=name)  # Gemma's norms are held with 1 added
    again, same = huggingface.load(tmp_path)
    assert (again.config, same) == (model.config, tokenizer)


def test_a_combination_that_no_family_has_is_not_saved(directories, tmp_path):
    model, tokenizer = huggingface.load(directories["Gemma 2"])
    model.config = dataclasses.replace(model.config, norm="layer")
    with pytest.raises(ValueError, match=r"no architecture of Hugging Face \(LlamaForCausalLM, .*\) has a decoder of DecoderConfig"):
        huggingface.save(tmp_path, model, tokenizer)


def test_old_files_of_gpt2_hold_the_body_alone_and_its_masks(tmp_path, reference):
    write(tmp_path, CASES["GPT-2"])
    old = {name.removeprefix("transformer."): x for name, x in tensors(CASES["GPT-2"]).items()}
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for i in range(2)}
    safetensors.numpy.save_file(old | masks, tmp_path / "model.safetensors")
    model, _ = huggingface.load(tmp_path)
    np.testing.assert_allclose(model.logits(model(jnp.array([TOKENS]))[0])[0], reference["GPT-2"], atol=TOLERANCE, rtol=0)


def test_learned_positions_end_with_the_context_and_padding_beyond_it_is_finite(directories):
    model, _ = huggingface.load(directories["GPT-2"])
    with pytest.raises(ValueError, match="positions for 64 tokens, got sequences of 65"):
        model(jnp.zeros((1, 65), jnp.int32))
    assert np.isfinite(model.embedded(jnp.zeros(3, jnp.int32), jnp.array([63, 64, 100]))).all()


def test_an_unknown_type_of_number_is_refused_with_the_known_ones(directories):
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'bfloat16', got 'int8'"):
        huggingface.load(directories["GPT-2"], "int8")


def test_newer_files_say_rope_in_one_place(directories, reference, tmp_path):
    """As `transformers` 5 writes Gemma 3: a rotation for each kind of layer."""
    settings = {key: value for key, value in CASES["Gemma 3"].items() if not key.startswith("rope") and key != "sliding_window_pattern"}
    kinds = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}
    new, _ = huggingface.load(write(tmp_path, settings | {"rope_parameters": kinds}))
    assert new.config == huggingface.load(directories["Gemma 3"])[0].config
