"""Hugging Face model directories: config.json, safetensors weights (one file or shards), tokenizer.json."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from posterity.models.lm import checkpoint
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.tokenizer import Tokenizer

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
NAMES = checkpoint.Names(
    embed="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
    layer="model.layers.{}.",
    parts={
        "attention_norm": "input_layernorm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
)


def load(directory: str | Path) -> tuple[Decoder, Tokenizer]:
    """The decoder, in float32, and the tokenizer of a model directory.

    Names and shapes are checked before any weight is read.

    Raises:
      FileNotFoundError: when the directory or one of its files is missing.
      ValueError: for an architecture or option outside the Llama family, a damaged file, tensors that do not fit the
        configuration, or a tokenizer with more tokens than the model.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such model directory")
    settings = _read_json(directory / "config.json")
    config = read_config(settings, directory / "config.json")
    tokenizer = _load_tokenizer(directory, settings, config)
    return _load_weights(directory, config), tokenizer


def save(directory: str | Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Writes a model directory that `load`, and `transformers`, can read. Weights keep their type; RoPE is always of the half layout on disk."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = decoder.config
    weights = {}
    for name, array in checkpoint.arrays(decoder, NAMES):
        if config.rope_layout == "interleaved" and ".q_proj." in name:
            array = checkpoint.half_from_interleaved(array, config.num_heads)
        elif config.rope_layout == "interleaved" and ".k_proj." in name:
            array = checkpoint.half_from_interleaved(array, config.num_kv_heads)
        weights[name] = np.ascontiguousarray(array)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    dtype = str(decoder.embed.embedding.dtype)
    _write_json(directory / "config.json", _settings(config, tokenizer) | {"torch_dtype": dtype})
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    kept = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chat_template": tokenizer.chat_template}
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in kept.items() if v is not None})


def read_config(settings: dict, where: Path) -> DecoderConfig:
    """The decoder that a config.json, read from `where`, describes.

    Raises:
      ValueError: for what the decoder cannot do, and for settings that are missing or of another type.
    """
    architecture = (settings.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{where}: architecture {architecture} is not supported; supported are {', '.join(ARCHITECTURES)}")
    rope = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    for key, kind in (("rope_scaling", scaling), ("rope_parameters", rope)):
        if kind and kind.get("rope_type", kind.get("type", "default")) != "default":
            raise ValueError(f"{where}: {key} {kind} is not supported; only plain RoPE (no scaling) is")
    qwen = architecture == "Qwen2ForCausalLM"
    windowed = settings.get("use_sliding_window", False) if qwen else settings.get("sliding_window") is not None
    refused = {
        "sliding_window": windowed,
        "hidden_act": settings.get("hidden_act", "silu") != "silu",
        "attention_bias": not qwen and settings.get("attention_bias", False),
        "mlp_bias": settings.get("mlp_bias", False),
        "partial_rotary_factor": settings.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0,
    }
    for key, bad in refused.items():
        if bad:
            raise ValueError(f"{where}: {key} = {settings.get(key, rope.get(key))} is not supported for {architecture}")

    def whole(key: str, default: int | None = None) -> int:
        value = settings.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{where}: {key} must be a whole number, got {value!r}")
        return value

    def real(key: str, default: float) -> float:
        value = rope.get(key, settings.get(key, default))
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{where}: {key} must be a positive number, got {value!r}")
        return float(value)

    heads = whole("num_attention_heads")
    try:
        return DecoderConfig(
            vocab_size=whole("vocab_size"),
            hidden_size=whole("hidden_size"),
            intermediate_size=whole("intermediate_size"),
            num_layers=whole("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=whole("num_key_value_heads", heads),
            head_dim=whole("head_dim", whole("hidden_size") // max(heads, 1)),
            context_length=whole("max_position_embeddings"),
            rope_theta=real("rope_theta", 10_000.0),
            norm_epsilon=real("rms_norm_eps", 1e-6),
            tied_head=bool(settings.get("tie_word_embeddings", False)),
            attention_bias=qwen,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if not str(error).startswith(str(where)) else str(error)) from None


def _settings(config: DecoderConfig, tokenizer: Tokenizer) -> dict:
    ends = list(tokenizer.end_ids)
    start = tokenizer.backend.token_to_id(tokenizer.bos_token) if tokenizer.bos_token else None
    return {
        "architectures": ["Qwen2ForCausalLM" if config.attention_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if config.attention_bias else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
        "bos_token_id": start,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }


def _load_weights(directory: Path, config: DecoderConfig) -> Decoder:
    """The decoder from the safetensors files of a directory, shapes first."""
    handles, place, found = {}, {}, {}
    for file in _weight_files(directory):
        try:
            handles[file] = safe_open(file, framework="flax")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: truncated or not a safetensors file ({error})") from error
        names = handles[file].keys()
        for name in names:
            if name in found:
                raise ValueError(f"{file}: tensor {name} is also in {place[name].name}")
            place[name] = file
            found[name] = tuple(handles[file].get_slice(name).get_shape())
    checkpoint.check_layers(directory, config, len(found))
    plan = checkpoint.blueprint(config, NAMES)
    # Old checkpoints store RoPE's frequencies, and some store a tied head twice.
    ignored = {name for name in found if name.endswith("rotary_emb.inv_freq") or (config.tied_head and name == "lm_head.weight")}
    checkpoint.check_shapes(directory, found, plan.shapes, ignored)

    def read(name: str) -> np.ndarray:
        array = handles[place[name]].get_tensor(name)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{place[name]}: tensor {name} is of type {array.dtype}; supported are floating-point types")
        return array

    return checkpoint.assemble(directory, plan, read)


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(file, str) and Path(file).name == file for file in named.values()):
            raise ValueError(f"{index}: weight_map must map tensor names to files of this directory")
        files = [directory / file for file in sorted(set(named.values()))]
    else:
        files = [single]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; weights must be model.safetensors, or shards with model.safetensors.index.json")
    return files


def _load_tokenizer(directory: Path, settings: dict, config: DecoderConfig) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; other tokenizer formats are not supported")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare exceptions
        raise ValueError(f"{path}: not a tokenizer of the `tokenizers` library ({error})") from error
    backend.no_truncation()  # some are saved with the length they were trained at
    backend.no_padding()
    options = _read_json(directory / "tokenizer_config.json", missing={})
    generation = _read_json(directory / "generation_config.json", missing={})
    bos, eos = (_content(options.get(key)) for key in ("bos_token", "eos_token"))
    ends = {i for source in (settings, generation) for i in _as_list(source.get("eos_token_id"))}
    if eos is not None and (i := backend.token_to_id(eos)) is not None:
        ends.add(i)
    template = directory / "chat_template.jinja"
    try:
        return Tokenizer(
            backend,
            end_ids=sorted(ends),
            size=config.vocab_size,
            bos_token=bos,
            eos_token=eos,
            chat_template=template.read_text(encoding="utf-8") if template.is_file() else _default_template(options.get("chat_template")),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _content(token: str | dict | None) -> str | None:
    """A special token's text; older files store it with its options."""
    return token.get("content") if isinstance(token, dict) else token


def _default_template(template: str | list | None) -> str | None:
    """The chat template; where there are several, the one named `default`."""
    return next((t["template"] for t in template if t["name"] == "default"), None) if isinstance(template, list) else template


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _read_json(path: Path, missing: dict | None = None) -> dict:
    if not path.is_file() and missing is not None:
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
