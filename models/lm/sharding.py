"""A language model over many devices: its texts over one axis of a mesh, its attention heads and feed-forward columns over another."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# What each map of a layer splits: its outputs, so that a device has heads and columns of its own, or its inputs, whose partial sums are added.
SPLIT = {"query_key_value": "outputs", "up": "outputs", "output": "inputs", "down": "inputs"}


def specs(weights: Any, axis: str | None) -> Any:
    """How each weight of a decoder lies on the devices along `axis` (Shoeybi et al. 2019, Megatron-LM); what is not named in `SPLIT` is on every device."""
    return jax.tree_util.tree_map_with_path(lambda path, x: _spec([_name(key) for key in path], x.ndim, axis), weights)


def _spec(path: list, ndim: int, axis: str | None) -> P:
    side = next((SPLIT[name] for name in path if name in SPLIT), None)
    if axis is None or side is None:
        return P()
    if ndim == 1:  # a bias: of the outputs
        return P(axis) if side == "outputs" else P()
    return P(None, axis) if side == "outputs" else P(axis)


def _name(key: Any) -> Any:
    return getattr(key, "key", getattr(key, "name", None))


def placed(name: str, weights: Any, config: Any, mesh: Mesh, particles: str | None, heads: str | None) -> tuple[Any, NamedSharding | None]:
    """The weights on the devices, and how rows of texts lie on them.

    Raises:
      TypeError: when `mesh` is no mesh.
      ValueError: when it has no axis of that name, or one that heads or columns cannot be split over.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{name}: mesh must be a jax.sharding.Mesh, as jax.make_mesh((4, 2), ('particles', 'heads')) makes, got {type(mesh).__name__}")
    for axis in (particles, heads):
        if axis is not None and axis not in mesh.axis_names:
            raise ValueError(f"{name}: the mesh's axes are {', '.join(map(repr, mesh.axis_names))}, got {axis!r}")
    if particles is not None and particles == heads:
        raise ValueError(f"{name}: particles and heads need an axis each, got {heads!r} for both")
    for what in ("num_kv_heads", "intermediate_size") if heads else ():
        if getattr(config, what) % mesh.shape[heads]:
            raise ValueError(f"{name}: {what} ({getattr(config, what)}) must be a multiple of the {mesh.shape[heads]} devices along {heads!r}")
    # Types say nothing of sharding: it is the compiler's to carry it from these to all that is computed of them.
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    weights = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), weights, specs(weights, heads))
    return weights, NamedSharding(mesh, P(particles)) if particles else None
