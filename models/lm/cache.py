"""The genealogical cache: a decoder's keys and values of n texts that share a prompt and, by resampling, much of what follows.

The prompt is held once and read by one matrix product for all texts. What follows lies in the pages of one pool: see
`pages.py`. During a forward pass the cache is only read; the new tokens' keys and values of all layers are written at its end,
so that a loop that carries the cache changes it in place.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from posterity.models.lm import attention
from posterity.models.lm.attention import KeysValues
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.pages import NOWHERE, Pages, Writes
from posterity.ppl.side_by_side import held

CHUNK = 128  # tokens of a prompt that go through the decoder together: what prefill holds beside keys and values is bounded by it
PAGE = 4  # tokens; 256 particles that resample at every step hold a third less than with 8, and half of what they hold with 16
STRETCH = 16  # tokens of a text that are read together
TOGETHER = 128  # texts of many prompts that go through the decoder together


@struct.dataclass
class Prefill:
    """A prompt on its way through the decoder, chunk by chunk: the chunk's tokens stand where a step has its texts."""

    kept: list[KeysValues]  # a layer each: keys [kv heads, size, P], values [kv heads, P, size]
    start: Int[Array, ""]  # the chunk's first position

    def attend(self, i: int, query: Array, new: KeysValues, *, scale: float, window: int | None = None, softcap: float | None = None) -> tuple[Array, Self]:
        """What a chunk's queries [t, 1, heads, size] of layer i read, [t, 1, heads * size]; its keys and values [t, 1, kv heads, size] are kept."""
        t, _, heads, size = query.shape
        keys = jax.lax.dynamic_update_slice(self.kept[i].keys, new.keys[:, 0].transpose(1, 2, 0), (0, 0, self.start))
        values = jax.lax.dynamic_update_slice(self.kept[i].values, new.values[:, 0].swapaxes(0, 1), (0, self.start, 0))
        visible = attention.seen(self.start + jnp.arange(t)[:, None], jnp.arange(keys.shape[2]), window)
        read = attention.shared(query[:, 0], keys, values, visible, scale=scale, softcap=softcap).mean
        kept = [*self.kept[:i], KeysValues(keys, values), *self.kept[i + 1 :]]
        return read.reshape(t, 1, heads * size).astype(query.dtype), replace(self, kept=kept)


