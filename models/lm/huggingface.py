"""Hugging Face model directories: config.json, safetensors weights (one file or shards), tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from posterity.models.lm import checkpoint, families
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.settings import Settings
from posterity.models.lm.tensors import Tensors
from posterity.models.lm.tokenizer import Tokenizer


def load(directory: str | Path, dtype: str = "float32") -> tuple[Any, Tokenizer]:
    """The model (a `Decoder`, or for its architecture a `Mamba2`), its weights in `dtype` ("float32" or "bfloat16"), and the tokenizer of a model directory.

    Names and shapes are checked before any weight is read.

    Raises:
      FileNotFoundError: when the directory or one of its files is missing.
      ValueError: for an architecture or option that is not supported, a damaged file, tensors that do not fit the
        configuration, a tokenizer with more tokens than the model, or an unknown type.
    """
    checkpoint.check_dtype(dtype)
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such model directory")
    settings = _read_json(directory / "config.json")
    family = families.family_of(reader := Settings(directory / "config.json", settings))
    head = family.names.head
    tensors = Tensors.of(directory).with_prefix(family.names.embed.partition(".")[0] + ".", {f"{head}.weight", f"{head}.bias"})
    found = tensors.shapes
    checkpoint.check_layers(directory, reader.layers, len(found))
    config = families.read_config(reader)
    tokenizer = _load_tokenizer(directory, settings, config.vocab_size)
    plan = checkpoint.blueprint(family.outline(config), config.fused, family.names)
    # Some store a tied head twice.
    ignored = {name for name in found if name.endswith(family.ignored) or (config.tied_head and name == f"{head}.weight")}
    checkpoint.check_shapes(directory, found, plan.shapes, ignored)
    return checkpoint.assemble(directory, plan, tensors.read, dtype), tokenizer


def save(directory: str | Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Writes a model directory that `load`, and `transformers`, can read. Weights keep their type.

    Raises:
      ValueError: when no architecture of Hugging Face has such a decoder.
    """
    directory = Path(directory)
    config = decoder.config
    architecture, settings = families.describe(config, directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, array in checkpoint.arrays(decoder, config.fused, families.FAMILIES[architecture].names):
        weights[name] = np.ascontiguousarray(array)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "config.json", settings | _special_ids(tokenizer) | {"torch_dtype": str(decoder.embed.embedding.dtype)})
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    kept = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chat_template": tokenizer.chat_template}
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in kept.items() if v is not None})


def _special_ids(tokenizer: Tokenizer) -> dict:
    ends = list(tokenizer.end_ids)
    start = tokenizer.backend.token_to_id(tokenizer.bos_token) if tokenizer.bos_token else None
    return {"bos_token_id": start, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def _load_tokenizer(directory: Path, settings: dict, vocab_size: int) -> Tokenizer:
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
            size=vocab_size,
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
