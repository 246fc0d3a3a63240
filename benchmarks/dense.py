"""A cache without sharing, as a reference: every text holds the keys and values of its whole past, prompt included, and its descendants copy all of it."""

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array


@struct.dataclass
class DenseMemory:
    """Keys and values of n texts, a layer each, [n, prompt + steps, kv heads, size]."""

    keys: list[Array]
    values: list[Array]
    lengths: Array  # [n] int32, tokens taken in

    def attend(self, i: int, query: Array, new: Any, *, scale: float, window: int | None = None, softcap: float | None = None) -> tuple[Array, Self]:
        """What queries [n, 1, heads, size] of layer i read after the new token's key and value were written."""
        if window is not None or softcap is not None:
            raise ValueError("the dense reference attends to everything, without a cap on its scores")
        n, _, heads, size = query.shape
        rows = jnp.arange(n)
        keys, values = (kept.at[rows, self.lengths].set(one[:, 0].astype(kept.dtype)) for kept, one in ((self.keys[i], new.keys), (self.values[i], new.values)))
        grouped = query.reshape(n, keys.shape[2], -1, size) * scale
        scores = jnp.einsum("nkgd,nskd->nkgs", grouped, keys)
        past = jnp.arange(keys.shape[1]) <= self.lengths[:, None]
        weights = jax.nn.softmax(jnp.where(past[:, None, None], scores, -jnp.inf).astype(jnp.float32), axis=-1).astype(values.dtype)
        read = jnp.einsum("nkgs,nskd->nkgd", weights, values).reshape(n, 1, heads * size)
        return read, self.replace(keys=_with(self.keys, i, keys), values=_with(self.values, i, values))

    def select(self, ancestors: Array) -> Self:
        return jax.tree.map(lambda x: x[ancestors], self)

    def rewind(self, lengths: Array) -> Self:
        raise ValueError("the dense reference is not rewound")

    def bytes(self) -> dict[str, Array]:
        held = jnp.asarray(float(sum(x.nbytes for x in jax.tree.leaves((self.keys, self.values)))))  # beyond what int32 counts
        return dict.fromkeys(("used", "peak", "reserved", "dense"), held)


@struct.dataclass
class DenseModel:
    """A decoder that keeps its texts' pasts in a dense cache."""

    weights: Any
    graph: Any = struct.field(pytree_node=False)

    @property
    def decoder(self):
        return nnx.merge(self.graph, self.weights)

    @property
    def config(self):
        return self.decoder.config

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def start(self, tokens: Array, length: Array, n: int, steps: int) -> tuple[Array, DenseMemory]:
        hidden, kept = self.decoder(tokens[None])
        room = ((0, 0), (0, steps), (0, 0), (0, 0))
        keys, values = ([jnp.tile(jnp.pad(x, room), (n, 1, 1, 1)) for x in part] for part in zip(*kept, strict=True))
        logits = self.decoder.logits(hidden[0, length - 1])
        return jnp.broadcast_to(logits, (n, *logits.shape)), DenseMemory(keys, values, jnp.full(n, length))

    def advance(self, memory: DenseMemory, tokens: Array, active: Array) -> tuple[Array, DenseMemory]:
        hidden, memory = self.decoder.decode(tokens, memory.lengths, memory)
        return self.decoder.logits(hidden), memory.replace(lengths=memory.lengths + active)


def _with(parts: list[Array], i: int, part: Array) -> list[Array]:
    return [*parts[:i], part, *parts[i + 1 :]]
