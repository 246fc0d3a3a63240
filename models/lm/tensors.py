"""The tensors of a directory's safetensors files, one file or shards."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open


class Place(NamedTuple):
    """Where a tensor lies."""

    file: Path
    handle: Any  # of the open file
    name: str  # there


class Tensors(NamedTuple):
    """Tensors by name; nothing is read until it is asked for."""

    places: dict[str, Place]

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Those of all files of a directory.

        Raises:
          FileNotFoundError: when a file is missing.
          ValueError: for a damaged file, and for a tensor that is in two.
        """
        places: dict[str, Place] = {}
        for file in _files(directory):
            try:
                handle = safe_open(file, framework="flax")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file}: truncated or not a safetensors file ({error})") from error
            names = handle.keys()
            for name in names:
                if name in places:
                    raise ValueError(f"{file}: tensor {name} is also in {places[name].file.name}")
                places[name] = Place(file, handle, name)
        return cls(places)

    def with_prefix(self, prefix: str, kept: Collection[str]) -> Self:
        """With a prefix before every name but those `kept`, unless some tensor has it: old files hold a body without the model around it."""
        if any(name.startswith(prefix) for name in self.places):
            return self
        return self._replace(places={name if name in kept else prefix + name: place for name, place in self.places.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(place.handle.get_slice(place.name).get_shape()) for name, place in self.places.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor as it is stored. Raises ValueError when it is not of a floating-point type."""
        place = self.places[name]
        array = place.handle.get_tensor(place.name)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{place.file}: tensor {place.name} is of type {array.dtype}; supported are floating-point types")
        return array


def _files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    files = [directory / file for file in weight_files(index)] if index.is_file() else [single]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; weights must be model.safetensors, or shards with model.safetensors.index.json")
    return files


def weight_files(index: Path) -> list[str]:
    """The names of the shards that an index of weights lists. Raises ValueError for one that is damaged, or leads out of its directory."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not an index of weights ({type(error).__name__}: {error})") from error
    if not isinstance(named, dict) or not all(isinstance(file, str) and Path(file).name == file for file in named.values()):
        raise ValueError(f"{index}: weight_map must map tensor names to files of this directory")
    return sorted(set(named.values()))
