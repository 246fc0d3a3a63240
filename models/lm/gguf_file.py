"""GGUF files, the format of llama.cpp: weights, quantised or not, configuration and tokenizer in one file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFEndian, GGUFReader, dequantize
from gguf.gguf_reader import ReaderTensor

from posterity.models.lm import checkpoint, rope
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder, outline
from posterity.models.lm.gguf_metadata import Metadata
from posterity.models.lm.gguf_tokenizer import read_tokenizer
from posterity.models.lm.tokenizer import Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2")
QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
ROPE_FACTORS = "rope_freqs.weight"  # the one tensor that is no weight: a divisor for each pair of channels
NAMES = checkpoint.Names(
    embed="token_embd",
    places="position_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    parts={
        "attention_norm": ("attn_norm",),
        "query_key_value": ("attn_q", "attn_k", "attn_v"),
        "query_norm": ("attn_q_norm",),
        "key_norm": ("attn_k_norm",),
        "output": ("attn_output",),
        "output_norm": ("post_attention_norm",),
        "mlp_norm": ("ffn_norm",),
        "up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
        "down_norm": ("post_ffw_norm",),
    },
)
GPT2_NAMES = NAMES._replace(parts=NAMES.parts | {"query_key_value": ("attn_qkv",), "up": ("ffn_up",)})


def load(path: str | Path, dtype: str = "float32") -> tuple[Decoder, Tokenizer]:
    """The decoder, its weights in `dtype` ("float32" or "bfloat16"), and the tokenizer of a GGUF file.

    Sizes and shapes are checked before any weight is read. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: for a file that is not GGUF, is truncated or damaged, or holds an architecture, quantisation or tokenizer
        that is not supported, and for an unknown type.
    """
    checkpoint.check_dtype(dtype)
    path = Path(path)
    reader = _open(path)
    metadata = Metadata(path, reader.fields)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = read_config(metadata, tensors)
    tokenizer = read_tokenizer(metadata, config.vocab_size)
    return _read_weights(path, config, tensors, dtype, interleaved=metadata.text("general.architecture") == "llama"), tokenizer


def read_config(metadata: Metadata, tensors: Mapping[str, ReaderTensor]) -> DecoderConfig:
    """The decoder that a file's metadata describe.

    Raises:
      ValueError: for what the decoder cannot do, and for metadata that are missing or of another type.
    """
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{metadata.path}: architecture {architecture} is not supported; supported are {', '.join(ARCHITECTURES)}")

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    if value := metadata.whole(key("expert_count"), 0):
        raise ValueError(f"{metadata.path}: {key('expert_count')} = {value} is not supported")
    hidden, heads = metadata.whole(key("embedding_length")), metadata.whole(key("attention.head_count"))
    size = metadata.whole(key("attention.key_length"), hidden // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if (other := metadata.whole(key(name), size)) != size:
            raise ValueError(f"{metadata.path}: {key(name)} = {other} is not supported where heads have {size} channels")
    shape: dict[str, Any] = {
        "vocab_size": metadata.whole(key("vocab_size"), len(metadata.many("tokenizer.ggml.tokens", str))),
        "hidden_size": hidden,
        "intermediate_size": metadata.whole(key("feed_forward_length")),
        "num_layers": metadata.whole(key("block_count")),
        "num_heads": heads,
        "num_kv_heads": metadata.whole(key("attention.head_count_kv"), heads),
        "head_dim": size,
        "context_length": metadata.whole(key("context_length")),
        "norm_epsilon": metadata.real(key("attention.layer_norm_epsilon" if architecture == "gpt2" else "attention.layer_norm_rms_epsilon")),
        "tied_head": "output.weight" not in tensors,
    }
    checkpoint.check_layers(metadata.path, shape["num_layers"], len(tensors))
    try:
        if architecture != "gpt2":
            shape |= _rope(metadata, architecture, size, shape["context_length"], tensors.get(ROPE_FACTORS))
        return DecoderConfig(**shape | _differences(metadata, architecture, hidden, heads, size, shape["num_layers"]))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(metadata.path)) else f"{metadata.path}: {error}") from None


def _rope(metadata: Metadata, architecture: str, size: int, context: int, factors: ReaderTensor | None) -> dict[str, Any]:
    """RoPE's base and its scaling: by metadata, or by a tensor of divisors (Llama 3)."""

    def key(name: str) -> str:
        return f"{architecture}.rope.{name}"

    theta, kind = metadata.real(key("freq_base"), 10_000.0), metadata.text(key("scaling.type"), "none")
    found: dict[str, Any] = {"rope_theta": theta}
    if factors is not None:
        if factors.tensor_type.name != "F32" or factors.data.shape != (size // 2,) or kind != "none":
            raise ValueError(f"{metadata.path}: tensor {ROPE_FACTORS} must be {size // 2} numbers of type F32, without {key('scaling.type')}")
        return found | {"rope_divisors": tuple(factors.data.astype(float).tolist())}
    old = metadata.real(key("scale_linear"), 1.0)  # how files said it before there were other kinds
    if kind == "none" and old == 1.0:
        return found
    kind, factor = (kind, metadata.real(key("scaling.factor"))) if kind != "none" else ("linear", old)
    if not factor > 0:
        raise ValueError(f"{metadata.path}: {key('scaling.factor')} must be positive, got {factor}")
    if kind == "linear":
        return found | {"rope_divisors": tuple(rope.linear(size, factor).tolist())}
    if kind == "yarn":
        original = metadata.whole(key("scaling.original_context_length"), context)
        fast, slow = metadata.real(key("scaling.yarn_beta_fast"), 32.0), metadata.real(key("scaling.yarn_beta_slow"), 1.0)
        magnitude = rope.yarn_magnitude(factor) * metadata.real(key("scaling.attn_factor"), 1.0)
        divisors = rope.yarn(size, theta, factor=factor, context=original, fast=fast, slow=slow)
        return found | {"rope_divisors": tuple(divisors.tolist()), "rope_magnitude": magnitude}
    raise ValueError(f"{metadata.path}: {key('scaling.type')} = {kind} is not supported; supported are none, linear, yarn")


def _differences(metadata: Metadata, architecture: str, hidden: int, heads: int, size: int, layers: int) -> dict[str, Any]:
    """What an architecture has that Llama's has not."""
    if architecture == "gpt2":
        biases = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
        return {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "gated": False} | biases
    window = metadata.whole(f"{architecture}.attention.sliding_window", 0)
    if architecture in ("qwen2", "qwen3"):
        if window:
            raise ValueError(f"{metadata.path}: {architecture}.attention.sliding_window = {window} is not supported")
        return {"attention_bias": True} if architecture == "qwen2" else {"query_key_norm": True}
    if architecture == "llama":
        return {"windows": (window,) * layers if window else ()}
    third = architecture == "gemma3"
    period = metadata.whole(f"{architecture}.attention.sliding_window_pattern", 6 if third else 2)
    window = window or 4096
    # Only the 27B models scale their scores by the width a head would have, not by the one it has; files do not say so.
    width = hidden / max(heads, 1) if layers == (62 if third else 46) else size
    gemma: dict[str, Any] = {
        "sandwich_norm": True,
        "activation": "gelu_tanh",
        "embed_scale": math.sqrt(hidden),
        "attention_scale": width**-0.5,
        "windows": tuple(None if layer % period == period - 1 else window for layer in range(layers)),
    }
    if third:
        return gemma | {"query_key_norm": True, "local_rope_theta": metadata.real("gemma3.rope.freq_base_swa", 10_000.0)}
    caps = {"attention_softcap": metadata.real("gemma2.attn_logit_softcapping", 50.0), "logit_softcap": metadata.real("gemma2.final_logit_softcapping", 30.0)}
    return gemma | caps


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


def _read_weights(path: Path, config: DecoderConfig, tensors: Mapping[str, ReaderTensor], dtype: str, *, interleaved: bool) -> Decoder:
    for tensor in tensors.values():
        if tensor.tensor_type.name not in QUANTISATIONS:
            raise ValueError(f"{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}; supported are {', '.join(QUANTISATIONS)}")
    plan = checkpoint.blueprint(outline(config), config.fused, NAMES if config.gated else GPT2_NAMES)
    shapes = {name: tuple(tensor.shape.tolist()[::-1]) for name, tensor in tensors.items()}
    checkpoint.check_shapes(path, shapes, plan.shapes, {ROPE_FACTORS})

    def read(name: str) -> np.ndarray:
        array = dequantize(tensors[name].data, tensors[name].tensor_type)
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2]) if interleaved else None
        return in_halves(array, heads) if heads else array

    return checkpoint.assemble(path, plan, read, dtype)


def in_halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * size, ...] of a map in which RoPE pairs 2i with 2i + 1, as converters of `llama` write them, so that it may pair i with i + size/2."""
    return kernel.reshape(heads, -1, 2, *kernel.shape[1:]).swapaxes(1, 2).reshape(kernel.shape)
