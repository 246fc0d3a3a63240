"""Programs that begin and step their particles in blocks: one block after another on a device, and on many devices at the same time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from posterity.inference.scale.devices import AnyMesh, check_rows, each, fetch
from posterity.ppl.effects import followed
from posterity.ppl.program import Program, choices_of
from posterity.ppl.transform import Transformed, bound, whole


@struct.dataclass
class InBlocks(Transformed):
    """A program whose particles are begun and stepped block by block, on the inner program's own particles; see `in_blocks`."""

    size: int = struct.field(pytree_node=False)
    mesh: AnyMesh | None = struct.field(pytree_node=False, default=None)  # over whose `axis` the blocks are spread
    axis: str = struct.field(pytree_node=False, default="particles")

    def __repr__(self) -> str:
        return f"<{self.inner} in blocks of {self.size}>"

    def init(self, key: Array, n: int) -> tuple[Any, Array]:
        def begin(program, key, place):
            m = place.shape[0]
            particles, log_potential = program.init(key, m)
            check_rows("in_blocks", program, particles, m)
            return particles, log_potential

        return self._by_block(begin, key, jnp.zeros(n, jnp.int32))

    def step(self, key: Array, particles: Any, *, where: Array | None = None) -> tuple[Any, Array]:
        if where is None:
            return self._by_block(lambda program, key, particles: program.step(key, particles), key, particles)
        return self._by_block(lambda program, key, particles, where: program.step(key, particles, where=where), key, particles, where)

    def select(self, particles: Any, ancestors: Array) -> Any:
        if self.mesh is None:
            return self.inner.select(particles, ancestors)
        rows, tree = jax.tree.flatten(particles)
        moved = each(self.mesh, self.axis, lambda rows, ancestors: fetch(rows, ancestors, self.axis), [x for x in rows if x.ndim], ancestors)
        rest = iter(moved)
        return jax.tree.unflatten(tree, [next(rest) if x.ndim else x for x in rows])

    def done(self, particles: Any) -> Array:
        return self.inner.done(particles)

    def value(self, particles: Any) -> Any:
        return self.inner.value(particles)

    def choices(self, particles: Any) -> dict[str, Any]:
        return choices_of(self.inner, particles)

    def _by_block(self, function: Callable, key: Array, *batch: Any) -> Any:
        """`function(program, the block's key, *block)` of every block, the last of which may be smaller; scalars are shared by all."""
        n = max(x.shape[0] for x in jax.tree.leaves(batch) if x.ndim)
        count, rest = divmod(n, self.size)
        parts = []
        if count:
            blocks = jax.tree.map(lambda x: x[: n - rest].reshape(count, self.size, *x.shape[1:]) if x.ndim else jnp.broadcast_to(x, count), batch)
            keys = jax.vmap(lambda block: jax.random.fold_in(key, block))(jnp.arange(count))
            here = lambda program, keys, *blocks: _one_by_one(lambda block: function(program, *block), (keys, *blocks))  # noqa: E731
            mapped = (
                here(self.inner, keys, *blocks) if self.mesh is None or followed() else each(self.mesh, self.axis, here, keys, *blocks, shared=(self.inner,))
            )
            parts.append(jax.tree.map(lambda x: x.reshape(n - rest, *x.shape[2:]) if x.ndim > 1 else x[0], mapped))
        if rest:
            last = jax.tree.map(lambda x: x[n - rest :] if x.ndim else x, batch)
            parts.append(function(self.inner, jax.random.fold_in(key, count), *last))
        return jax.tree.map(lambda *xs: jnp.concatenate(xs) if xs[0].ndim else xs[0], *parts) if len(parts) > 1 else parts[0]


def in_blocks(program: Program, *, size: int) -> InBlocks:
    """The program with its particles begun and stepped in blocks of `size`, one block after another.

    The meaning is the same. What a step needs beside the particles themselves (intermediate values, random bits) is then needed for
    `size` particles and not for all n: memory for time. Every block draws with a key of its own, the key's with the block's
    number folded in; so a run depends on n and `size`, and not on which device runs which block (`sharded_smc`).

    Args:
      program: one whose particles are rows of arrays; not a language model's texts, whose cache is shared.
      size: how many particles a block has; the last one may have fewer.

    Raises:
      TypeError: when `program` is no program; from its `init`, when its particles are no rows of arrays.
      ValueError: on a size below 1.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> posterior = po.smc(jax.random.key(0), po.in_blocks(walk(jnp.ones(3)), size=300), n=1_000)
    >>> bool(abs(posterior.expect() - 1.0) < 0.1)
    True
    """
    return InBlocks(bound("in_blocks", program), whole("in_blocks", "size", size))


def _one_by_one(function: Callable[[Any], Any], blocks: Any) -> Any:
    """`lax.map`; a Python loop while a decider must see every block's draws."""
    if not followed():
        return lax.map(function, blocks)
    results = [function(jax.tree.map(lambda x, i=i: x[i], blocks)) for i in range(jax.tree.leaves(blocks)[0].shape[0])]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *results)
