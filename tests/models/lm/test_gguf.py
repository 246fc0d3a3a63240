"""GGUF files: what they hold is what the decoder computes with, and what cannot be used is refused with its reason."""

import itertools
from functools import partial

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posterity.models.lm import gguf_file, huggingface
from posterity.models.lm.gguf_metadata import Metadata
from posterity.tests.fixtures import families
from posterity.tests.fixtures.tiny_llama import TEMPLATE, Shape, blocks_of, bpe, floats_of, gguf_tensors, log_probs, random_tensors, vocabulary, write_gguf

TOKENS = [1, 250, 7, 7, 33, 120, 299, 0]
WIDE = Shape(hidden=256, intermediate=256, layers=1, size=64)  # K-quants come in blocks of 256
LINES = ("hello world", "12 apples, ²½ ٣٤\n\n\t é 😀", "<|im_start|>user\nhell<|im_end|>", " <|im_start|", "")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


@nnx.jit
def whole(decoder, tokens):
    return jax.nn.log_softmax(decoder.logits(decoder(tokens)[0]))[0]


@pytest.mark.parametrize("quantisation", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K"])
def test_quantised_weights_give_the_log_probabilities_of_plain_numpy_on_the_same_values(path, quantisation):
    blocks = blocks_of(random_tensors(WIDE), quantisation)
    decoder, _ = gguf_file.load(write_gguf(path, blocks, WIDE, quantisation))
    np.testing.assert_allclose(whole(decoder, jnp.array([TOKENS])), log_probs(floats_of(blocks, quantisation), WIDE, TOKENS), atol=5e-4)


def test_biases_and_a_free_head_arrive_in_place(path):
    shape = Shape(bias=True, tied=False)
    tensors = random_tensors(shape)
    decoder, _ = gguf_file.load(write_gguf(path, tensors, shape, **{"tokenizer.ggml.pre": "qwen2"}))
    for kind, found in (("bias", decoder.layers[1].query_key_value.bias[...]), ("weight", decoder.layers[1].query_key_value.kernel[...].T)):
        np.testing.assert_array_equal(found, np.concatenate([tensors[f"model.layers.1.self_attn.{part}_proj.{kind}"] for part in "qkv"]))
    np.testing.assert_array_equal(decoder.head.kernel[...].T, tensors["lm_head.weight"])


FAMILIES = ("Llama 2", "Llama 3.1", "Llama, linear scaling", "Mistral", "Qwen2.5", "Qwen2.5, YaRN", "Qwen3", "Gemma 2", "Gemma 3", "GPT-2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_the_one_that_a_hugging_face_directory_holds(tmp_path, family):
    """That one is compared with `transformers` in test_families.py: the same weights in the same decoder compute the same."""
    plain = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "query_pre_attn_scalar": families.SIZE}
    settings = next(found for name, found in families.CASES.items() if name.startswith(family))
    settings = settings | {key: value for key, value in plain.items() if key in settings}
    decoder, tokenizer = gguf_file.load(families.write_gguf(tmp_path / "tiny.gguf", settings))
    expected, _ = huggingface.load(families.write(tmp_path / "expected", settings))
    huggingface.save(tmp_path / "saved", decoder, tokenizer)
    found, _ = huggingface.load(tmp_path / "saved")
    for field, value in vars(found.config).items():  # files hold numbers in float32
        same = np.testing.assert_equal if isinstance(value, str | None) or field == "windows" else partial(np.testing.assert_allclose, rtol=1e-6)
        same(value, getattr(expected.config, field), err_msg=field)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), nnx.state(found), nnx.state(expected))


def test_old_files_say_linear_scaling_in_another_place(path):
    decoder, _ = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape(), **{"rope.scale_linear": 4.0}))
    assert decoder.config.rope_divisors == (4.0,) * 4


def test_the_largest_gemmas_scale_their_scores_by_another_width(path):
    """Gemma 2 27B: its files do not say that it divides by the width of the model over the number of heads; its 46 layers do."""
    settings = families.CASES["Gemma 2"] | {"num_hidden_layers": 46, "num_attention_heads": 2, "num_key_value_heads": 2}
    reader = gguf.GGUFReader(families.write_gguf(path, settings))
    config = gguf_file.read_config(Metadata(path, reader.fields), {tensor.name: tensor for tensor in reader.tensors})
    assert config.attention_scale == 16**-0.5


def test_the_model_outlives_its_file(path):
    decoder, _ = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape()))
    path.write_bytes(b"\0" * path.stat().st_size)
    np.testing.assert_array_equal(decoder.norm.scale[...], random_tensors(Shape())["model.norm.weight"])


@pytest.mark.parametrize("text", LINES)
def test_the_tokenizer_of_the_metadata_is_the_one_that_was_written(path, text):
    _, tokenizer = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape()))
    assert tokenizer.encode(text) == bpe().encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert tokenizer.vocab_size == Shape().vocab
    assert tokenizer.end_ids == (0, 2)
    assert tokenizer.chat_template == TEMPLATE


