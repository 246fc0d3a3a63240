"""The decoder of Llama (Touvron et al. 2023) and its relatives: norms, attention with grouped queries, a feed-forward network.

One class serves every family: what differs is in its configuration. It runs in two ways over the same layers: over whole
sequences (training, prefill), and one token a particle over a shared prompt and a suffix per particle (decoding).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from posterity.models.lm import attention
from posterity.models.lm.attention import KeysValues
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.rope import Turn, rotate, turns

ACTIVATIONS = {"silu": nnx.silu, "gelu": lambda x: nnx.gelu(x, approximate=False), "gelu_tanh": nnx.gelu}


class Decoder(nnx.Module):
    """A decoder; `Decoder(config, rngs=nnx.Rngs(seed))` draws fresh weights (normal, sd 0.02)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = (TiedTable if config.tied_head else table)(config.vocab_size, config.hidden_size, rngs)
        self.places = table(config.context_length, config.hidden_size, rngs) if config.positions == "learned" else None
        self.layers = nnx.List([Layer(config, number, rngs=rngs) for number in range(config.num_layers)])
        self.norm = _norm(config, config.hidden_size, rngs)
        self.head = None if config.tied_head else linear(config.hidden_size, len(config.labels) or config.vocab_size, rngs, bias=config.head_bias)

    def embedded(self, tokens: Array, positions: Array) -> Array:
        """What enters the first layer, [..., hidden]."""
        hidden = self.embed(tokens) * self.config.embed_scale
        # Padding may lie beyond the context: unclipped it would be NaN, which even a weight of zero passes on.
        return hidden if self.places is None else hidden + self.places(jnp.minimum(positions, self.config.context_length - 1))

    def logits(self, hidden: Array) -> Array:
        """Next-token logits [..., vocab] of hidden states [..., hidden], or the labels' [..., labels] where the decoder classifies."""
        hidden = self.norm(hidden)
        logits = self.embed.attend(hidden) if self.head is None else self.head(hidden)
        return attention.capped(logits, self.config.logit_softcap)

    def __call__(self, tokens: Array) -> tuple[Array, list[KeysValues]]:
        """Whole sequences [batch, tokens], causal: hidden states [batch, tokens, hidden] and every layer's keys and values.

        Raises:
          ValueError: for sequences longer than the context, where positions are learned.
        """
        if self.places is not None and tokens.shape[1] > self.config.context_length:
            raise ValueError(f"this decoder has positions for {self.config.context_length} tokens, got sequences of {tokens.shape[1]}")
        positions = jnp.arange(tokens.shape[1])
        hidden = self.embedded(tokens, positions)
        kept = []
        for layer, turn in zip(self.layers, turns(positions, self.config, hidden.dtype), strict=True):
            query, new = layer.project(hidden, turn)
            read = attention.whole(query, new, scale=self.config.scale, window=layer.window, softcap=self.config.attention_softcap)
            hidden = layer.mix(hidden, read)
            kept.append(new)
        return hidden, kept

    def decode(self, tokens: Array, positions: Array, memory: Any) -> tuple[Array, Any]:
        """One more token [n] of every text, at `positions` [n]: hidden states [n, hidden], and the memory with the new keys and values.

        `memory.attend(layer, query, new, ...)` says what queries [n, 1, heads, size] read of the past and of the new token's own keys and values.
        """
        config, hidden = self.config, self.embedded(tokens[:, None], positions[:, None])
        for number, (layer, turn) in enumerate(zip(self.layers, turns(positions[:, None], config, hidden.dtype), strict=True)):
            query, new = layer.project(hidden, turn)
            read, memory = memory.attend(number, query, new, scale=config.scale, window=layer.window, softcap=config.attention_softcap)
            hidden = layer.mix(hidden, read)
        return hidden[:, 0], memory


def outline(config: DecoderConfig) -> Decoder:
    """A decoder's structure, with shapes in place of weights; nothing is allocated."""
    # Layers are alike: one is traced and copied, as tracing 30 takes more than a second.
    decoder = nnx.eval_shape(lambda: Decoder(dataclasses.replace(config, num_layers=1, windows=()), rngs=nnx.Rngs(0)))
    decoder.config = config
    decoder.layers = nnx.List([nnx.clone(decoder.layers[0]) for _ in range(config.num_layers)])
    for number, layer in enumerate(decoder.layers):
        layer.config, layer.number = config, number
    return decoder


