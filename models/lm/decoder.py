"""The Llama decoder (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

One class serves the embedded model and real checkpoints. It runs in two ways over the same layers: over whole
sequences (training, prefill), and one token a particle over a shared prompt and a suffix per particle (decoding).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from posterity.models.lm.config import DecoderConfig


class KeysValues(NamedTuple):
    """Keys and values of one layer, [..., tokens, kv heads, head dim]."""

    keys: Array
    values: Array


class Decoder(nnx.Module):
    """A decoder; `Decoder(config, rngs=nnx.Rngs(seed))` draws fresh weights (normal, sd 0.02)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, rngs=rngs)
        self.head = None if config.tied_head else _linear(config.hidden_size, config.vocab_size, rngs)

    def logits(self, hidden: Array) -> Array:
        """Next-token logits [..., vocab] of hidden states [..., hidden]."""
        hidden = self.norm(hidden)
        return self.embed.attend(hidden) if self.head is None else self.head(hidden)

    def __call__(self, tokens: Array) -> tuple[Array, list[KeysValues]]:
        """Whole sequences [batch, tokens], causal: hidden states [batch, tokens, hidden] and every layer's keys and values."""
        hidden = self.embed(tokens)
        positions = jnp.arange(tokens.shape[1])
        causal = positions[:, None] >= positions
        kept = []
        for layer in self.layers:
            query, new = layer.project(hidden, positions)
            hidden = layer.mix(hidden, _attend(query, [(new, causal)]))
            kept.append(new)
        return hidden, kept

    def decode(self, tokens: Array, prompt: list[KeysValues], prompt_length: Array, suffix: list[KeysValues], lengths: Array) -> tuple[Array, list[KeysValues]]:
        """One more token [n] for every particle.

        `prompt` (each [1, P, ...], of which the first `prompt_length` tokens count) is shared by all particles and
        attended with one matrix product; `suffix` (each [n, S, ...]) holds what each particle generated, `lengths`
        [n] of it so far. Returns hidden states [n, hidden] and the suffix with the new token written at `lengths`.
        """
        hidden = self.embed(tokens)[:, None]
        positions = (prompt_length + lengths)[:, None]
        rows = jnp.arange(tokens.shape[0])
        in_prompt = jnp.arange(prompt[0].keys.shape[1]) < prompt_length
        in_suffix = (jnp.arange(suffix[0].keys.shape[1]) <= lengths[:, None])[:, None, None, None]
        kept = []
        for layer, shared, own in zip(self.layers, prompt, suffix, strict=True):
            query, new = layer.project(hidden, positions)
            own = KeysValues(own.keys.at[rows, lengths].set(new.keys[:, 0]), own.values.at[rows, lengths].set(new.values[:, 0]))
            hidden = layer.mix(hidden, _attend(query, [(shared, in_prompt), (own, in_suffix)]))
            kept.append(own)
        return hidden[:, 0], kept


class Layer(nnx.Module):
    """Attention and a gated feed-forward network, each behind its RMSNorm."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        hidden, heads, kv_heads, size = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.attention_norm = nnx.RMSNorm(hidden, epsilon=config.norm_epsilon, rngs=rngs)
        self.query = _linear(hidden, heads * size, rngs, bias=config.attention_bias)
        self.key = _linear(hidden, kv_heads * size, rngs, bias=config.attention_bias)
        self.value = _linear(hidden, kv_heads * size, rngs, bias=config.attention_bias)
        self.output = _linear(heads * size, hidden, rngs)
        self.mlp_norm = nnx.RMSNorm(hidden, epsilon=config.norm_epsilon, rngs=rngs)
        self.gate = _linear(hidden, config.intermediate_size, rngs)
        self.up = _linear(hidden, config.intermediate_size, rngs)
        self.down = _linear(config.intermediate_size, hidden, rngs)

    def project(self, hidden: Array, positions: Array) -> tuple[Array, KeysValues]:
        """Rotated queries [n, t, heads, size], and the new tokens' rotated keys and values [n, t, kv heads, size]."""
        size = self.config.head_dim
        hidden = self.attention_norm(hidden)
        query, key, value = (p(hidden).reshape(*hidden.shape[:2], -1, size) for p in (self.query, self.key, self.value))
        return rotate(query, positions, self.config), KeysValues(rotate(key, positions, self.config), value)

    def mix(self, hidden: Array, attended: Array) -> Array:
        """The residual stream after this layer, given what its heads read."""
        hidden = hidden + self.output(attended)
        normed = self.mlp_norm(hidden)
        return hidden + self.down(nnx.silu(self.gate(normed)) * self.up(normed))


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, *, bias: bool = False) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)


def rotate(x: Array, positions: Array, config: DecoderConfig) -> Array:
    """Rotary position embedding (Su et al. 2021) of x [n, t, heads, size] at positions [t] or [n, t]."""
    size = x.shape[-1]
    frequency = config.rope_theta ** (-jnp.arange(0, size, 2) / size)
    angle = positions[..., None, None] * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    if config.rope_layout == "half":
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def _attend(query: Array, memory: list[tuple[KeysValues, Array]]) -> Array:
    """Attention of queries [n, t, heads, size] over several stretches of memory at once, each with its mask.

    A stretch with leading axis 1 is shared by all n: its scores are one matrix product. Returns [n, t, heads * size].
    """
    n, t, heads, size = query.shape
    grouped = query.reshape(n, t, memory[0][0].keys.shape[2], -1, size) * size**-0.5
    scores = [jnp.where(mask, jnp.einsum(_rule("ntkgd,nskd->nkgts", m), grouped, _own(m.keys)), -jnp.inf) for m, mask in memory]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1).astype(jnp.float32), axis=-1).astype(query.dtype)
    read, start = jnp.zeros((), query.dtype), 0
    for m, _ in memory:
        stop = start + m.keys.shape[1]
        read = read + jnp.einsum(_rule("nkgts,nskd->ntkgd", m), weights[..., start:stop], _own(m.values))
        start = stop
    return read.reshape(n, t, heads * size)


def _is_shared(memory: KeysValues) -> bool:
    return memory.keys.shape[0] == 1


def _own(x: Array) -> Array:
    return x[0] if x.shape[0] == 1 else x


def _rule(rule: str, memory: KeysValues) -> str:
    return rule.replace("nskd", "skd") if _is_shared(memory) else rule
