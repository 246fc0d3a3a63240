"""What the functions of this package are given, checked."""

from collections.abc import Sequence, Sized

import numpy as np
from jaxtyping import ArrayLike, Bool, Float


def shares(name: str, given: Sized, log_weights: Float[ArrayLike, " n"] | None) -> Float[np.ndarray, " n"]:
    """Normalised weights [n] of the things given; equal ones when there are none."""
    n = len(given)
    if not n:
        raise ValueError(f"{name}: there is nothing to measure: no samples were given")
    if log_weights is None:
        return np.full(n, 1 / n)
    array = vector(name, "log_weights", log_weights, n)
    if (np.isnan(array) | (array == np.inf)).any():
        raise ValueError(f"{name}: log_weights must be below inf (nats; -inf is no weight), got {array[np.isnan(array) | (array == np.inf)][0]}")
    if (array == -np.inf).all():
        raise ValueError(f"{name}: all log_weights are -inf: the evidence is zero, so there is no posterior to measure")
    return np.exp(array - np.logaddexp.reduce(array))


def vector(name: str, argument: str, given: ArrayLike, n: int | None = None) -> Float[np.ndarray, " n"]:
    """The argument as an array [n] of floats."""
    array = np.asarray(given, float)
    if array.ndim != 1 or not array.size or (n is not None and array.size != n):
        wanted = "one number for each sample" if n is None else f"one number for each of {n} samples"
        raise ValueError(f"{name}: {argument} must have {wanted}, got an array of shape {array.shape}")
    return array


def confidences(name: str, given: Float[ArrayLike, " n"], right: Bool[ArrayLike, " n"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Probabilities [n] in [0, 1], and outcomes [n] as 0. and 1."""
    sure = vector(name, "confidence", given)
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"{name}: confidence must lie in [0, 1], got {sure[~((sure >= 0) & (sure <= 1))][0]}")
    return sure, outcomes(name, right, sure.size)


def outcomes(name: str, right: Bool[ArrayLike, " n"], n: int) -> Float[np.ndarray, " n"]:
    """What turned out right (1.) or wrong (0.), [n]."""
    array = vector(name, "right", right, n)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name}: right must be true or false (1 or 0), got {array[~np.isin(array, (0, 1))][0]}")
    return array


def open_level(name: str, level: float) -> float:
    """A probability strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"{name}: level must lie between 0 and 1, such as 0.95, got {level}")
    return float(level)


def same_lengths(name: str, **given: Sequence) -> None:
    """Refuses sequences that do not pair up."""
    lengths = {argument: len(values) for argument, values in given.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{name}: there must be one of each for every sample, got " + ", ".join(f"{length} {argument}" for argument, length in lengths.items())
        )
