"""Values that know their own answer: what queries count them as, and how tables show them."""

import abc
from collections.abc import Hashable
from typing import Any

import numpy as np


class Answer(abc.ABC):
    """A value that knows its own answer, such as a text."""

    @abc.abstractmethod
    def answer(self) -> Hashable:
        """What `po.Weighted.answers` counts this value as."""


def plain(value: Any) -> Hashable:
    """A value as a hashable Python object: its own answer if it has one, else numbers and tuples of numbers."""
    if isinstance(value, Answer):
        return value.answer()
    if isinstance(value, dict):
        return tuple((name, plain(x)) for name, x in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(plain(x) for x in value)
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else tuple(plain(row) for row in array)
