"""Tables kept in the user's cache folder. A damaged file is made anew, and writers do not meet: each renames a file of its own into place."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

VERSION = 1  # of what the tables mean: a change makes all files anew
DIGEST = 32  # bytes of SHA-256 before the tables


def folder() -> Path:
    """`POSTERITY_CACHE`, or `posterity` in `XDG_CACHE_HOME`, or in `~/.cache`."""
    if chosen := os.environ.get("POSTERITY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posterity"


def kept(kind: str, key: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `make()`, from the file of this kind and key (a hash of all that they depend on) where it is whole.

    A folder that cannot be written to is no error: then nothing is kept.
    """
    path = folder() / f"{kind}-{VERSION}-{key}.npz"
    found = _read(path)
    if found is None:
        found = dict(make())
        _write(path, found)
    return found


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        return None
    with np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False) as arrays:
        return dict(arrays)


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)
    except OSError:
        return
