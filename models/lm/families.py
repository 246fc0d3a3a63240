"""The families of decoders by the names that Hugging Face has for them: how their config.json is read and their tensors are called."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from posterity.models.lm import decoder, recurrent, rope
from posterity.models.lm.checkpoint import Names
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.settings import ACTIVATIONS, Settings

ROPE_KINDS = ("default", "linear", "llama3", "yarn", "longrope")


class Family(NamedTuple):
    """One architecture of `transformers`."""

    model_type: str
    read: Callable[[Settings], Any]  # the configuration
    names: Names
    ignored: tuple[str, ...] = ()  # ends of the names of tensors that old files hold and nobody needs
    outline: Callable[[Any], nnx.Module] = decoder.outline


def _rotary(settings: Settings, *, size: int | None = None, tied: bool = False, theta: float = 10_000.0, **differences: Any) -> DecoderConfig:
    """What the families with rotary positions have in common, and what one of them has different."""
    heads, hidden = settings.whole("num_attention_heads"), settings.whole("hidden_size")
    head_dim = settings.whole("head_dim", size or hidden // max(heads, 1))
    context = settings.whole("max_position_embeddings")
    shape: dict[str, Any] = {
        "vocab_size": settings.whole("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": settings.whole("intermediate_size"),
        "num_layers": settings.whole("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": settings.whole("num_key_value_heads", heads),
        "head_dim": head_dim,
        "context_length": context,
        "norm_epsilon": settings.real("rms_norm_eps", 1e-6),
        "tied_head": settings.flag("tie_word_embeddings", tied),
    }
    settings.only("partial_rotary_factor", 1.0)
    if "activation" not in differences:
        differences["activation"] = settings.activation("hidden_act", "silu")
    return DecoderConfig(**shape | _rope(settings, theta, head_dim, context) | differences)


def _rope(settings: Settings, theta: float, size: int, context: int) -> dict[str, Any]:
    """RoPE's base and scaling, as older files (`rope_theta`, `rope_scaling`) and newer ones (`rope_parameters`) say it."""
    key = "rope_parameters" if settings.values.get("rope_parameters") else "rope_scaling"
    found = settings.values.get(key) or {}
    if not isinstance(found, dict):
        raise settings.error(f"{key} must be an object, got {found!r}")
    local = {}
    if "full_attention" in found:  # a rotation for each kind of layer
        beside, found = found.get("sliding_attention") or {}, found["full_attention"]
        if beside.get("rope_type", "default") != "default":
            raise settings.error(f"{key}.sliding_attention {beside} is not supported; only plain RoPE is where a layer has a window")
        local = {"local_rope_theta": Settings(settings.where, beside).real("rope_theta", 10_000.0)}
    spec = Settings(settings.where, found)
    spec.only("partial_rotary_factor", 1.0)
    theta = spec.real("rope_theta", settings.real("rope_theta", theta))
    kind = found.get("rope_type", found.get("type", "default"))
    magnitude = 1.0
    original = spec.whole("original_max_position_embeddings", context)
    if kind == "default":
        divisors: Sequence[float] | np.ndarray = ()
    elif kind == "linear":
        divisors = rope.linear(size, spec.real("factor"))
    elif kind == "llama3":
        low, high = spec.real("low_freq_factor"), spec.real("high_freq_factor")
        divisors = rope.llama3(size, theta, factor=spec.real("factor"), low=low, high=high, context=original)
    elif kind == "yarn":
        factor = spec.real("factor", context / original)
        for option, usual in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
            spec.only(option, usual)
        divisors = rope.yarn(size, theta, factor=factor, context=original, fast=spec.real("beta_fast", 32.0), slow=spec.real("beta_slow", 1.0))
        magnitude = spec.real("attention_factor", rope.yarn_magnitude(factor))
    elif kind == "longrope" and found.get("short_factor") and found.get("short_factor") == found.get("long_factor"):
        divisors, magnitude = found["short_factor"], spec.real("attention_factor")
    else:
        wanted = f"supported are {', '.join(ROPE_KINDS)} (the last with equal short_factor and long_factor)"
        raise settings.error(f"{key} {found} is not supported; {wanted}")
    return {"rope_theta": theta, "rope_divisors": tuple(float(x) for x in divisors), "rope_magnitude": magnitude} | local


