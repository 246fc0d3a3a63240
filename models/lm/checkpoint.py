"""From named arrays, as files hold them, to a decoder and back.

The decoder itself is the one source of truth for which tensors there are and what their shapes must be.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder


class Names(NamedTuple):
    """What a file format calls the parts of a decoder."""

    embed: str
    norm: str
    head: str
    layer: str  # with a place for its number
    parts: Mapping[str, str]  # the parts of a layer

    def of(self, path: tuple) -> str:
        """The file's name of the parameter at `path`, such as ("layers", 3, "query", "kernel")."""
        kind = "bias" if path[-1] == "bias" else "weight"
        stem = getattr(self, path[0]) if path[0] != "layers" else self.layer.format(path[1]) + self.parts[path[2]]
        return f"{stem}.{kind}"


class Blueprint(NamedTuple):
    """A decoder's structure and, by their names in a file, its parameters: path and stored shape (linear maps as (out, in))."""

    graph: nnx.GraphDef
    paths: dict[str, tuple]
    shapes: dict[str, tuple[int, ...]]


def blueprint(config: DecoderConfig, names: Names) -> Blueprint:
    """What a file must hold for a decoder of this shape; nothing is allocated."""
    # Layers are alike: one is traced and copied, as tracing 30 takes more than a second.
    decoder = nnx.eval_shape(lambda: Decoder(dataclasses.replace(config, num_layers=1), rngs=nnx.Rngs(0)))
    decoder.config = decoder.layers[0].config = config
    decoder.layers = nnx.List([nnx.clone(decoder.layers[0]) for _ in range(config.num_layers)])
    graph, state = nnx.split(decoder)
    flat = dict(nnx.to_flat_state(state))
    paths = {names.of(path): path for path in flat}
    shapes = {name: _stored(path, flat[path].shape) for name, path in paths.items()}
    return Blueprint(graph, paths, shapes)


def assemble(where: Path, plan: Blueprint, read: Callable[[str], np.ndarray]) -> Decoder:
    """The decoder, in float32, whose parameters `read(name)` returns in the shapes of the plan. Raises ValueError for weights that are not finite."""
    flat = []
    for name, path in plan.paths.items():
        # A copy in every case: a view into a mapped file would change, or crash, with the file.
        array = np.array(_stored(path, read(name)), np.float32, order="C")
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: tensor {name} holds values that are not finite")
        flat.append((path, nnx.Param(jnp.asarray(array))))
    return nnx.merge(plan.graph, nnx.from_flat_state(flat))


def arrays(decoder: Decoder, names: Names) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter of a decoder by its name in a file, in the file's layout."""
    for path, parameter in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
        yield names.of(path), np.ascontiguousarray(_stored(path, np.asarray(parameter[...])))


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


def check_layers(where: Path, config: DecoderConfig, tensors: int) -> None:
    """Raises ValueError when a file cannot hold as many layers as its configuration says (before anything is laid out for them)."""
    if config.num_layers > tensors:
        raise ValueError(f"{where}: its configuration says {config.num_layers} layers, but there are only {tensors} tensors")


def half_from_interleaved(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * size, ...] of a query or key map reordered so that RoPE may pair i with i + size/2 in place of 2i with 2i + 1."""
    return kernel.reshape(heads, -1, 2, *kernel.shape[1:]).swapaxes(1, 2).reshape(kernel.shape)


def _stored(path: tuple, x):
    """Linear maps are (in, out) here and (out, in) in files; shapes and arrays alike."""
    if path[-1] != "kernel":
        return x
    return x[::-1] if isinstance(x, tuple) else x.T