@struct.dataclass
class Cache:
    """The memory of n texts."""

    prompt: list[KeysValues]  # a layer each: keys [kv heads, size, P], values [kv heads, P, size]
    prompt_length: Int[Array, ""]
    pages: Pages
    # All layers of a page lie together; of a layer each head's tokens, as the products want them. See _bits.
    keys: Shaped[Array, "pages layers kv_heads page size"]
    values: Shaped[Array, "pages layers kv_heads page size"]

    def select(self, ancestors: Int[Array, " m"]) -> Self:
        """Copies of the texts `ancestors`: tables and lengths move, keys and values stay. More texts than before get a larger pool."""
        n, m = self.pages.table.shape[0], ancestors.shape[0]
        more = 0 if m <= n else -(-self.pages.capacity * m // n) - self.pages.capacity
        pages = replace(self.pages, counts=jnp.pad(self.pages.counts, (0, more)))
        keys, values = (jnp.pad(x, ((0, more), *((0, 0),) * 4)) if more else x for x in (self.keys, self.values))
        return replace(self, pages=pages.select(ancestors), keys=keys, values=values)

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        """The texts cut to their first `lengths` generated tokens."""
        return replace(self, pages=self.pages.rewind(lengths))

    def held(self, going: Bool[Array, ""], before: Self) -> Self:
        """The texts before, unless `going`. The pool stays as it is: what was written there since, no text of before reads."""
        return replace(self, pages=held(going, self.pages, before.pages))

    def bytes(self) -> dict[str, Array]:
        """What is held. "lacking" is there only when the pool could be too small: more than 0 once it was, and the texts stood still."""
        pages, (n, width) = self.pages, self.pages.table.shape
        page = float(self.keys[0].nbytes + self.values[0].nbytes)  # JAX counts with int32, and 2 GiB are more
        token = page / pages.size
        prompt = float(sum(x.nbytes for x in jax.tree.leaves(self.prompt)))
        held = {"used": pages.used, "peak": pages.peak, "reserved": pages.capacity, "lacking": pages.lacking}
        if pages.capacity >= n * width:
            del held["lacking"]  # even without any sharing there is room
        beside = {"used": prompt, "peak": prompt, "reserved": prompt}
        held = {name: jnp.asarray(count, jnp.float32) * page + beside.get(name, 0.0) for name, count in held.items()}
        held["prompt"] = jnp.asarray(prompt, jnp.float32)
        return held | {"dense": jnp.sum(self.prompt_length + pages.lengths).astype(jnp.float32) * token, "token": jnp.asarray(token, jnp.float32)}


@struct.dataclass
class Reading:
    """A cache during one forward pass: read only, with the new keys and values beside it."""

    cache: Cache
    length: Int[Array, ""]  # of the longest text that takes part, tokens
    new: tuple[KeysValues, ...] = ()  # of the layers so far, each [n, 1, kv heads, size]
    prompts: Int[Array, " n"] | None = None  # whose prompt each text has, where `cache.prompt` holds several, and `prompt_length` is [n]

    def attend(self, i: int, query: Array, new: KeysValues, *, scale: float, window: int | None = None, softcap: float | None = None) -> tuple[Array, Self]:
        """What queries [n, 1, heads, size] of layer i read of the prompt, of their text's tokens and of themselves, [n, 1, heads * size]."""
        n, _, heads, size = query.shape
        cache, lengths = self.cache, self.cache.pages.lengths
        shared, kv_heads = cache.prompt[i], new.keys.shape[2]
        positions = jnp.arange(shared.keys.shape[-1])
        visible = attention.seen((cache.prompt_length + lengths)[:, None], positions, window) & (positions < jnp.reshape(cache.prompt_length, (-1, 1)))

        page = cache.pages.size
        several = max(STRETCH // page, 1)
        table = jnp.pad(jnp.minimum(cache.pages.table, cache.pages.capacity - 1), ((0, 0), (0, -cache.pages.table.shape[1] % several)))

        def stretch(j):
            numbers = jax.lax.dynamic_slice_in_dim(table, j * several, several, axis=1)
            positions = j * several * page + jnp.arange(several * page)
            own = (positions < lengths[:, None]) & attention.seen(lengths[:, None], positions, window)
            return _layer(cache.keys, numbers, i, shared.keys.dtype), _layer(cache.values, numbers, i, shared.values.dtype), own

        options = {"scale": scale, "softcap": softcap}
        if self.prompts is None:
            of_prompt = attention.shared(query[:, 0], shared.keys, shared.values, visible, **options)
        else:
            keys, values = (_rows(x, self.prompts) for x in shared)
            of_prompt = attention.in_stretches(query[:, 0], lambda _: (keys.swapaxes(2, 3), values, visible), 1, kv_heads, **options)
        read = attention.merge(
            [
                of_prompt,
                attention.in_stretches(query[:, 0], stretch, -(-self.length // (several * page)), kv_heads, **options),
                attention.itself(query[:, 0], new.keys[:, 0], new.values[:, 0], **options),
            ]
        )
        return read.reshape(n, 1, heads * size).astype(query.dtype), replace(self, new=(*self.new, new))


@dataclasses.dataclass(frozen=True)
class CachedDecoder:
    """A decoder as a `Model` whose memory is a `Cache`. Only texts under way that differ are computed, in batches of n, 3/4 n or 1/4 n.

    The pool has room for every text's every token (n * steps), whatever resampling does, so that it never overflows; `pool`
    tokens in its place bound the memory of particles that resampling keeps related.
    """

    decoder: Decoder
    pool: int | None = None  # tokens
    page: int = PAGE  # tokens

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    @property
    def context_length(self) -> int:
        return self.decoder.config.context_length

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Cache]:
        """The prompt through the decoder once, in chunks; logits of its last token only."""
        config = self.decoder.config
        chunk = min(CHUNK, tokens.shape[0])
        padded = -(-tokens.shape[0] // chunk) * chunk
        tokens = jnp.pad(tokens, (0, padded - tokens.shape[0]))
        dtype = jax.eval_shape(self.decoder.embedded, tokens, tokens).dtype
        size = config.head_dim
        empty = KeysValues(*(jnp.zeros((config.num_kv_heads, *shape), dtype) for shape in ((size, padded), (padded, size))))

        def read(j, carry):
            kept, _ = carry
            start = j * chunk
            own = jax.lax.dynamic_slice(tokens, (start,), (chunk,))
            hidden, memory = self.decoder.decode(own, start + jnp.arange(chunk), Prefill(kept, start))
            return memory.kept, hidden[jnp.clip(length - 1 - start, 0, chunk - 1)]

        chunks = -(-length // chunk)
        kept, hidden = jax.lax.fori_loop(0, chunks, read, ([empty] * config.num_layers, jnp.zeros(config.hidden_size, dtype)))
        logits = self.decoder.logits(hidden[None])
        width = -(-steps // self.page)
        capacity = n * width if self.pool is None else min(-(-self.pool // self.page), n * width)
        pages = Pages.empty(n, max(steps, 1), max(capacity, 1), self.page)
        pool = _bits(jnp.zeros((pages.capacity, config.num_layers, config.num_kv_heads, self.page, size), dtype))
        return jnp.broadcast_to(logits, (n, logits.shape[1])), Cache(kept, jnp.asarray(length), pages, pool, pool)

    def advance(self, memory: Cache, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Cache]:
        """One forward pass over one token of each active text. Nothing moves when the pool has no room for them."""
        pages, writes = memory.pages.push(active, tokens)
        reading = replace(memory, pages=replace(pages, lengths=memory.pages.lengths))
        graph, weights = nnx.split(self.decoder)
        logits, keys, values = _passing(graph)(weights, reading, tokens, writes)
        return logits, replace(memory, pages=pages, keys=keys, values=values)


def _passing(graph: Any) -> Callable[..., tuple[Array, Array, Array]]:
    """One pass over the texts of one prompt, and under `vmap` over prompts one over all of their texts: logits [n, vocab], and the pool written to."""

    def one(weights: Any, cache: Cache, tokens: Array, writes: Writes) -> tuple[Array, Array, Array]:
        pool = cache.keys, cache.values
        if cache.pages.size > 1:
            pool = _copied(*pool, writes.sources, writes.targets)
        everyone, n = functools.partial(_everyone, graph), tokens.shape[0]
        whole = everyone if n < 32 else functools.partial(_by_number, everyone, (n // 4, 3 * n // 4))
        logits, new = whole(weights, replace(cache, keys=pool[0], values=pool[1]), tokens, writes.pages < NOWHERE, writes.twins)
        return logits, *_written(*pool, new, writes.pages, writes.offsets)

    passed = jax.custom_batching.custom_vmap(one)

    @passed.def_vmap
    def rule(size: int, batched: list, *args: Any) -> tuple[tuple[Array, Array, Array], tuple[bool, bool, bool]]:
        if any(jax.tree.leaves(batched[0])):  # models that differ share no products
            found = jax.vmap(one, in_axes=jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched)), axis_size=size)(*args)
        else:
            weights, *rest = args
            each = jax.tree.map(lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape)), rest, list(batched[1:]))
            found = _of_many(graph, weights, *each)
        return found, (True, True, True)

    return passed


def _of_many(graph: Any, weights: Any, cache: Cache, tokens: Int[Array, "prompts n"], writes: Writes) -> tuple[Array, Array, Array]:
    """The pass over the texts of many prompts, every leaf with that leading axis: those that take part and differ, wherever they are, `TOGETHER` at a time."""
    prompts, n = tokens.shape
    several, capacity = prompts * n, cache.keys.shape[1]
    few, beyond = min(TOGETHER, several), jnp.arange(prompts, dtype=jnp.int32)[:, None]
    apart = lambda pages: jnp.where(pages < NOWHERE, pages + beyond * capacity, NOWHERE).ravel()  # noqa: E731 - all pools are one
    pool = cache.keys.reshape(-1, *cache.keys.shape[2:]), cache.values.reshape(-1, *cache.values.shape[2:])
    if cache.pages.size > 1:
        pool = _copied(*pool, apart(writes.sources), apart(writes.targets))
    pages, offsets, tokens = apart(writes.pages), writes.offsets.ravel(), tokens.ravel()
    table, lengths = apart(cache.pages.table.reshape(prompts, -1)).reshape(several, -1), cache.pages.lengths.ravel()
    counts = cache.pages.counts.ravel()
    order = jnp.argsort(pages >= NOWHERE, stable=True)
    asked = jnp.sum(pages < NOWHERE, dtype=jnp.int32)

    def some(first: Array) -> tuple[Array, KeysValues]:
        """Those from number `first` on: logits, keys and values."""
        at = first + jnp.arange(few)
        rows = order[jnp.minimum(at, several - 1)]
        own = rows // n
        own_pages = Pages(table[rows], lengths[rows], counts, cache.pages.peak, cache.pages.lacking, cache.pages.size)
        apiece = replace(cache, prompt_length=cache.prompt_length[own], pages=own_pages, keys=pool[0], values=pool[1])
        return forward(nnx.merge(graph, weights), apiece, tokens[rows], at < asked, own)

    def turn(j: Array, found: tuple) -> tuple:
        return jax.tree.map(lambda all, some: jax.lax.dynamic_update_slice_in_dim(all, some, j * few, 0), found, some(j * few))

    shapes = jax.eval_shape(some, jnp.zeros((), jnp.int32))
    none = jax.tree.map(lambda x: jnp.zeros((-(-several // few) * few, *x.shape[1:]), x.dtype), shapes)
    # The pool is only read in this loop, and written after it: so it is written in place.
    found, new = jax.lax.fori_loop(0, -(-asked // few), turn, none)
    places = jnp.where(jnp.arange(several) < asked, pages[order], NOWHERE)
    keys, values = _written(*pool, jax.tree.map(lambda x: x[:several], new), places, offsets[order])
    place = jnp.zeros_like(order).at[order].set(jnp.arange(several))
    logits = found[place[(writes.twins + beyond * n).ravel()]].reshape(prompts, n, -1)
    return logits, keys.reshape(cache.keys.shape), values.reshape(cache.values.shape)


def _everyone(graph: Any, weights: Any, cache: Cache, tokens: Array, active: Array, twins: Array) -> tuple[Array, KeysValues]:
    return forward(nnx.merge(graph, weights), cache, tokens, active)


def _written(keys: Array, values: Array, new: KeysValues, pages: Array, offsets: Array) -> tuple[Array, Array]:
    """The pool with new tokens' keys and values [n, layers, kv heads, size] in their places."""
    keys, values = (pool.at[pages, :, :, offsets].set(_bits(x), mode="drop") for pool, x in zip((keys, values), new, strict=True))
    return keys, values


def forward(
    decoder: Decoder, cache: Cache, tokens: Int[Array, " n"], active: Bool[Array, " n"], prompts: Int[Array, " n"] | None = None
) -> tuple[Array, KeysValues]:
    """Logits [n, vocab] after the active texts' new tokens, and their keys and values [n, layers, kv heads, size]; the cache stays as it is."""
    lengths = cache.pages.lengths
    longest = jnp.max(jnp.where(active, lengths, 0))
    hidden, reading = decoder.decode(tokens, cache.prompt_length + lengths, Reading(cache, longest, prompts=prompts))
    return decoder.logits(hidden), KeysValues(*(jnp.concatenate(part, axis=1) for part in zip(*reading.new, strict=True)))


def _by_number(everyone: Callable, sizes: tuple[int, ...], weights: Any, cache: Cache, tokens: Array, active: Array, twins: Array) -> tuple[Array, KeysValues]:
    """The pass over as few texts as the smallest of `sizes` (or n) that holds the active: their tokens, tables and lengths alone are moved to the front."""
    order = jnp.argsort(~active, stable=True)
    place = jnp.argsort(order)

    def compacted(few):
        front = order[:few]
        pages = replace(cache.pages, table=cache.pages.table[front], lengths=cache.pages.lengths[front])
        found = everyone(weights, replace(cache, pages=pages), tokens[front], active[front], twins)
        return jax.tree.map(lambda x: x[jnp.minimum(place, few - 1)[twins]], found)

    passes = [*(functools.partial(compacted, few) for few in sizes), lambda: everyone(weights, cache, tokens, active, twins)]
    return jax.lax.switch(sum((jnp.sum(active) > few).astype(jnp.int32) for few in sizes), passes)


def _rows(x: Array, rows: Array) -> Array:
    """x[rows], of whose entries each is one row of a matrix; see `_layer`."""
    return x.reshape(x.shape[0], -1).at[rows].get(mode="promise_in_bounds").reshape(*rows.shape, *x.shape[1:])


def _layer(pool: Array, pages: Array, layer: int, dtype: Any) -> Array:
    """One layer of texts' pages [n, m]: [n, kv heads, m * page, size]. As rows of a matrix, one a page and head: what is gathered need not be turned."""
    _, layers, heads, page, size = pool.shape
    rows = (pages[:, None] * layers + layer) * heads + jnp.arange(heads)[:, None]
    found = pool.reshape(-1, page * size).at[rows.ravel()].get(mode="promise_in_bounds").reshape(pages.shape[0], heads, -1, size)
    return found if found.dtype == dtype else jax.lax.bitcast_convert_type(found, dtype)


def _bits(x: Array) -> Array:
    """What a pool holds of x: of bfloat16 its bits. To write numbers of that type XLA on CPUs turns all of the pool to float32 and back, 500 times as slow."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _copied(keys: Array, values: Array, sources: Array, targets: Array) -> tuple[Array, Array]:
    """The pool after its pages `sources` [n] were copied to `targets`, those that are not NOWHERE, one after the other."""
    order = jnp.argsort(targets)

    def copy(i, pool):
        row = order[i]
        return jax.tree.map(lambda x: x.at[targets[row]].set(x[sources[row]]), pool)

    return jax.lax.fori_loop(0, jnp.sum(targets < NOWHERE), copy, (keys, values))
