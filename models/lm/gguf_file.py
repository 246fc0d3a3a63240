"""GGUF files, the format of llama.cpp: weights, quantised or not, configuration and tokenizer in one file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from gguf import GGUFEndian, GGUFReader, dequantize
from gguf import TokenType as Kind
from gguf.gguf_reader import ReaderField, ReaderTensor
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from posterity.models.lm import checkpoint
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.tokenizer import Tokenizer

# The converter of `llama` checkpoints interleaves the channels of queries and keys; that of `qwen2` leaves them.
ROPE_LAYOUTS: dict[str, Literal["half", "interleaved"]] = {"llama": "interleaved", "qwen2": "half"}
QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
NAMES = checkpoint.Names(
    embed="token_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    parts={
        "attention_norm": "attn_norm",
        "query": "attn_q",
        "key": "attn_k",
        "value": "attn_v",
        "output": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    },
)
# Special tokens that end a text whether a file says so or not, as llama.cpp has them.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>")


def load(path: str | Path) -> tuple[Decoder, Tokenizer]:
    """The decoder, in float32, and the tokenizer of a GGUF file.

    Sizes and shapes are checked before any weight is read. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: for a file that is not GGUF, is truncated or damaged, or holds an architecture, quantisation or tokenizer
        that is not supported.
    """
    path = Path(path)
    reader = _open(path)
    metadata = Metadata(path, reader.fields)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = read_config(metadata, tensors)
    tokenizer = read_tokenizer(metadata, config)
    return _read_weights(path, config, tensors), tokenizer


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The key-value pairs of a file, read by type. Each reader raises ValueError, naming file and key, for a missing or other value."""

    path: Path
    fields: Mapping[str, ReaderField]

    def text(self, key: str, default: str | None = None) -> str:
        return self._read(key, default, str, "text")

    def whole(self, key: str, default: int | None = None) -> int:
        return self._read(key, default, int, "a whole number")

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._read(key, default, (int, float), "a number"))

    def flag(self, key: str, default: bool) -> bool:
        return self._read(key, default, bool, "true or false")

    def many(self, key: str, kind: type) -> list:
        values = self._read(key, None, list, "a list")
        if not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{self.path}: {key} must be a list of {kind.__name__}")
        return values

    def _read(self, key: str, default: Any, kind: type | tuple, said: str) -> Any:
        field = self.fields.get(key)
        if field is None and default is None:
            raise ValueError(f"{self.path}: metadata {key} is missing")
        try:
            value = default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: metadata {key} is not valid UTF-8") from error
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.path}: metadata {key} must be {said}, got {value!r}")
        return value


def read_config(metadata: Metadata, tensors: Mapping[str, ReaderTensor]) -> DecoderConfig:
    """The decoder that a file's metadata describe.

    Raises:
      ValueError: for what the decoder cannot do, and for metadata that are missing or of another type.
    """
    architecture = metadata.text("general.architecture")
    if architecture not in ROPE_LAYOUTS:
        raise ValueError(f"{metadata.path}: architecture {architecture} is not supported; supported are {', '.join(ROPE_LAYOUTS)}")

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    if metadata.text(key("rope.scaling.type"), "none") != "none" or "rope_freqs.weight" in tensors:
        raise ValueError(f"{metadata.path}: RoPE scaling is not supported; only plain RoPE is")
    for name in ("expert_count", "attention.sliding_window"):
        if value := metadata.whole(key(name), 0):
            raise ValueError(f"{metadata.path}: {key(name)} = {value} is not supported")
    hidden, heads = metadata.whole(key("embedding_length")), metadata.whole(key("attention.head_count"))
    size = metadata.whole(key("attention.key_length"), hidden // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if (other := metadata.whole(key(name), size)) != size:
            raise ValueError(f"{metadata.path}: {key(name)} = {other} is not supported where heads have {size} channels")
    try:
        return DecoderConfig(
            vocab_size=metadata.whole(key("vocab_size"), len(metadata.many("tokenizer.ggml.tokens", str))),
            hidden_size=hidden,
            intermediate_size=metadata.whole(key("feed_forward_length")),
            num_layers=metadata.whole(key("block_count")),
            num_heads=heads,
            num_kv_heads=metadata.whole(key("attention.head_count_kv"), heads),
            head_dim=size,
            context_length=metadata.whole(key("context_length")),
            rope_theta=metadata.real(key("rope.freq_base"), 10_000.0),
            rope_layout=ROPE_LAYOUTS[architecture],
            norm_epsilon=metadata.real(key("attention.layer_norm_rms_epsilon")),
            tied_head="output.weight" not in tensors,
            attention_bias=architecture == "qwen2",
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(metadata.path)) else f"{metadata.path}: {error}") from None


