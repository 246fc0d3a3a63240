"""Who reads which page of a pool: tables, lengths and reference counts, all inside compiled code.

The tokens of n texts lie in pages of `size` slots. A table names each text's pages; a full page never changes and is shared by
all descendants of the text that wrote it, the open one (the last, if it has room) is copied by whoever writes to it while
others read it. Texts that are the same, having drawn the same token after the same past, go on sharing all. `select` and `rewind` move
tables only. A page that no table names is free, and is found again by its count: so nothing leaks, and memory follows the
genealogy (Jacob, Murray and Rubenthaler 2015: T + O(n log n) tokens on average when every step resamples), not n times T.
"""

import functools
from dataclasses import replace
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Int

NOWHERE = 2**30  # a page or slot that no pool has: what is written there is dropped


class Writes(NamedTuple):
    """What the owner of the pool's contents must do before and when it writes one token a text."""

    pages: Int[Array, " n"]  # the page that text i's token goes to; NOWHERE where nothing is written
    offsets: Int[Array, " n"]  # at which of its slots
    sources: Int[Array, " n"]  # the page to copy first
    targets: Int[Array, " n"]  # where to; NOWHERE where nothing is copied
    twins: Int[Array, " n"]  # the first of the texts that are the same as text i, its new token included, and take part; i itself where it does not


@struct.dataclass
class Pages:
    """The pages of n texts, in a pool of as many as `counts` has entries."""

    table: Int[Array, "n width"]  # page numbers; NOWHERE beyond those that a text has
    lengths: Int[Array, " n"]  # tokens
    counts: Int[Array, " pages"]  # how many texts read each page; 0 is free
    peak: Int[Array, ""]  # the most pages that were ever in use
    lacking: Int[Array, ""]  # pages that a refused push would have needed beyond those there are; 0 while there was room
    size: int = struct.field(pytree_node=False)  # slots a page

    @classmethod
    def empty(cls, n: int, steps: int, capacity: int, size: int) -> Self:
        """n texts without tokens, with tables for `steps` of them, in a pool of `capacity` pages of `size` slots."""
        none, zero = jnp.full((n, -(-steps // size)), NOWHERE, jnp.int32), jnp.zeros((), jnp.int32)
        return cls(none, jnp.zeros(n, jnp.int32), jnp.zeros(capacity, jnp.int32), zero, zero, size)

    @property
    def capacity(self) -> int:
        return self.counts.shape[0]

    @property
    def used(self) -> Int[Array, ""]:
        """Pages that some text reads."""
        return jnp.sum(self.counts > 0, dtype=jnp.int32)

    def push(self, active: Bool[Array, " n"], tokens: Int[Array, " n"]) -> tuple[Self, Writes]:
        """Room for one more token of each active text. Those that were and stay the same text share it: one of them writes, all read.

        When there are too few free pages nothing is written, no text grows, and `lacking` says by how many: the pool stays as it was.
        """
        n, width = self.table.shape
        rows, column, offset = jnp.arange(n, dtype=jnp.int32), self.lengths // self.size, self.lengths % self.size
        current = self.table[rows, jnp.minimum(column, width - 1)]
        last = jnp.where(offset > 0, current, self.table[rows, jnp.maximum(column - 1, 0)])  # who reads it as far as that has the same past
        twins = _first_alike(active, last, offset, jnp.asarray(tokens))
        leads = active & (twins == rows)
        writes = leads & (offset > 0)
        # Of those that write to one page the first may keep it, with its twins, if nobody else reads it.
        page = jnp.where(writes, current, NOWHERE)
        writers = jnp.zeros_like(self.counts).at[jnp.where(active & (offset > 0), current, NOWHERE)].add(1, mode="drop")
        first = jnp.full_like(self.counts, n).at[page].min(rows, mode="drop")
        alone = (first.at[page].get(mode="clip") == rows) & (writers.at[page].get(mode="clip") == self.counts.at[page].get(mode="clip"))
        copies = writes & ~alone
        needed = copies | (leads & (offset == 0))
        free = jnp.cumsum(self.counts == 0, dtype=jnp.int32)
        lacking = jnp.maximum(jnp.sum(needed, dtype=jnp.int32) - free[-1], 0)
        granted = lacking == 0
        needed, copies, active, leads = needed & granted, copies & granted, active & granted, leads & granted
        fresh = jnp.searchsorted(free, jnp.cumsum(needed, dtype=jnp.int32)).astype(jnp.int32)  # the lowest free pages, in order of rows
        mine = jnp.where(needed, fresh, current)[twins]
        here = active[:, None] & (jnp.arange(width) == column[:, None])
        after = replace(self, table=jnp.where(here, mine[:, None], self.table), lengths=self.lengths + active)._counted()
        after = replace(after, peak=jnp.maximum(self.peak, after.used), lacking=jnp.maximum(self.lacking, lacking))
        return after, Writes(jnp.where(leads, mine, NOWHERE), offset, jnp.minimum(current, self.capacity - 1), jnp.where(copies, fresh, NOWHERE), twins)

    def select(self, ancestors: Int[Array, " n"]) -> Self:
        """The texts whose i-th is a copy of number `ancestors[i]`."""
        return replace(self, table=self.table[ancestors], lengths=self.lengths[ancestors])._counted()

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        """The texts cut to `lengths`, where they are longer."""
        lengths = jnp.minimum(self.lengths, lengths)
        beyond = jnp.arange(self.table.shape[1]) >= -(-lengths[:, None] // self.size)
        return replace(self, table=jnp.where(beyond, NOWHERE, self.table), lengths=lengths)._counted()

    def _counted(self) -> Self:
        return replace(self, counts=jnp.zeros_like(self.counts).at[self.table.ravel()].add(1, mode="drop"))


def _first_alike(active: Array, *keys: Array) -> Array:
    """For each active row the first one that agrees with it in all keys, int32 [n]; for the others themselves."""
    order = jnp.lexsort((*keys, ~active)).astype(jnp.int32)  # stable: equal rows stay in order
    alike = active[order][1:] & functools.reduce(jnp.logical_and, [key[order][1:] == key[order][:-1] for key in keys])
    starts = jax.lax.cummax(jnp.where(jnp.pad(alike, (1, 0)), 0, jnp.arange(order.size)))
    return jnp.zeros_like(order).at[order].set(order[starts])
