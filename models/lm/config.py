"""What defines a decoder, apart from its weights."""

import dataclasses
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a decoder; the defaults are Llama's. Hashable, so it is a static part of every program that holds the model.

    RoPE rotates channels i and i + D/2 together. What scales it to longer contexts is one number a pair, `rope_divisors`: see `rope.py`.

    Raises:
      ValueError: for numbers out of range, and for parts that do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int  # tokens
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tied_head: bool = True
    attention_bias: bool = False  # on queries, keys and values
    output_bias: bool = False  # on what attention writes
    mlp_bias: bool = False
    positions: Literal["rotary", "learned"] = "rotary"
    rope_divisors: tuple[float, ...] = ()  # of the frequency of each pair of channels; empty: all 1
    rope_magnitude: float = 1.0  # what rotated channels are multiplied by (YaRN)
    local_rope_theta: float | None = None  # of layers with a window, which then are never scaled (Gemma 3); None: as in the others
    windows: tuple[int | None, ...] = ()  # each layer's attention: to the last so many tokens, its own included; None, or no tuple: to all
    norm: Literal["rms", "layer"] = "rms"
    query_key_norm: bool = False  # on each head's queries and keys, before RoPE
    sandwich_norm: bool = False  # also on what attention and feed-forward network add to the stream
    activation: Activation = "silu"
    gated: bool = True  # the activation gates a second product; without, it stands between two
    embed_scale: float = 1.0
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # scores s become cap * tanh(s / cap)
    logit_softcap: float | None = None
    labels: tuple[str, ...] = ()  # of a head for classification, which then stands in the place of the one over the vocabulary
    head_bias: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"DecoderConfig: num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2 and self.positions == "rotary":
            raise ValueError(f"DecoderConfig: RoPE needs an even head_dim, got {self.head_dim}")
        if len(self.rope_divisors) not in (0, self.head_dim // 2):
            raise ValueError(f"DecoderConfig: rope_divisors must hold one number for each of {self.head_dim // 2} pairs, got {len(self.rope_divisors)}")
        if len(self.windows) not in (0, self.num_layers):
            raise ValueError(f"DecoderConfig: windows must hold one entry for each of {self.num_layers} layers, got {len(self.windows)}")
        for name in ("attention_softcap", "logit_softcap", "attention_scale", "local_rope_theta"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"DecoderConfig: {name} must be positive, got {value}")
        for name in ("windows", "rope_divisors"):
            if wrong := [x for x in getattr(self, name) if x is not None and not x > 0]:
                raise ValueError(f"DecoderConfig: {name} must be positive, got {wrong[0]}")
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"DecoderConfig: {field} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, field)!r}")

    def window(self, layer: int) -> int | None:
        """To how many of the last tokens a layer attends, its own included; None: to all."""
        return self.windows[layer] if self.windows else None

    @property
    def scale(self) -> float:
        """What the scores of attention are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def fused(self) -> dict[str, tuple[int, ...]]:
        """The maps of a layer that are held side by side, so that one product computes them all: how many outputs each has."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {"query_key_value": (queries, keys, keys), "up": (self.intermediate_size,) * (2 if self.gated else 1)}


CHOICES = {
    "positions": ("rotary", "learned"),
    "norm": ("rms", "layer"),
    "activation": ("silu", "gelu", "gelu_tanh"),
}
