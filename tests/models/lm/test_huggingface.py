"""Hugging Face directories: what they hold is what is loaded, what is saved loads again, and what does not fit is refused."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from posterity.models.lm import gguf_file, huggingface
from posterity.models.lm.tokenizer import Tokenizer
from posterity.tests.fixtures.tiny_llama import TEMPLATE, Shape, bpe, random_tensors, write_gguf, write_huggingface


@nnx.jit
def logits(decoder, tokens):
    return decoder.logits(decoder(tokens)[0])


def side_by_side(tensors: dict[str, np.ndarray], name: str, parts) -> np.ndarray:
    return np.concatenate([tensors[name.format(part)] for part in parts])


def assert_holds(decoder, tensors: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(decoder.embed.embedding[...], tensors["model.embed_tokens.weight"])
    for i, layer in enumerate(decoder.layers):
        np.testing.assert_array_equal(layer.query_key_value.kernel[...].T, side_by_side(tensors, f"model.layers.{i}.self_attn.{{}}_proj.weight", "qkv"))
        np.testing.assert_array_equal(layer.up.kernel[...].T, side_by_side(tensors, f"model.layers.{i}.mlp.{{}}_proj.weight", ("gate", "up")))
        np.testing.assert_array_equal(layer.down.kernel[...], tensors[f"model.layers.{i}.mlp.down_proj.weight"].T)
        np.testing.assert_array_equal(layer.mlp_norm.scale[...], tensors[f"model.layers.{i}.post_attention_layernorm.weight"])


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_are_loaded_from_one_file_or_several(tmp_path, shards):
    shape = Shape(tied=False)
    decoder, tokenizer = huggingface.load(write_huggingface(tmp_path, random_tensors(shape), shape, shards))
    assert_holds(decoder, random_tensors(shape))
    np.testing.assert_array_equal(decoder.head.kernel[...], random_tensors(shape)["lm_head.weight"].T)
    assert (tokenizer.vocab_size, tokenizer.end_ids) == (300, (2,))
    assert tokenizer.encode("hello 12") == bpe().encode("hello 12").ids


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_any_precision_become_float32(tmp_path, dtype):
    tensors = {name: x.astype(dtype) for name, x in random_tensors(Shape()).items()}
    decoder, _ = huggingface.load(write_huggingface(tmp_path, tensors, Shape()))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(decoder))} == {jnp.dtype("float32")}
    assert_holds(decoder, {name: x.astype(np.float32) for name, x in tensors.items()})


def test_a_saved_model_loads_as_it_was(tmp_path):
    shape = Shape(bias=True, tied=False)
    decoder, _ = huggingface.load(write_huggingface(tmp_path / "first", random_tensors(shape), shape))
    tokenizer = Tokenizer(bpe(), end_ids=(0, 2), size=300, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=TEMPLATE)
    huggingface.save(tmp_path / "second", decoder, tokenizer)
    again, same = huggingface.load(tmp_path / "second")
    assert same == tokenizer
    assert again.config == decoder.config
    assert_holds(again, random_tensors(shape))
    np.testing.assert_array_equal(again.layers[1].query_key_value.bias[...], decoder.layers[1].query_key_value.bias[...])


def test_a_decoder_from_a_gguf_file_is_saved_without_changing_the_model(tmp_path):
    decoder, tokenizer = gguf_file.load(write_gguf(tmp_path / "tiny.gguf", random_tensors(Shape()), Shape()))
    huggingface.save(tmp_path / "saved", decoder, tokenizer)
    again, _ = huggingface.load(tmp_path / "saved")
    assert_holds(again, random_tensors(Shape()))
    tokens = jnp.array([[1, 250, 7, 33, 120]])
    np.testing.assert_allclose(logits(again, tokens), logits(decoder, tokens), atol=1e-4)


def test_extra_files_say_how_texts_begin_and_end_and_how_one_chats(tmp_path):
    write_huggingface(tmp_path, random_tensors(Shape()), Shape())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 264]}')
    options = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": [{"name": "default", "template": "D"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    _, tokenizer = huggingface.load(tmp_path)
    assert tokenizer.end_ids == (0, 2, 264)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == ("<|im_start|>", "<|im_end|>", "D")
    (tmp_path / "chat_template.jinja").write_text("J")
    assert huggingface.load(tmp_path)[1].chat_template == "J"


def test_prompts_are_never_cut_to_the_length_a_tokenizer_was_trained_at(tmp_path):
    write_huggingface(tmp_path, random_tensors(Shape()), Shape())
    cutting = bpe()
    cutting.enable_truncation(2)
    cutting.save(str(tmp_path / "tokenizer.json"))
    assert len(huggingface.load(tmp_path)[1].encode("abcdef")) == 6


@pytest.mark.parametrize(
    "changed",
    [
        {"architectures": ["MistralForCausalLM"], "sliding_window": None},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_scaling": None, "head_dim": None},
    ],
    ids=["Mistral", "RoPE by its newer name", "head size from the hidden size"],
)
def test_configurations_of_the_family_are_read(tmp_path, changed):
    decoder, _ = huggingface.load(write_huggingface(tmp_path, random_tensors(Shape()), Shape(), **changed))
    assert (decoder.config.rope_theta, decoder.config.head_dim) == (500.0, 8)


REFUSED = {
    "architecture OPTForCausalLM is not supported; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma2": {
        "architectures": ["OPTForCausalLM"]
    },
    "architecture none is not supported": {"architectures": None},
    "rope_scaling {'type': 'dynamic', 'factor': 2.0} is not supported; supported are default, linear, llama3, yarn": {
        "rope_scaling": {"type": "dynamic", "factor": 2.0}
    },
    "low_freq_factor must be a positive number, got None": {"rope_parameters": {"rope_type": "llama3"}},
    "mscale = 2.0 is not supported": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 2.0}},
    "partial_rotary_factor = 0.5 is not supported": {"partial_rotary_factor": 0.5},
    "hidden_act = relu is not supported; supported are silu, swish, gelu": {"hidden_act": "relu"},
    "attention_bias must be true or false, got 'yes'": {"attention_bias": "yes"},
    "layer_types must be a list of sliding_attention and full_attention, got ['chunked_attention']": {
        "architectures": ["Gemma2ForCausalLM"],
        "layer_types": ["chunked_attention"],
    },
    "windows must hold one entry for each of 2 layers, got 1": {"architectures": ["Gemma2ForCausalLM"], "layer_types": ["sliding_attention"]},
    "windows must be positive, got 0": {"architectures": ["MistralForCausalLM"], "sliding_window": 0},
    "tensor model.layers.0.self_attn.o_proj.bias of shape (32,) is missing": {"attention_bias": True},
    "hidden_size must be a whole number, got '32'": {"hidden_size": "32"},
    "num_hidden_layers must be a whole number, got None": {"num_hidden_layers": None},
    "rope_theta must be a positive number, got -1": {"rope_theta": -1},
    "num_heads (4) must be a multiple of num_kv_heads (3)": {"num_key_value_heads": 3},
    "says 1000000000 layers, but there are only 20 tensors": {"num_hidden_layers": 10**9},
    "tensor model.layers.0.mlp.down_proj.weight has shape (32, 64), its configuration calls for (32, 48)": {"intermediate_size": 48},
    "tensor lm_head.weight of shape (300, 32) is missing": {"tie_word_embeddings": False},
    "tensor model.layers.0.self_attn.k_norm.weight of shape (8,) is missing": {"architectures": ["Qwen3ForCausalLM"]},
    "9 tensors that this architecture does not have: model.layers.1.": {"num_hidden_layers": 1},
    "it has 265 tokens, more than the model's vocabulary of 200": {"vocab_size": 200},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_configurations_that_do_not_fit_are_refused_with_their_reason(tmp_path, reason):
    directory = write_huggingface(tmp_path / "tiny", random_tensors(Shape()), Shape(), **REFUSED[reason])
    with pytest.raises(ValueError, match="tiny") as error:
        huggingface.load(directory)
    assert reason in str(error.value)


def test_tensors_that_are_stored_beside_those_needed_are_harmless(tmp_path):
    tensors = random_tensors(Shape())
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32), "lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert_holds(huggingface.load(write_huggingface(tmp_path, tensors | old, Shape()))[0], tensors)


@pytest.mark.parametrize("length", [0, 4, 300, 9_000])
def test_truncated_weights_are_refused(tmp_path, length):
    file = write_huggingface(tmp_path, random_tensors(Shape()), Shape()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated or not a safetensors file"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("value", "reason"), [(np.inf, "holds values that are not finite"), (7, "is of type int32; supported are floating-point types")], ids=["infinite", "whole"]
)
def test_weights_that_are_not_finite_numbers_are_refused(tmp_path, value, reason):
    tensors = random_tensors(Shape())
    tensors["model.norm.weight"] = np.full(32, value, np.float32 if value == np.inf else np.int32)
    with pytest.raises(ValueError, match=f"tensor model.norm.weight {reason}"):
        huggingface.load(write_huggingface(tmp_path, tensors, Shape()))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_huggingface(tmp_path, random_tensors(Shape()), Shape(), shards=2)
    files = sorted(tmp_path.glob("model-*"))
    twice = safetensors.numpy.load_file(files[0]) | safetensors.numpy.load_file(files[1])
    safetensors.numpy.save_file(twice, files[1])
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors: tensor \S+ is also in model-00001"):
        huggingface.load(tmp_path)


def test_an_index_cannot_lead_out_of_its_directory(tmp_path):
    write_huggingface(tmp_path, random_tensors(Shape()), Shape())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}')
    with pytest.raises(ValueError, match="weight_map must map tensor names to files of this directory"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, missing):
    (write_huggingface(tmp_path, random_tensors(Shape()), Shape()) / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        huggingface.load(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such model directory"):
        huggingface.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", "[]", "config.json: must hold a JSON object, got list"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "nonsense", "tokenizer_config.json: not valid JSON"),
        ("generation_config.json", '{"eos_token_id": 999}', r"end_ids must lie in 0..299, got \[999\]"),
    ],
)
def test_damaged_text_files_are_refused(tmp_path, file, content, reason):
    (write_huggingface(tmp_path, random_tensors(Shape()), Shape()) / file).write_text(content)
    with pytest.raises(ValueError, match=reason):
        huggingface.load(tmp_path)
