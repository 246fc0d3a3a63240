"""The key-value pairs of a GGUF file, read by type."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf.gguf_reader import ReaderField


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The pairs of one file. Each reader raises ValueError, naming file and key, for a missing or other value."""

    path: Path
    fields: Mapping[str, ReaderField]

    def text(self, key: str, default: str | None = None) -> str:
        return self._read(key, default, str, "text")

    def whole(self, key: str, default: int | None = None) -> int:
        return self._read(key, default, int, "a whole number")

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._read(key, default, (int, float), "a number"))

    def flag(self, key: str, default: bool) -> bool:
        return self._read(key, default, bool, "true or false")

    def many(self, key: str, kind: type) -> list:
        values = self._read(key, None, list, "a list")
        if not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{self.path}: {key} must be a list of {kind.__name__}")
        return values

    def _read(self, key: str, default: Any, kind: type | tuple, said: str) -> Any:
        field = self.fields.get(key)
        if field is None and default is None:
            raise ValueError(f"{self.path}: metadata {key} is missing")
        try:
            value = default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: metadata {key} is not valid UTF-8") from error
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.path}: metadata {key} must be {said}, got {value!r}")
        return value
