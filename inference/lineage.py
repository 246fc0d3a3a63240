"""Genealogies: who descends from whom."""

import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Int


@struct.dataclass
class Lineage:
    """The ancestors of a particle run: before step t, particle i was copied from `ancestors[t, i]`.

    Rows in which `resampled` is False are the identity.
    """

    ancestors: Int[Array, "steps n"]  # int32
    resampled: Bool[Array, " steps"]

    def __len__(self) -> int:
        return self.ancestors.shape[0]

    @property
    def paths(self) -> Int[np.ndarray, "steps+1 n"]:
        """Each final particle's index at every time; the last row is 0..n-1."""
        ancestors = np.asarray(self.ancestors)
        path = [np.arange(ancestors.shape[1])]
        for row in ancestors[::-1]:
            path.append(row[path[-1]])
        return np.stack(path[::-1])

    @property
    def eves(self) -> Int[np.ndarray, " n"]:
        """Each final particle's ancestor at time 0."""
        return self.paths[0]

    @property
    def survivors(self) -> Int[np.ndarray, " steps+1"]:
        """How many particles of each time have descendants at the end."""
        return np.array([len(np.unique(row)) for row in self.paths])

    @property
    def coalescence(self) -> int | None:
        """The last time at which all final particles share one ancestor, or None when they never do."""
        single = np.flatnonzero(self.survivors == 1)
        return int(single[-1]) if single.size else None
