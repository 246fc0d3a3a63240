"""What defines a Llama-family decoder, apart from its weights."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a decoder. Hashable, so it is a static part of every program that holds the model.

    `rope_layout` says which pairs of channels RoPE rotates together: `"half"` pairs i with i + D/2 (Hugging Face
    checkpoints, GPT-NeoX), `"interleaved"` pairs 2i with 2i + 1 (Meta's checkpoints and GGUF files of the `llama`
    architecture).
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
    rope_layout: Literal["half", "interleaved"] = "half"
    norm_epsilon: float = 1e-5
    tied_head: bool = True
    attention_bias: bool = False  # on queries, keys and values (Qwen2)

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"DecoderConfig: num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig: RoPE needs an even head_dim, got {self.head_dim}")
        if self.rope_layout not in ("half", "interleaved"):
            raise ValueError(f"DecoderConfig: rope_layout must be 'half' or 'interleaved', got {self.rope_layout!r}")
