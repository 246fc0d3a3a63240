"""Mamba-2 (Dao and Gu 2024): a recurrent language model, whose memory of a text is a state of constant size.

So a particle's memory does not grow with its text, and resampling copies O(1) numbers a particle, whatever the length: there
is no cache to share. What it gives up is the past: a state cannot be rewound.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax import Array

from posterity.models.lm.decoder import linear, table


@dataclasses.dataclass(frozen=True)
class Mamba2Config:
    """Shape and constants of a Mamba-2. Hashable, so it is a static part of every program that holds the model.

    Raises:
      ValueError: for numbers out of range, and for parts that do not fit together.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    state_size: int  # numbers of state a channel
    num_groups: int = 1  # of heads that share what they write to the state and read from it
    conv_kernel: int = 4  # tokens
    step_limits: tuple[float, float] = (0.0, float("inf"))
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    context_length: int = 2**31 - 1  # tokens: there is no limit but that of int32

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim", "state_size", "num_groups", "conv_kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"Mamba2Config: {name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_groups:
            raise ValueError(f"Mamba2Config: num_heads ({self.num_heads}) must be a multiple of num_groups ({self.num_groups})")
        if not 0 <= self.step_limits[0] <= self.step_limits[1]:
            raise ValueError(f"Mamba2Config: step_limits must be two numbers in order, from 0 on, got {self.step_limits}")

    @property
    def inner_size(self) -> int:
        """Channels of all heads."""
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels that are convolved: the heads' inputs, and what each group writes and reads with."""
        return self.inner_size + 2 * self.num_groups * self.state_size

    @property
    def fused(self) -> dict[str, tuple[int, ...]]:
        """No map is held apart in files and side by side here."""
        return {}


class State(NamedTuple):
    """One layer's memory of n texts."""

    inputs: Array  # [n, conv kernel - 1, conv channels], the last ones
    sums: Array  # [n, heads, head dim, state] float32


@struct.dataclass
class States:
    """A `Memory` (see model.py) of constant size a text."""

    layers: list[State]

    def select(self, ancestors: Array) -> Self:
        return jax.tree.map(lambda x: x[ancestors], self)

    def rewind(self, lengths: Array) -> Self:
        raise ValueError("a recurrent model keeps no past to return to; use a decoder where texts are rewound, or start the text again")

    def bytes(self) -> dict[str, Array]:
        held = jnp.asarray(float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))))  # beyond what int32 counts
        return {"used": held, "peak": held, "reserved": held, "dense": held}


class Mamba2(nnx.Module):
    """The model; `Mamba2(config, rngs=nnx.Rngs(seed))` draws fresh weights. A `Model` (see model.py)."""

    def __init__(self, config: Mamba2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = table(config.vocab_size, config.hidden_size, rngs)
        self.layers = nnx.List([Mixer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, rngs=rngs)
        self.head = None if config.tied_head else linear(config.hidden_size, config.vocab_size, rngs)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def logits(self, hidden: Array) -> Array:
        """Next-token logits [..., vocab] of hidden states [..., hidden]."""
        hidden = self.norm(hidden)
        return self.embed.attend(hidden) if self.head is None else self.head(hidden)

    def fresh(self, n: int) -> States:
        """The memory of n texts without tokens."""
        config, dtype = self.config, self.embed.embedding[...].dtype
        inputs = jnp.zeros((n, config.conv_kernel - 1, config.conv_size), dtype)
        return States([State(inputs, jnp.zeros((n, config.num_heads, config.head_dim, config.state_size)))] * config.num_layers)

    def step(self, memory: States, tokens: Array) -> tuple[Array, States]:
        """One token [n] of each text: hidden states [n, hidden], and the memory after it."""
        hidden, after = self.embed(tokens), []
        for layer, state in zip(self.layers, memory.layers, strict=True):
            hidden, state = layer(hidden, state)
            after.append(state)
        return hidden, States(after)

    def __call__(self, tokens: Array) -> tuple[Array, States]:
        """Whole sequences [batch, tokens]: hidden states [batch, tokens, hidden], and the memory after them."""

        def step(memory: States, tokens: Array) -> tuple[States, Array]:
            hidden, memory = self.step(memory, tokens)
            return memory, hidden

        memory, hidden = jax.lax.scan(step, self.fresh(tokens.shape[0]), tokens.T)
        return hidden.swapaxes(0, 1), memory

    def start(self, tokens: Array, length: Array, n: int, steps: int) -> tuple[Array, States]:
        del steps  # a state needs no room

        def step(carry: tuple[Array, States], x: tuple[Array, Array]) -> tuple[tuple[Array, States], None]:
            token, counts = x
            new = self.step(carry[1], token[None])
            return jax.tree.map(lambda new, old: jnp.where(counts, new, old), new, carry), None

        nothing = jnp.zeros((1, self.config.hidden_size), self.embed.embedding[...].dtype)
        (hidden, memory), _ = jax.lax.scan(step, (nothing, self.fresh(1)), (tokens, jnp.arange(tokens.shape[0]) < length))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), (self.logits(hidden), memory))

    def advance(self, memory: States, tokens: Array, active: Array) -> tuple[Array, States]:
        hidden, after = self.step(memory, tokens)
        keep = jax.tree.map(lambda new, old: jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old), after, memory)
        return self.logits(hidden), keep


