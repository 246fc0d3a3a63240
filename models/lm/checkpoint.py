"""From named arrays, as files hold them, to a model and back.

The model itself is the one source of truth for which tensors there are and what their shapes must be.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

DTYPES = ("float32", "bfloat16")


class Names(NamedTuple):
    """What a file format calls the parts of a model, and how it stores them."""

    embed: str
    norm: str
    head: str
    layer: str  # with a place for its number
    parts: dict[str, tuple[str, ...]]  # the parts of a layer; several names where a file holds apart what the model holds side by side
    places: str = ""
    inputs_first: bool = False  # the linear maps of layers are stored (in, out) as they are here, not (out, in)
    norm_offset: float = 0.0  # what the scales of norms lack in the file

    def of(self, path: tuple) -> tuple[str, ...]:
        """The file's names of the parameter at `path`, such as ("layers", 3, "output", "kernel")."""
        in_layer = path[0] == "layers"
        prefix, stems, leaf = (self.layer.format(path[1]), self.parts[path[2]], path[3:]) if in_layer else ("", (getattr(self, path[0]),), path[1:])
        suffix = "" if not leaf else ".bias" if leaf[0] == "bias" else ".weight"
        return tuple(prefix + stem + suffix for stem in stems)

    def stored(self, path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter of this shape."""
        return shape[::-1] if self._turned(path) else shape

    def loaded(self, path: tuple, array: np.ndarray) -> np.ndarray:
        """The parameter, float32, from what the file holds."""
        # A copy in every case: a view into a mapped file would change, or crash, with the file.
        array = np.array(array.T if self._turned(path) else array, np.float32, order="C")
        return array + np.float32(self.norm_offset) if path[-1] == "scale" else array

    def saved(self, path: tuple, array: np.ndarray) -> np.ndarray:
        """What the file holds of a parameter."""
        array = array.T if self._turned(path) else array
        return (array.astype(np.float32) - np.float32(self.norm_offset)).astype(array.dtype) if path[-1] == "scale" and self.norm_offset else array

    def axis(self, path: tuple) -> int:
        """Along which a file's tensors lie side by side in one parameter."""
        return -1 if self.inputs_first and path[0] == "layers" else 0

    def _turned(self, path: tuple) -> bool:
        return path[-1] == "kernel" and not (self.inputs_first and path[0] == "layers")


class Blueprint(NamedTuple):
    """A model's structure, its parameters by the names that a file has for them, and the shapes stored there."""

    graph: nnx.GraphDef
    names: Names
    paths: dict[tuple, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]


def blueprint(outline: nnx.Module, fused: Mapping[str, tuple[int, ...]], names: Names) -> Blueprint:
    """What a file must hold for a model of this outline (shapes in place of weights), whose parts `fused` are several maps side by side."""
    graph, state = nnx.split(outline)
    flat = dict(nnx.to_flat_state(state))
    paths, shapes = {path: names.of(path) for path in flat}, {}
    for path, called in paths.items():
        shape, axis = list(names.stored(path, flat[path].shape)), names.axis(path)
        sizes = fused[str(path[2])] if len(called) > 1 else (shape[axis],)
        for name, size in zip(called, sizes, strict=True):
            shape[axis] = size
            shapes[name] = tuple(shape)
    return Blueprint(graph, names, paths, shapes)


def assemble(where: Path, plan: Blueprint, read: Callable[[str], np.ndarray], dtype: str = "float32") -> Any:
    """The model, in `dtype`, whose parameters `read(name)` returns in the shapes of the plan. Raises ValueError for weights that are not finite."""
    flat = []
    for path, called in plan.paths.items():
        found = [np.asarray(read(name)) for name in called]
        for name, array in zip(called, found, strict=True):
            if not np.isfinite(array.astype(np.float32)).all():
                raise ValueError(f"{where}: tensor {name} holds values that are not finite")
        array = found[0] if len(found) == 1 else np.concatenate(found, axis=plan.names.axis(path))
        flat.append((path, nnx.Param(jnp.asarray(plan.names.loaded(path, array), dtype))))
    return nnx.merge(plan.graph, nnx.from_flat_state(flat))


def arrays(model: nnx.Module, fused: Mapping[str, tuple[int, ...]], names: Names) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter of a model by its names in a file, in the file's layout."""
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        called, array = names.of(path), names.saved(path, np.asarray(parameter[...]))
        borders = np.cumsum(fused[str(path[2])])[:-1] if len(called) > 1 else []
        for name, part in zip(called, np.split(array, borders, axis=names.axis(path)), strict=True):
            yield name, np.ascontiguousarray(part)


def check_shapes(where: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
    """Raises ValueError unless a file holds exactly the tensors that its configuration calls for."""
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"{where}: tensor {name} of shape {shape} is missing")
        if tuple(found[name]) != shape:
            raise ValueError(f"{where}: tensor {name} has shape {tuple(found[name])}, its configuration calls for {shape}")
    if extra := sorted(set(found) - set(expected) - set(ignored)):
        shown = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
        raise ValueError(f"{where}: {len(extra)} tensors that this architecture does not have: {shown}")


def check_layers(where: Path, layers: int, tensors: int) -> None:
    """Raises ValueError when a file cannot hold as many layers as its configuration says (before anything is laid out for them)."""
    if layers > tensors:
        raise ValueError(f"{where}: its configuration says {layers} layers, but there are only {tensors} tensors")


def check_dtype(dtype: str) -> str:
    """The name of a type for weights; raises ValueError, with the known ones, for another."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    return dtype