WORDS = {
    "gpt-2": ["It", "'", "S", " 1234567", " naïve", "  ", " tests", "!\n"],
    "smollm": ["It", "'", "S", " ", *"1234567", " naïve", "  ", " tests", "!\n"],
    "llama-bpe": ["It", "'S", " ", "123", "456", "7", " naïve", "  ", " tests", "!\n"],
    "qwen2": ["It", "'S", " ", *"1234567", " naïve", "  ", " tests", "!\n"],
}


@pytest.mark.parametrize("style", WORDS)
def test_each_pre_tokenizer_cuts_words_as_its_family_does(path, style):
    """Expected words by the published patterns of GPT-2, SmolLM, Llama 3 and Qwen 2 ("!\\n" is two words in the first two)."""
    expected = [part for word in WORDS[style] for part in (("!", "\n") if word == "!\n" and style in ("gpt-2", "smollm") else (word,))]
    _, tokenizer = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape(), **{"tokenizer.ggml.pre": style}))
    text = "It'S 1234567 naïve   tests!\n"
    assert [text[start:stop] for _, (start, stop) in tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)] == expected


PIECES = ["\u2581a", "ab", "\u2581ab", "ba", "abab", "bb", "\u2581\u2581", "b\u2581", "\u2581b", "aab", "abb", "a\u2581b", "é"]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", *PIECES, "<start_of_turn>"],
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(i % 7) * 10 - i for i in range(3 + len(PIECES))] + [0.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (3 + len(PIECES)) + [4],
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.pre": "default",
}


def joined_by_score(text: str) -> list[str]:
    """SentencePiece's BPE as it is told: of all neighbours that make a piece, the ones whose piece scores highest are joined, leftmost first."""
    scores = dict(zip(SENTENCEPIECE["tokenizer.ggml.tokens"], SENTENCEPIECE["tokenizer.ggml.scores"], strict=True))
    parts = list(text)
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not pairs:
            return [piece for part in parts for piece in ([part] if part in scores else [f"<0x{byte:02X}>" for byte in part.encode()])]
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("opened", [True, False])
def test_sentencepieces_are_joined_by_their_scores(path, opened):
    _, tokenizer = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape(), **SENTENCEPIECE, **{"tokenizer.ggml.add_space_prefix": opened}))
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(["a", "b", " ", "é", "ü"], size, p=[0.35, 0.35, 0.2, 0.05, 0.05])) for size in rng.integers(1, 30, 200)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids[0] == 1  # SentencePiece's models open their texts
        found = [SENTENCEPIECE["tokenizer.ggml.tokens"][i] for i in ids[1:]]
        assert found == joined_by_score(("\u2581" if opened else "") + text.replace(" ", "\u2581"))
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes[i] for i in ids[1:]).decode() == (" " if opened else "") + text
    ids = tokenizer.encode("ab<start_of_turn>ab")
    assert ids.count(len(SENTENCEPIECE["tokenizer.ggml.tokens"]) - 1) == 1


def test_a_beginning_is_added_where_the_file_asks_for_it_and_only_once(path):
    _, tokenizer = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape(), **{"tokenizer.ggml.add_bos_token": True}))
    assert tokenizer.encode("hello")[0] == 1
    assert tokenizer.encode("<|im_start|>hello") == tokenizer.encode("hello")


def test_tokens_marked_unused_have_no_bytes_and_user_defined_ones_are_whole(path):
    kinds = [gguf.TokenType.NORMAL] * len(vocabulary())
    kinds[0], kinds[2] = gguf.TokenType.UNUSED, gguf.TokenType.USER_DEFINED
    _, tokenizer = gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape(), **{"tokenizer.ggml.token_type": [int(kind) for kind in kinds]}))
    assert tokenizer.token_bytes[:3] == (b"", b"<|im_start|>", b"<|im_end|>")
    assert tokenizer.encode("hello<|im_end|>")[-1] == 2
    assert tokenizer.decode([2]) == "<|im_end|>"