class Mixer(nnx.Module):
    """One layer: every channel of a head keeps `state_size` sums that decay, at a rate that the token sets (Dao and Gu 2024, section 7)."""

    def __init__(self, config: Mamba2Config, *, rngs: nnx.Rngs):
        self.config = config
        heads, inner = config.num_heads, config.inner_size
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, rngs=rngs)
        self.entry = linear(config.hidden_size, inner + config.conv_size + heads, rngs)
        self.conv = nnx.Param(nnx.initializers.normal(config.conv_kernel**-0.5)(rngs.params(), (config.conv_size, 1, config.conv_kernel)))
        self.conv_bias = nnx.Param(jnp.zeros(config.conv_size))
        self.step_bias = nnx.Param(jnp.log(jnp.expm1(jnp.geomspace(1e-3, 0.1, heads))))
        self.log_rate = nnx.Param(jnp.log(jnp.arange(1.0, heads + 1)))
        self.skip = nnx.Param(jnp.ones(heads))
        self.gated_scale = nnx.Param(jnp.ones(inner))
        self.exit = linear(inner, config.hidden_size, rngs)

    def __call__(self, hidden: Array, state: State) -> tuple[Array, State]:
        """The residual stream [n, hidden] after this layer, and its state."""
        config, n = self.config, hidden.shape[0]
        gate, new, step = jnp.split(self.entry(self.norm(hidden)), np.cumsum([config.inner_size, config.conv_size]).tolist(), axis=-1)
        window = jnp.concatenate([state.inputs, new[:, None]], axis=1)
        mixed = nnx.silu(jnp.einsum("nkc,ck->nc", window, self.conv[:, 0]) + self.conv_bias[...])
        x, write, read = jnp.split(mixed, np.cumsum([config.inner_size, config.num_groups * config.state_size]).tolist(), axis=-1)
        x = x.reshape(n, config.num_heads, config.head_dim).astype(jnp.float32)
        write, read = (jnp.repeat(y.reshape(n, config.num_groups, -1), config.num_heads // config.num_groups, axis=1) for y in (write, read))
        step = jnp.clip(jax.nn.softplus((step + self.step_bias[...]).astype(jnp.float32)), *config.step_limits)
        decay = jnp.exp(-step * jnp.exp(self.log_rate[...].astype(jnp.float32)))
        sums = decay[..., None, None] * state.sums + jnp.einsum("nh,nhp,nhs->nhps", step, x, write)
        y = jnp.einsum("nhps,nhs->nhp", sums, read) + self.skip[...][:, None] * x
        y = (y.reshape(n, -1) * nnx.silu(gate.astype(jnp.float32))).reshape(n, config.num_groups, -1)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + config.norm_epsilon)  # an RMSNorm for each group
        return hidden + self.exit(self.gated_scale[...] * y.reshape(n, -1).astype(hidden.dtype)), State(window[:, 1:], sums)


def outline(config: Mamba2Config) -> Mamba2:
    """The model's structure, with shapes in place of weights; nothing is allocated."""
    model = nnx.eval_shape(lambda: Mamba2(dataclasses.replace(config, num_layers=1), rngs=nnx.Rngs(0)))
    model.config = model.layers[0].config = config
    model.layers = nnx.List([nnx.clone(model.layers[0]) for _ in range(config.num_layers)])
    return model
