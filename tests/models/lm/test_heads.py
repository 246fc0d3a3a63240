"""Classifiers: heads over labels against `transformers`, whole texts and every token; what cannot be a classifier is refused.

The reference values are made by tests/fixtures/make_families_reference.py.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posterity.models.lm import huggingface
from posterity.models.lm.heads import Classifier, hidden_states, sequence_scores, token_scores
from posterity.models.lm.load import load, load_classifier
from posterity.tests.fixtures.families import CASES, CLASSIFIERS, TOKENS, tensors, write

TEXT = "".join(chr(ord("A") + token) for token in TOKENS)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[2] / "fixtures" / "families_reference.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("classifier"), settings, shards=2) for name, settings in CLASSIFIERS.items()}


@pytest.fixture(scope="module")
def reward(directories) -> Classifier:
    return load_classifier(f"hf:{directories['Qwen2, one reward']}")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if "2, tokens" in name and "GPT" not in name else name for name in CLASSIFIERS])
def test_scores_are_those_of_transformers(name, directories, reference):
    decoder, _ = huggingface.load(directories[name])
    assert decoder.config.labels == tuple(CLASSIFIERS[name]["id2label"].values())
    if "tokens" in name:
        found = nnx.jit(token_scores)(decoder, jnp.array([TOKENS]))[0]
    else:  # padded: what follows a text does not change its scores
        found = nnx.jit(sequence_scores)(decoder, jnp.array([[*TOKENS, 4, 4], [*TOKENS, 30, 1]]), jnp.array([len(TOKENS)] * 2))[1]
    np.testing.assert_allclose(found, reference[name], atol=1e-4, rtol=0)


def test_hidden_states_are_what_heads_read(tmp_path, reference):
    """So that a linear map of them, here the one over the vocabulary by plain NumPy, gives the logits of transformers."""
    decoder, _ = huggingface.load(write(tmp_path, CASES["Qwen3"]))
    found = nnx.jit(hidden_states)(decoder, jnp.array([TOKENS]))
    assert found.shape == (1, len(TOKENS), 32)
    np.testing.assert_allclose(np.asarray(found[0]) @ tensors(CASES["Qwen3"])["lm_head.weight"].T, reference["Qwen3"], atol=1e-4)


def test_texts_of_different_lengths_are_scored_together(reward, reference):
    texts = [TEXT, TEXT[:1], TEXT[:7], TEXT * 2]
    scores, by_token = reward.scores(texts), reward.scores_by_token(texts)
    assert scores.shape == (4, 1)
    np.testing.assert_allclose(scores[0], reference["Qwen2, one reward"], atol=1e-4)
    assert [len(rows) for rows in by_token] == [len(text) for text in texts]
    np.testing.assert_allclose([rows[-1] for rows in by_token], scores, atol=1e-4)
    np.testing.assert_allclose(by_token[0][[0, 6]], scores[1:3], atol=1e-4)
    assert reward.labels == ("reward",)


def test_weights_of_a_classifier_may_be_bfloat16(directories, reference):
    classifier = load_classifier(f"hf:{directories['Qwen2, one reward']}", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(classifier)} == {jnp.dtype("bfloat16")}
    found = classifier.scores([TEXT])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], reference["Qwen2, one reward"], atol=0.3)  # rewards of this model have a standard deviation above 1


def test_a_saved_classifier_loads_as_it_was(directories, tmp_path):
    decoder, tokenizer = huggingface.load(directories["GPT-2, tokens"])
    huggingface.save(tmp_path, decoder, tokenizer)
    again, _ = huggingface.load(tmp_path)
    assert again.config == decoder.config
    np.testing.assert_array_equal(again.head.kernel[...], decoder.head.kernel[...])
    np.testing.assert_array_equal(again.head.bias[...], decoder.head.bias[...])


def test_a_classifier_is_no_language_model_nor_the_other_way_round(directories, tmp_path):
    with pytest.raises(ValueError, match="is a classifier, not a language model; use load_classifier"):
        load(f"hf:{directories['Llama, tokens']}")
    with pytest.raises(ValueError, match="is a language model, not a classifier; use load"):
        load_classifier(f"hf:{write(tmp_path, CASES['GPT-2'])}")
    with pytest.raises(ValueError, match="no model is called 'abacus'; known are 'gguf:PATH', 'hf:DIRECTORY', 'hub:OWNER/NAME'"):
        load_classifier("abacus")
    decoder, tokenizer = huggingface.load(tmp_path)
    with pytest.raises(ValueError, match="tiny: this decoder has no head for classification"):
        Classifier.of(decoder, tokenizer, "tiny")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the labels 0, 1, ..., got"),
        ({"id2label": {"0": "a", "1": "b"}}, r"tensor score.weight has shape \(1, 32\), its configuration calls for \(2, 32\)"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, r"tensor score.bias of shape \(1,\) is missing"),
        ({"architectures": ["Qwen2ForCausalLM"]}, r"tensor lm_head.weight of shape \(40, 32\) is missing"),
    ],
    ids=["labels with a gap", "more labels than rows", "a bias that is not there", "a decoder without its head"],
)
def test_heads_that_do_not_fit_are_refused(tmp_path, changed, reason):
    settings = CLASSIFIERS["Qwen2, one reward"]
    write(tmp_path, settings)
    write(tmp_path / "other", settings | changed)
    (tmp_path / "other" / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=reason):
        huggingface.load(tmp_path / "other")


@pytest.mark.parametrize(("texts", "reason"), [("AB", "give a list of texts, not one text"), (["A", ""], "'' has 0"), (["A" * 65], "1 to 64 tokens; 'AAA")])
def test_texts_that_cannot_be_scored_are_refused(reward, texts, reason):
    with pytest.raises(ValueError, match=reason):
        reward.scores(texts)