REFUSED = {
    "architecture gemma is not supported; supported are llama, qwen2, qwen3, gemma2, gemma3, gpt2": {"architecture": "gemma"},
    "llama.rope.scaling.type = longrope is not supported; supported are none, linear, yarn": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
    "metadata llama.rope.scaling.factor is missing": {"rope.scaling.type": "yarn"},
    "llama.rope.scaling.factor must be positive, got 0.0": {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0},
    "llama.expert_count = 8 is not supported": {"expert_count": 8},
    "qwen2.attention.sliding_window = 128 is not supported": {"architecture": "qwen2", "attention.sliding_window": 128},
    "llama.rope.dimension_count = 4 is not supported where heads have 8 channels": {"rope.dimension_count": 4},
    "metadata llama.block_count is missing": {"block_count": None},
    "metadata llama.context_length must be a whole number, got 'long'": {"context_length": "long"},
    "num_heads (4) must be a multiple of num_kv_heads (3)": {"attention.head_count_kv": 3},
    "4000000000 layers, but there are only 20 tensors": {"block_count": 4_000_000_000},
    "tensor blk.0.ffn_down.weight has shape (32, 64), its configuration calls for (32, 65)": {"feed_forward_length": 65},
    "tensor blk.2.attn_norm.weight of shape (32,) is missing": {"block_count": 3},
    "tensors that this architecture does not have: blk.1.": {"block_count": 1},
    "tokenizer model bert is not supported; supported are gpt2 (byte-level BPE) and llama (SentencePiece)": {"tokenizer.ggml.model": "bert"},
    "metadata tokenizer.ggml.scores is missing": {"tokenizer.ggml.model": "llama"},
    "265 tokens with 1 scores": {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0]},
    "pre-tokenizer tekken is not supported; supported are gpt-2, smollm, llama-bpe, qwen2": {"tokenizer.ggml.pre": "tekken"},
    "metadata tokenizer.ggml.merges is missing": {"tokenizer.ggml.merges": None},
    "do not fit together": {"tokenizer.ggml.merges": ["h e", "he xyz"]},
    "1 types": {"tokenizer.ggml.token_type": [1]},
    "tokenizer.ggml.eos_token_id = 999, but there are 265 tokens": {"tokenizer.ggml.eos_token_id": 999},
    "it has 265 tokens, more than the model's vocabulary of 200": {"vocab_size": 200},
    "big-endian": {"endianess": gguf.GGUFEndian.BIG},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_decoder_cannot_do_is_refused_with_its_reason(path, reason):
    with pytest.raises(ValueError, match=r"tiny\.gguf") as error:
        gguf_file.load(write_gguf(path, random_tensors(Shape()), Shape(), **REFUSED[reason]))
    assert reason in str(error.value)


def test_an_unsupported_quantisation_is_refused_with_the_supported_ones(path):
    tensors = random_tensors(WIDE)
    width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.IQ2_XS][1]
    blocks = {name: x if x.ndim == 1 else np.zeros((len(x), x.shape[1] // 256 * width), np.uint8) for name, x in tensors.items()}
    with pytest.raises(ValueError, match=r"tiny.gguf: tensor \S+ is of type IQ2_XS; supported are F32, F16, BF16, Q8_0"):
        gguf_file.load(write_gguf(path, blocks, WIDE, "IQ2_XS"))


@pytest.mark.parametrize("factors", [np.ones(3, np.float32), np.ones(4, np.float16)], ids=["too few", "another type"])
def test_rope_divisors_that_do_not_fit_are_refused(path, factors):
    with pytest.raises(ValueError, match=r"tiny.gguf: tensor rope_freqs.weight must be 4 numbers of type F32"):
        gguf_file.load(write_gguf(path, random_tensors(Shape()) | {"rope_freqs.weight": factors}, Shape()))


def test_weights_that_are_not_finite_are_refused(path):
    tensors = random_tensors(Shape())
    tensors["model.norm.weight"][3] = np.nan
    with pytest.raises(ValueError, match=r"tiny.gguf: tensor output_norm.weight holds values that are not finite"):
        gguf_file.load(write_gguf(path, tensors, Shape()))


def test_a_file_truncated_anywhere_is_refused(path):
    whole_file = write_gguf(path, random_tensors(Shape()), Shape()).read_bytes()
    for length in [*range(4, 64), *range(64, len(whole_file), len(whole_file) // 97), len(whole_file) - 1]:
        path.write_bytes(whole_file[:length])
        with pytest.raises(ValueError, match=r"tiny.gguf: truncated or corrupt GGUF file: .* ends at byte"):
            gguf_file.load(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"hello, world", b"PK\x03\x04" * 99], ids=["empty", "two bytes", "text", "zip"])
def test_a_file_of_another_kind_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tiny.gguf: not a GGUF file"):
        gguf_file.load(path)


def test_a_file_that_is_not_there_is_named(path, tmp_path):
    for missing in (path, tmp_path):
        with pytest.raises(FileNotFoundError, match=missing.name):
            gguf_file.load(missing)


def test_damaged_headers_are_refused_or_harmless_but_never_crash(path):
    """A byte of the header set at random: the file loads, or ValueError says, by its name, what is wrong with it."""
    shape = Shape(layers=1)
    content = write_gguf(path, random_tensors(shape), shape).read_bytes()
    header = len(content) - sum(x.nbytes + 32 for x in gguf_tensors(random_tensors(shape), shape).values())
    rng, refused = np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[int(rng.integers(4, header))] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        reason = None
        try:
            gguf_file.load(path)
        except ValueError as error:
            reason = str(error)
        assert reason is None or str(path) in reason
        refused += reason is not None
    assert refused > 10
