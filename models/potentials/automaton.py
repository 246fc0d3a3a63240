"""Finite automata over bytes: sets of texts, whatever their tokens."""

from typing import NamedTuple, Self

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order


class Automaton(NamedTuple):
    """A deterministic automaton over bytes that begins in state 0: the set of byte strings that it accepts.

    Every state can be reached, and every state can still be accepted, except where no text is: then state 0 stands alone.
    """

    following: np.ndarray  # [states, 256] int32, -1 where no text goes on
    accepting: np.ndarray  # [states] bool

    @classmethod
    def of(cls, following: np.ndarray, accepting: np.ndarray) -> Self:
        """The automaton of tables that may have states in vain."""
        kept = useful(following, accepting)
        kept[0] = True
        return cls(renumbered(following, kept)[kept], np.asarray(accepting)[kept])

    @property
    def states(self) -> int:
        return len(self.accepting)

    @property
    def empty(self) -> bool:
        """Whether it accepts no text at all."""
        return not self.accepting.any()

    def accepts(self, text: str | bytes) -> bool:
        """Whether a text is in the set.

        >>> import posterity as po
        >>> po.potentials.contains("na", "ba").accepts("banana")
        True
        """
        state = 0
        for byte in text.encode() if isinstance(text, str) else text:
            state = self.following[state, byte]
            if state < 0:
                return False
        return bool(self.accepting[state])

    def __and__(self, other: "Automaton") -> "Automaton":
        """The texts in both sets: states are the pairs that can be reached, found level by level."""
        dead, width = -1, other.states
        seen = np.array([0])
        frontier = seen
        while len(frontier):
            left, right = self.following[frontier // width], other.following[frontier % width]
            reached = np.unique(left[(left >= 0) & (right >= 0)].astype(np.int64) * width + right[(left >= 0) & (right >= 0)])
            frontier = np.setdiff1d(reached, seen, assume_unique=True)
            seen = np.concatenate([seen, frontier])
        order = np.argsort(seen)
        left, right = self.following[seen // width].astype(np.int64), other.following[seen % width]
        pairs = np.where((left >= 0) & (right >= 0), left * width + right, dead)
        places = order[np.searchsorted(seen, np.maximum(pairs, 0), sorter=order).clip(max=len(seen) - 1)]
        following = np.where(pairs >= 0, places, dead).astype(np.int32)
        return Automaton.of(following, self.accepting[seen // width] & other.accepting[seen % width])

    def __invert__(self) -> "Automaton":
        """The byte strings that are not in the set, of any bytes."""
        sink = self.states
        following = np.vstack([np.where(self.following < 0, sink, self.following), np.full((1, 256), sink)]).astype(np.int32)
        return Automaton.of(following, np.append(~self.accepting, True))

    def __or__(self, other: "Automaton") -> "Automaton":
        """The texts in either set."""
        return ~(~self & ~other)


def useful(following: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """Which states are reached from state 0 and reach an accepting one; following [states, labels], -1 for nowhere. [states] bool."""
    states = len(accepting)
    sources, labels = np.nonzero(following >= 0)
    targets = following[sources, labels]
    ends = np.flatnonzero(accepting)
    # One more node follows the accepting states: what reaches it is found walking backwards from it.
    edges = np.concatenate([sources, ends]), np.concatenate([targets, np.full(len(ends), states)])
    graph = csr_array((np.ones(len(edges[0]), np.int8), edges), shape=(states + 1, states + 1))
    found = np.zeros((2, states + 1), bool)
    found[0, breadth_first_order(graph, 0, return_predecessors=False)] = True
    found[1, breadth_first_order(graph.T.tocsr(), states, return_predecessors=False)] = True
    return (found[0] & found[1])[:states]


def renumbered(following: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Transitions among the states that are kept, by their new numbers; -1 to others."""
    numbers = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    return numbers[following].astype(np.int32)