def read_tokenizer(metadata: Metadata, config: DecoderConfig) -> Tokenizer:
    """The byte-level BPE tokenizer of a file.

    Raises:
      ValueError: for other kinds of tokenizer, and for parts that do not fit together.
    """
    kind, style = metadata.text("tokenizer.ggml.model"), metadata.text("tokenizer.ggml.pre", "none")
    if kind != "gpt2":
        raise ValueError(f"{metadata.path}: tokenizer model {kind} is not supported; supported is gpt2 (byte-level BPE)")
    if style not in PRE_TOKENIZERS:
        raise ValueError(f"{metadata.path}: pre-tokenizer {style} is not supported; supported are {', '.join(PRE_TOKENIZERS)}")
    tokens, kinds = metadata.many("tokenizer.ggml.tokens", str), metadata.many("tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{metadata.path}: {len(tokens)} tokens ({len(set(tokens))} of them distinct) with {len(kinds)} types")
    merges = [tuple(merge.split(" ")) for merge in metadata.many("tokenizer.ggml.merges", str)]
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] != Kind.UNUSED}
    try:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, ignore_merges=style == "llama-bpe"))
    except Exception as error:  # the Rust library raises bare exceptions
        raise ValueError(f"{metadata.path}: tokenizer.ggml.tokens and merges do not fit together ({error})") from error
    backend.pre_tokenizer = PRE_TOKENIZERS[style]
    backend.decoder = tokenizers.decoders.ByteLevel()
    if style == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    special = [token for token, i in vocabulary.items() if kinds[i] in (Kind.CONTROL, Kind.UNKNOWN)]
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    defined = [token for token, i in vocabulary.items() if kinds[i] == Kind.USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(token, normalized=False, special=False) for token in defined])

    def token_of(key: str) -> str | None:
        i = metadata.whole(f"tokenizer.ggml.{key}", -1)
        if i >= len(tokens):
            raise ValueError(f"{metadata.path}: tokenizer.ggml.{key} = {i}, but there are {len(tokens)} tokens")
        return tokens[i] if i >= 0 else None

    bos, eos = token_of("bos_token_id"), token_of("eos_token_id")
    if bos is not None and metadata.flag("tokenizer.ggml.add_bos_token", style == "llama-bpe"):
        opening = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B", "special_tokens": [(bos, vocabulary[bos])]}
        backend.post_processor = tokenizers.processors.TemplateProcessing(**opening)
    ends = {eos, token_of("eot_token_id"), token_of("eom_token_id"), *(token for token in special if token in ENDS)}
    try:
        return Tokenizer(
            backend,
            end_ids=[vocabulary[token] for token in ends if token in vocabulary],
            size=config.vocab_size,
            bos_token=bos,
            eos_token=eos,
            chat_template=metadata.text("tokenizer.chat_template", "") or None,
        )
    except ValueError as error:
        raise ValueError(f"{metadata.path}: {error}") from error


def _split(pattern: str) -> PreTokenizer:
    return Sequence([Split(tokenizers.Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


_CONTRACTION, _WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How each family cuts a text into the words within which merges happen, by the name that llama.cpp has for it.
PRE_TOKENIZERS = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama-bpe": _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"),
}


class _Reader(GGUFReader):
    """The library's reader, which raises where it would read beyond the file.

    It also reads through a plain array: slicing a memmap costs so much that SmolLM2's tokenizer took 2.5 s of 3.6 to open.
    """

    def _get(self, offset, dtype, count=1, override_order=None):
        if isinstance(self.data, np.memmap):
            self.data = np.asarray(self.data)
        if (end := offset + np.dtype(dtype).itemsize * int(count)) > self.data.nbytes:
            raise ValueError(f"it ends at byte {self.data.nbytes:,}, where its header promises at least {end:,}")
        return super()._get(offset, dtype, count, override_order)


def _open(path: Path) -> GGUFReader:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file (it does not begin with the letters GGUF)")
    try:
        with np.errstate(over="raise"):  # an offset near 2^64 would wrap around into the file
            reader = _Reader(path)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: truncated or corrupt GGUF file: {error}") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise ValueError(f"{path}: a big-endian GGUF file; only little-endian ones are supported")
    return reader


def _read_weights(path: Path, config: DecoderConfig, tensors: Mapping[str, ReaderTensor]) -> Decoder:
    for tensor in tensors.values():
        if tensor.tensor_type.name not in QUANTISATIONS:
            raise ValueError(f"{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}; supported are {', '.join(QUANTISATIONS)}")
    checkpoint.check_layers(path, config, len(tensors))
    plan = checkpoint.blueprint(config, NAMES)
    shapes = {name: tuple(tensor.shape.tolist()[::-1]) for name, tensor in tensors.items()}
    checkpoint.check_shapes(path, shapes, plan.shapes)
    return checkpoint.assemble(path, plan, lambda name: dequantize(tensors[name].data, tensors[name].tensor_type))
