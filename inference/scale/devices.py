"""A function of particles on the devices along one axis of a mesh, each with its share of them; what travels goes around the ring."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from posterity.inference.smc.resampling.quotas import running_sum
from posterity.inference.smc.resampling.schemes import ancestors
from posterity.ppl.component import State
from posterity.ppl.effects import followed

AnyMesh = Mesh | AbstractMesh


def along(name: str, mesh: AnyMesh, axis: str) -> AnyMesh:
    """The mesh, as `auto` has it.

    Raises:
      TypeError: when it is no mesh.
      ValueError: when it has no axis of that name.
    """
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(f"{name}: mesh must be a jax.sharding.Mesh, as jax.make_mesh((8,), ({axis!r},)) makes, got {type(mesh).__name__}")
    if axis not in mesh.axis_names:
        raise ValueError(f"{name}: axis must be one of the mesh's, which are {', '.join(map(repr, mesh.axis_names))}, got {axis!r}")
    return auto(mesh)


def auto(mesh: AnyMesh) -> AnyMesh:
    """The mesh with all axes left to the compiler, so that types say nothing of sharding."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names)) if isinstance(mesh, Mesh) else mesh


def each(mesh: AnyMesh, axis: str, function: Callable, *arguments: Any, shared: tuple = ()) -> Any:
    """`function(*shared, *arguments)` on every device, which sees its own rows of the arguments and gives as many rows of results.

    Under a checker, which may have one device only, the devices are the entries of a `vmap` along an axis of the same name.
    """
    if followed():
        devices = mesh.shape[axis]
        split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), arguments)
        results = jax.vmap(lambda rows: function(*shared, *rows), axis_name=axis, axis_size=devices)(split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
    specs = (*(P() for _ in shared), *(P(axis) for _ in arguments))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(axis), axis_names={axis}, check_vma=False)(*shared, *arguments)


def around(axis: str, far: Int[Array, "..."], passing: Any, visit: Callable[[Any, Any, Array], Any], state: Any) -> Any:
    """`state = visit(state, passing, device)` with what is passed on by this device, and by those up to `far` before and behind it on the ring.

    What passes is that of one device at a time, so that memory is bounded; it goes as many hops as some device needs: one each way
    where the weights are even, and never more than there are devices.
    """
    here, devices = lax.axis_index(axis), lax.axis_size(axis)

    def travel(state: Any, way: int) -> Any:
        hops = lax.pmax(jnp.max(way * far), axis)
        pairs = [(device, (device + way) % devices) for device in range(devices)]

        def hop(carry):
            made, passing, state = carry
            passing = jax.tree.map(lambda x: lax.ppermute(x, axis, pairs), passing)
            return made + 1, passing, visit(state, passing, (here - way * (made + 1)) % devices)

        return lax.while_loop(lambda carry: carry[0] < hops, hop, (jnp.zeros((), jnp.int32), passing, state))[2]

    state = visit(state, passing, here)
    return travel(travel(state, 1), -1) if devices > 1 else state


def fetch(rows: Any, chosen: Int[Array, " m"], axis: str) -> Any:
    """Rows by their number among those of all devices: leaves [m, ...] on each, like the numbers `chosen`."""
    m = chosen.shape[0]
    home, place = chosen // m, chosen % m

    def take(taken, passing, device):
        return jax.tree.map(lambda new, old: _where(home == device, new[place], old), passing, taken)

    return around(axis, lax.axis_index(axis) - home, rows, take, rows)


def slots(copies: Int[Array, " m"], axis: str) -> Int[Array, " m"]:
    """Each particle's index as often as it is to be copied, in order: this device's part of the list."""
    m, here, devices = copies.shape[0], lax.axis_index(axis), lax.axis_size(axis)
    totals = lax.all_gather(jnp.sum(copies), axis)
    last = jnp.cumsum(totals)
    first = last - totals
    ends = first[here] + running_sum(copies)
    needed = (first < (here + 1) * m) & (last > here * m)
    slot = here * m + jnp.arange(m, dtype=jnp.int32)

    def find(found, ends, device):
        index = ancestors([jnp.clip(ends - here * m, 0, m)], m)
        return jnp.where((slot >= first[device]) & (slot < last[device]), device * m + index, found)

    far = jnp.where(needed, here - jnp.arange(devices), 0)
    return around(axis, far, ends, find, jnp.zeros(m, jnp.int32))


def check_rows(name: str, program: Any, particles: Any, n: int) -> None:
    """Raises TypeError when the particles are not arrays of n rows (or scalars that all share)."""
    for leaf in jax.tree.leaves(particles, is_leaf=lambda x: isinstance(x, State)):
        if isinstance(leaf, State):
            raise TypeError(f"{name}: {program} has a {type(leaf).__name__} in its particles, which is shared between them; only rows of arrays can be split")
        if jnp.shape(leaf) and jnp.shape(leaf)[0] != n:
            raise TypeError(f"{name}: {program} has an array of shape {jnp.shape(leaf)} in its {n} particles; each needs a leading axis of {n}, or none")


def _where(condition: Array, new: Array, old: Array) -> Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (old.ndim - 1)), new, old)