def _windows(settings: Settings, has_window: Callable[[int], bool], default: int | None = None) -> tuple[int | None, ...]:
    """Each layer's window: as `layer_types` says, or else by the family's rule."""
    if settings.values.get("sliding_window", default) is None:
        return ()
    layers, window, kinds = settings.whole("num_hidden_layers"), settings.whole("sliding_window", default), settings.values.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if has_window(i) else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise settings.error(f"layer_types must be a list of sliding_attention and full_attention, got {kinds!r}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds) if "sliding_attention" in kinds else ()


def _llama(settings: Settings) -> DecoderConfig:
    bias = settings.flag("attention_bias")
    return _rotary(settings, attention_bias=bias, output_bias=bias, mlp_bias=settings.flag("mlp_bias"))


def _mistral(settings: Settings) -> DecoderConfig:
    whole = settings.values.get("sliding_window") is None  # in all layers or none
    return _rotary(settings, windows=() if whole else (settings.whole("sliding_window"),) * settings.whole("num_hidden_layers"))


def _qwen_windows(settings: Settings) -> tuple[int | None, ...]:
    first = settings.whole("max_window_layers", 28)
    return _windows(settings, lambda layer: layer >= first) if settings.flag("use_sliding_window") else ()


def _qwen2(settings: Settings) -> DecoderConfig:
    return _rotary(settings, attention_bias=True, windows=_qwen_windows(settings))


def _qwen3(settings: Settings) -> DecoderConfig:
    bias = settings.flag("attention_bias")
    return _rotary(settings, attention_bias=bias, output_bias=bias, query_key_norm=True, windows=_qwen_windows(settings))


def _gemma(settings: Settings, **differences: Any) -> DecoderConfig:
    bias = settings.flag("attention_bias")
    return _rotary(
        settings,
        size=256,
        tied=True,
        attention_bias=bias,
        output_bias=bias,
        sandwich_norm=True,
        activation=settings.activation("hidden_activation", "gelu_pytorch_tanh"),
        embed_scale=math.sqrt(settings.whole("hidden_size")),
        attention_scale=settings.real("query_pre_attn_scalar", 256) ** -0.5,
        **differences,
    )


def _gemma2(settings: Settings) -> DecoderConfig:
    settings.only("use_bidirectional_attention", False)
    caps = {"attention_softcap": settings.optional("attn_logit_softcapping", 50.0), "logit_softcap": settings.optional("final_logit_softcapping", 30.0)}
    return _gemma(settings, windows=_windows(settings, lambda layer: layer % 2 == 0, 4096), **caps)


def _gemma3(settings: Settings) -> DecoderConfig:
    settings.only("use_bidirectional_attention", False)
    period = settings.whole("sliding_window_pattern", 6)
    caps = {"attention_softcap": settings.optional("attn_logit_softcapping"), "logit_softcap": settings.optional("final_logit_softcapping")}
    local = {} if "full_attention" in (settings.values.get("rope_parameters") or {}) else {"local_rope_theta": settings.real("rope_local_base_freq", 10_000.0)}
    windows = _windows(settings, lambda layer: (layer + 1) % period != 0, 4096)
    return _gemma(settings, theta=1e6, query_key_norm=True, windows=windows, **caps, **local)


def _gpt2(settings: Settings) -> DecoderConfig:
    for key, allowed in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False)):
        settings.only(key, allowed)
    hidden, heads = settings.whole("n_embd"), settings.whole("n_head")
    if hidden % max(heads, 1):
        raise settings.error(f"n_embd ({hidden}) must be a multiple of n_head ({heads})")
    return DecoderConfig(
        vocab_size=settings.whole("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.whole("n_inner", 4 * hidden),
        num_layers=settings.whole("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        context_length=settings.whole("n_positions"),
        norm_epsilon=settings.real("layer_norm_epsilon", 1e-5),
        tied_head=settings.flag("tie_word_embeddings", True),
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions="learned",
        norm="layer",
        activation=settings.activation("activation_function", "gelu_new"),
        gated=False,
    )


def _mamba2(settings: Settings) -> recurrent.Mamba2Config:
    for key, allowed in (("use_bias", False), ("use_conv_bias", True), ("rms_norm", True), ("hidden_act", "silu")):
        settings.only(key, allowed)
    low, high = settings.values.get("time_step_limit") or (0.0, math.inf)
    if settings.real("expand", 2) * settings.whole("hidden_size") != settings.whole("num_heads") * settings.whole("head_dim"):
        raise settings.error("expand * hidden_size must be num_heads * head_dim")
    return recurrent.Mamba2Config(
        vocab_size=settings.whole("vocab_size"),
        hidden_size=settings.whole("hidden_size"),
        num_layers=settings.whole("num_hidden_layers"),
        num_heads=settings.whole("num_heads"),
        head_dim=settings.whole("head_dim"),
        state_size=settings.whole("state_size"),
        num_groups=settings.whole("n_groups"),
        conv_kernel=settings.whole("conv_kernel", 4),
        step_limits=(float(low), float(high)),
        norm_epsilon=settings.real("layer_norm_epsilon", 1e-5),
        tied_head=settings.flag("tie_word_embeddings"),
    )


def _labelled(family: Family, head: str, *, bias: bool) -> Family:
    """The same body with a head for labels, called `head` in files, in the place of the one over the vocabulary."""

    def read(settings: Settings) -> DecoderConfig:
        return dataclasses.replace(family.read(settings), tied_head=False, labels=settings.labels(), head_bias=bias)

    return family._replace(read=read, names=family.names._replace(head=head))


LLAMA_NAMES = Names(
    embed="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
    layer="model.layers.{}.",
    parts={
        "attention_norm": ("input_layernorm",),
        "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "query_norm": ("self_attn.q_norm",),
        "key_norm": ("self_attn.k_norm",),
        "output": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    },
)
GEMMA_NAMES = LLAMA_NAMES._replace(
    parts=LLAMA_NAMES.parts
    | {
        "output_norm": ("post_attention_layernorm",),
        "mlp_norm": ("pre_feedforward_layernorm",),
        "down_norm": ("post_feedforward_layernorm",),
    },
    norm_offset=1.0,
)
GPT2_NAMES = Names(
    embed="transformer.wte",
    places="transformer.wpe",
    norm="transformer.ln_f",
    head="lm_head",
    layer="transformer.h.{}.",
    parts={
        "attention_norm": ("ln_1",),
        "query_key_value": ("attn.c_attn",),
        "output": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "up": ("mlp.c_fc",),
        "down": ("mlp.c_proj",),
    },
    inputs_first=True,
)
MAMBA2_NAMES = Names(
    embed="backbone.embeddings",
    norm="backbone.norm_f",
    head="lm_head",
    layer="backbone.layers.{}.",
    parts={
        "norm": ("norm",),
        "entry": ("mixer.in_proj",),
        "conv": ("mixer.conv1d.weight",),
        "conv_bias": ("mixer.conv1d.bias",),
        "step_bias": ("mixer.dt_bias",),
        "log_rate": ("mixer.A_log",),
        "skip": ("mixer.D",),
        "gated_scale": ("mixer.norm.weight",),
        "exit": ("mixer.out_proj",),
    },
)
FAMILIES = {
    "LlamaForCausalLM": Family("llama", _llama, LLAMA_NAMES, ("rotary_emb.inv_freq",)),
    "MistralForCausalLM": Family("mistral", _mistral, LLAMA_NAMES, ("rotary_emb.inv_freq",)),
    "Qwen2ForCausalLM": Family("qwen2", _qwen2, LLAMA_NAMES),
    "Qwen3ForCausalLM": Family("qwen3", _qwen3, LLAMA_NAMES),
    "Gemma2ForCausalLM": Family("gemma2", _gemma2, GEMMA_NAMES),
    "Gemma3ForCausalLM": Family("gemma3_text", _gemma3, GEMMA_NAMES),
    "GPT2LMHeadModel": Family("gpt2", _gpt2, GPT2_NAMES, (".attn.bias", ".attn.masked_bias")),
    "Mamba2ForCausalLM": Family("mamba2", _mamba2, MAMBA2_NAMES, outline=recurrent.outline),
}
for _body, _causal in (("Llama", "ForCausalLM"), ("Mistral", "ForCausalLM"), ("Qwen2", "ForCausalLM"), ("Qwen3", "ForCausalLM"), ("GPT2", "LMHeadModel")):
    FAMILIES[_body + "ForSequenceClassification"] = _labelled(FAMILIES[_body + _causal], "score", bias=False)
    FAMILIES[_body + "ForTokenClassification"] = _labelled(FAMILIES[_body + _causal], "classifier" if _body == "GPT2" else "score", bias=True)


def family_of(settings: Settings) -> Family:
    """The family of a config.json. Raises ValueError, with the known ones, for an architecture that is not known."""
    found = (settings.values.get("architectures") or ["none"])[0]
    if found not in FAMILIES:
        raise settings.error(f"architecture {found} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[found]


def read_config(settings: Settings) -> Any:
    """The configuration of the model that a config.json describes.

    Raises:
      ValueError: for what the model cannot do, and for settings that are missing or of another type.
    """
    try:
        return family_of(settings).read(settings)
    except ValueError as error:
        raise (error if str(error).startswith(str(settings.where)) else settings.error(str(error))) from None


def describe(config: DecoderConfig, where: Path) -> tuple[str, dict[str, Any]]:
    """The architecture that a decoder is of, and a config.json's settings which `read_config` reads as `config`.

    Raises:
      ValueError: when no family has such a decoder.
    """
    for architecture, family in FAMILIES.items():
        if family.outline is not decoder.outline:
            continue
        settings = _gpt2_settings(config) if family.model_type == "gpt2" else _rotary_settings(config)
        if family.model_type == "mistral":
            settings.pop("layer_types", None)  # a window is in all layers or none
        try:
            same = family.read(Settings(where, settings)) == config
        except ValueError:
            continue
        if same:
            return architecture, {"architectures": [architecture], "model_type": family.model_type} | settings
    raise ValueError(f"{where}: no architecture of Hugging Face ({', '.join(FAMILIES)}) has a decoder of {config}")


def _rotary_settings(config: DecoderConfig) -> dict[str, Any]:
    activation = next(name for name, meant in ACTIVATIONS.items() if meant == config.activation)
    plain = {
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
        "hidden_act": activation,
    }
    if config.rope_divisors or config.rope_magnitude != 1.0:  # one divisor a pair is what longrope says
        factors = list(config.rope_divisors) or [1.0] * (config.head_dim // 2)
        scaling = {"short_factor": factors, "long_factor": factors, "factor": 1.0, "attention_factor": config.rope_magnitude}
        plain["rope_scaling"] = {"rope_type": "longrope", "original_max_position_embeddings": config.context_length} | scaling
    if config.output_bias or config.mlp_bias:
        plain |= {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}
    if config.windows:
        kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows]
        plain |= {"sliding_window": max(filter(None, config.windows), default=None), "layer_types": kinds, "use_sliding_window": True}
    if config.sandwich_norm:
        plain |= {
            "hidden_activation": activation,
            "query_pre_attn_scalar": _whole_if_whole(round(config.scale**-2, 6)),
            "rope_local_base_freq": config.local_rope_theta,
        }
        plain |= {"attn_logit_softcapping": config.attention_softcap, "final_logit_softcapping": config.logit_softcap}
    return plain | _label_settings(config)


def _whole_if_whole(x: float) -> float | int:
    return int(x) if x == int(x) else x


def _label_settings(config: DecoderConfig) -> dict[str, Any]:
    return {"id2label": {str(i): label for i, label in enumerate(config.labels)}, "num_labels": len(config.labels)} if config.labels else {}


def _gpt2_settings(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied_head,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
    } | _label_settings(config)
