"""The config.json of a Hugging Face directory, read by type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from posterity.models.lm.config import Activation

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


class Settings(NamedTuple):
    """A config.json, read by type. Each reader raises ValueError, naming file and key, for a value that is missing or of another type."""

    where: Path
    values: Mapping[str, Any]

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{key} must be a whole number, got {value!r}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or not value > 0:
            raise self.error(f"{key} must be a positive number, got {value!r}")
        return float(value)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A positive number, or None where the file says null."""
        return None if self.values.get(key, default) is None else self.real(key, default)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, got {value!r}")
        return value

    def activation(self, key: str, default: str) -> Activation:
        value = self._get(key, default)
        if value not in ACTIVATIONS:
            raise self.error(f"{key} = {value} is not supported; supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier in order: `id2label`, or, where a file has none, as many as `num_labels` says (two where it does not say)."""
        found = self.values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(self.whole("num_labels", 2))}
        if not isinstance(found, dict) or set(found) != {str(i) for i in range(len(found))}:
            raise self.error(f"id2label must name the labels 0, 1, ..., got {found!r}")
        return tuple(str(found[str(i)]) for i in range(len(found)))

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.whole("n_layer" if "n_layer" in self.values else "num_hidden_layers")

    def only(self, key: str, allowed: Any) -> None:
        """Raises ValueError unless the setting, where there is one, is the one that the decoder can do."""
        if (value := self._get(key, allowed)) != allowed:
            raise self.error(f"{key} = {value} is not supported")

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.where}: {reason}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value