class Layer(nnx.Module):
    """Attention and a feed-forward network, each behind its norm."""

    def __init__(self, config: DecoderConfig, number: int, *, rngs: nnx.Rngs):
        self.config, self.number = config, number
        hidden, size = config.hidden_size, config.head_dim
        self.attention_norm = _norm(config, hidden, rngs)
        self.query_key_value = linear(hidden, sum(config.fused["query_key_value"]), rngs, bias=config.attention_bias)
        self.query_norm = _norm(config, size, rngs) if config.query_key_norm else None
        self.key_norm = _norm(config, size, rngs) if config.query_key_norm else None
        self.output = linear(config.num_heads * size, hidden, rngs, bias=config.output_bias)
        self.output_norm = _norm(config, hidden, rngs) if config.sandwich_norm else None
        self.mlp_norm = _norm(config, hidden, rngs)
        self.up = linear(hidden, sum(config.fused["up"]), rngs, bias=config.mlp_bias)
        self.down = linear(config.intermediate_size, hidden, rngs, bias=config.mlp_bias)
        self.down_norm = _norm(config, hidden, rngs) if config.sandwich_norm else None

    @property
    def window(self) -> int | None:
        """To how many of the last tokens this layer attends, its own included; None: to all."""
        return self.config.window(self.number)

    def project(self, hidden: Array, turn: Turn | None) -> tuple[Array, KeysValues]:
        """Rotated queries [n, t, heads, size], and the new tokens' rotated keys and values [n, t, kv heads, size]."""
        fused = self.query_key_value(self.attention_norm(hidden))
        borders = np.cumsum(self.config.fused["query_key_value"])[:-1].tolist()
        query, key, value = (x.reshape(*x.shape[:2], -1, self.config.head_dim) for x in jnp.split(fused, borders, axis=-1))
        query, key = (rotate(_normed(norm, x), turn) for norm, x in ((self.query_norm, query), (self.key_norm, key)))
        return query, KeysValues(key, value)

    def mix(self, hidden: Array, attended: Array) -> Array:
        """The residual stream after this layer, given what its heads read."""
        hidden = hidden + _normed(self.output_norm, self.output(attended))
        activation, up = ACTIVATIONS[self.config.activation], self.up(self.mlp_norm(hidden))
        if self.config.gated:
            gate, up = jnp.split(up, 2, axis=-1)
            return hidden + _normed(self.down_norm, self.down(activation(gate) * up))
        return hidden + _normed(self.down_norm, self.down(activation(up)))


class TiedTable(nnx.Module):
    """One vector a token, normal with sd 0.02, which is also what the head multiplies by: stored as that product wants it, (size, tokens).

    Turned in memory, its product takes 1.5 to 3 times as long in bfloat16 on CPUs.
    """

    def __init__(self, rows: int, size: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (size, rows), jnp.float32))

    def __call__(self, tokens: Array) -> Array:
        return jnp.moveaxis(jnp.take(self.kernel[...], tokens, axis=1), 0, -1)

    def attend(self, hidden: Array) -> Array:
        """The products [..., rows] of hidden states [..., size] with every vector."""
        return product(hidden, self.kernel[...], (((hidden.ndim - 1,), (0,)), ((), ())))

    @property
    def embedding(self) -> Array:
        """The vectors, [rows, size]."""
        return self.kernel[...].T


def table(rows: int, size: int, rngs: nnx.Rngs) -> nnx.Embed:
    """One vector a row, normal with sd 0.02."""
    embed = nnx.Embed(rows, size, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
    embed.dtype = None  # that of the weights, whatever they are cast to; by default it stays that of the first ones
    return embed


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, *, bias: bool = False) -> nnx.Linear:
    """A linear map, normal with sd 0.02."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=nnx.initializers.normal(0.02), dot_general=product, rngs=rngs)


def product(x: Array, y: Array, dimensions: Any, **options: Any) -> Array:
    """`lax.dot_general` with sums in float32 at least, rounded once to the type of x.

    That is also the fast way: asked for sums in bfloat16, XLA on CPUs (JAX 0.10) turns both factors to float32 first, at four times the cost.
    """
    return lax.dot_general(x, y, dimensions, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32), **options).astype(x.dtype)


def _norm(config: DecoderConfig, size: int, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
    kind = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
    return kind(size, epsilon=config.norm_epsilon, rngs=rngs)


def _normed(norm: nnx.RMSNorm | nnx.LayerNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
