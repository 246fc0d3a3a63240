"""Automata over bytes lifted to the tokens of a vocabulary: the masks, the next states, and what can still be finished in the room left.

A token leads where its bytes lead, so a set of texts is one whatever their tokens. Tokens that lead alike from every state are one
class: tables are [states, classes], and one look-up spreads a row over the vocabulary.
"""

import functools
import hashlib
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials import disk
from posterity.models.potentials.automaton import Automaton, renumbered, useful
from posterity.models.potentials.potential import Potential, known

ENTRIES = 2**28  # states times tokens while an automaton is lifted: a gigabyte
WORTH_KEEPING = 2**20  # entries from which on the disk is faster


@struct.dataclass
class TokenAutomaton(Potential):
    """A set of texts as a potential of tokens: 0 where a text may go on, -inf where not. Its state is the automaton's, [] int32."""

    following: Int[Array | np.ndarray, "states classes"]
    log_weights: Float[Array | np.ndarray, "states classes"]  # nats
    final: Float[Array | np.ndarray, " states"]  # nats, of ending there
    class_of: Int[Array | np.ndarray, " vocab"]
    end_class: int = struct.field(pytree_node=False)

    def start(self) -> Array:
        return jnp.zeros((), jnp.int32)

    def update(self, state: Array, token: Array) -> tuple[Array, Array]:
        label = jnp.asarray(self.class_of)[token]
        return jnp.asarray(self.following)[state, label].astype(jnp.int32), jnp.asarray(self.log_weights)[state, label]

    def scores(self, state: Array) -> Array:
        return jnp.asarray(self.log_weights)[state][jnp.asarray(self.class_of)]

    def complete(self, state: Array) -> Array:
        return jnp.asarray(self.final)[state]

    def within(self, max_tokens: int, law: Literal["uniform"] | Array | np.ndarray | None = None) -> "Within":
        """These texts in at most `max_tokens` tokens, found by looking ahead.

        Args:
          max_tokens: the budget.
          law: without it, the potential-to-go only says whether a text can still be finished in the tokens that are left. With it, it is
            the probability that one whose tokens are drawn by `law` is: "uniform", or probabilities of tokens [vocab], such as
            the model's own on average.

        Raises:
          ValueError: when no text can be written in so few tokens, with the number that it takes; for a law that is none.
        """
        if max_tokens < 1:
            raise ValueError(f"within: max_tokens must be at least 1, got {max_tokens}")
        masses = None if law is None else _masses(self, law)
        log_psi = to_go(self, masses, max_tokens)
        if np.isneginf(log_psi[-1, 0]):
            needed = shortest(self)
            raise ValueError(f"within: no text that satisfies the constraint fits into {max_tokens} tokens; the shortest takes {needed}")
        return Within(self, log_psi.astype(np.float32))


@struct.dataclass
class Within(Potential):
    """A token automaton with a budget of tokens; its state is (the automaton's, tokens left)."""

    automaton: TokenAutomaton
    log_psi: Float[Array | np.ndarray, "budget states"]  # nats, by tokens left

    def start(self) -> tuple[Array, Array]:
        return self.automaton.start(), jnp.array(len(self.log_psi) - 1, jnp.int32)

    def update(self, state: tuple[Array, Array], token: Array) -> tuple[Any, Array]:
        after, log_weight = self.automaton.update(state[0], token)
        ends = jnp.asarray(self.automaton.class_of)[token] == self.automaton.end_class
        return (after, jnp.maximum(state[1] - 1, 0)), jnp.where(ends | (state[1] > 0), log_weight, -jnp.inf)

    def scores(self, state: tuple[Array, Array]) -> Array:
        return self._row(state)[jnp.asarray(self.automaton.class_of)]

    def complete(self, state: tuple[Array, Array]) -> Array:
        return self.automaton.complete(state[0])

    def to_go(self, state: tuple[Array, Array]) -> Array:
        return jnp.asarray(self.log_psi)[state[1], state[0]]

    def gains(self, state: tuple[Array, Array], end_ids: tuple[int, ...]) -> Array:
        after = jnp.asarray(self.log_psi)[jnp.maximum(state[1] - 1, 0), jnp.asarray(self.automaton.following)[state[0]]]
        after = jnp.where(self._ends, 0.0, after)
        return (self._row(state) + after - known(self.to_go(state)))[jnp.asarray(self.automaton.class_of)]

    @property
    def _ends(self) -> Array:
        return jnp.arange(self.automaton.following.shape[1]) == self.automaton.end_class

    def _row(self, state: tuple[Array, Array]) -> Array:
        return jnp.where(self._ends | (state[1] > 0), jnp.asarray(self.automaton.log_weights)[state[0]], -jnp.inf)


def over(automaton: Automaton, tokenizer: Tokenizer) -> TokenAutomaton:
    """The texts of an automaton over bytes, written in the tokens of a tokenizer.

    End tokens may come where the automaton accepts. Tokens that write nothing, such as other special ones, may not. Large tables are
    kept in the user's cache folder (`disk`).

    Raises:
      ValueError: when no text of these tokens is accepted, or the tables would be too large.

    >>> import posterity as po
    >>> lifted = po.potentials.over(po.potentials.regex("1[23]"), po.load("abacus").tokenizer)
    >>> [token for token, score in enumerate(lifted.scores(lifted.start())) if score == 0] == po.load("abacus").tokenizer.encode("1")
    True
    """
    entries = automaton.states * tokenizer.vocab_size
    if entries > ENTRIES:
        raise ValueError(f"over: {automaton.states:,} states by {tokenizer.vocab_size:,} tokens are too many for tables; at most {ENTRIES:,} entries")
    if entries < WORTH_KEEPING:
        tables = lifted(automaton, tokenizer)
    else:
        digest = hashlib.sha256()
        for part in (automaton.following.tobytes(), automaton.accepting.tobytes(), repr((tokenizer.token_bytes, tokenizer.end_ids)).encode()):
            digest.update(hashlib.sha256(part).digest())
        tables = Tables(**disk.kept("tokens", digest.hexdigest(), lambda: lifted(automaton, tokenizer)._asdict()))
    if not len(tables.accepting):
        raise ValueError("over: no text satisfies the constraint, in the tokens of this vocabulary; its evidence is zero")
    return _on_device(tables, bool(tokenizer.end_ids))


class Tables(NamedTuple):
    """A lifted automaton: the tables of the classes that write something; none of its states is in vain, and none is left where no text is accepted."""

    following: np.ndarray  # [states, classes] int32, -1 where no text goes on
    accepting: np.ndarray  # [states] bool
    class_of: np.ndarray  # [vocab] int32: end tokens are the class after the last, tokens that write nothing the one after that


def lifted(automaton: Automaton, tokenizer: Tokenizer) -> Tables:
    """Where the tokens lead from each state, by classes of tokens that lead alike.

    Beginnings that tokens share are walked once: level by level down the trie of the vocabulary, all states and tokens at a time.
    """
    levels, dead = trie(tokenizer), automaton.states
    following = np.where(automaton.following < 0, dead, automaton.following)
    step = np.vstack([following, np.full((1, 256), dead)]).T.astype(np.int32)  # [256, states and dead]
    reached = np.full((tokenizer.vocab_size, dead), dead, np.int32)
    column = np.arange(dead + 1, dtype=np.int32)[None, :]
    for level in levels:
        column = step[level.byte[:, None], column[level.parent]]
        reached[level.tokens] = column[level.nodes, :dead]
    rows, class_of = distinct(reached)
    reaching = rows.T
    following = np.where(reaching < dead, reaching, -1)
    kept = useful(following, automaton.accepting)
    ends = len(rows)
    class_of[[i for i, token in enumerate(tokenizer.token_bytes) if not token]] = ends + 1
    class_of[list(tokenizer.end_ids)] = ends
    if not kept[0]:
        kept[:] = False
    return Tables(renumbered(following, kept)[kept], automaton.accepting[kept], class_of.astype(np.int32))


class Level(NamedTuple):
    """The nodes of a trie at one depth, and the tokens that end there."""

    parent: np.ndarray  # [nodes] in the level above
    byte: np.ndarray  # [nodes]
    tokens: np.ndarray  # [ending] ids
    nodes: np.ndarray  # [ending] their nodes


@functools.lru_cache(maxsize=4)
def trie(tokenizer: Tokenizer) -> tuple[Level, ...]:
    """The trie of a vocabulary, level by level; end tokens and those that write nothing are in none. The level above the first is a root, node 0."""
    spelled = [b"" if i in tokenizer.end_ids else token for i, token in enumerate(tokenizer.token_bytes)]
    lengths = np.array([len(token) for token in spelled])
    flat = np.frombuffer(b"".join(spelled), np.uint8)
    offsets = np.cumsum(lengths) - lengths
    node, levels = np.zeros(len(spelled), np.int64), []
    for depth in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > depth)
        found, node[rows] = np.unique(node[rows] * 256 + flat[offsets[rows] + depth], return_inverse=True)
        ending = np.flatnonzero(lengths == depth + 1)
        levels.append(Level(found // 256, found % 256, ending, node[ending]))
    return tuple(levels)


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and which of them each row is. By a random sum, which is looked through: sorting whole rows takes ten times as long."""
    sums = rows.astype(np.uint64) @ np.random.default_rng(0).integers(1, 2**63, size=rows.shape[1], dtype=np.uint64)
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    if np.array_equal(rows[first][inverse], rows):
        return rows[first], inverse
    found, inverse = np.unique(rows, axis=0, return_inverse=True)
    return found, inverse.reshape(-1)


def _on_device(tables: Tables, has_end: bool) -> TokenAutomaton:
    """Tables padded to powers of two, so that constraints of similar size share compiled code."""
    states, classes = tables.following.shape
    size = _padded(states, 16), _padded(classes + 2, 64)
    following, log_weights = np.zeros(size, np.int32), np.full(size, -np.inf, np.float32)
    final = np.full(size[0], -np.inf, np.float32)
    allowed = tables.following >= 0
    following[:states, :classes] = np.where(allowed, tables.following, 0)
    log_weights[:states, :classes] = np.where(allowed, 0.0, -np.inf)
    final[:states] = np.where(tables.accepting, 0.0, -np.inf)
    # The two classes beyond the written ones are the last ones, so that their numbers too are shared.
    last, class_of = size[1] - 1, tables.class_of.copy()
    class_of[tables.class_of == classes], class_of[tables.class_of == classes + 1] = last, last - 1
    following[:, last], log_weights[:, last] = np.arange(size[0]), final if has_end else -np.inf
    return TokenAutomaton(following, log_weights, final, class_of, last)


def _padded(size: int, least: int) -> int:
    return max(least, 1 << (size - 1).bit_length())


def to_go(automaton: TokenAutomaton, masses: np.ndarray | None, budget: int) -> np.ndarray:
    """log of the mass of the ways to finish in at most so many tokens, by backward recursion, nats [budget + 1, states].

    psi_0 = final and psi_b(s) = sum_c mass_c exp(log_weight(s, c)) psi_{b-1}(s after c), where ending, at its own mass, ends.
    Without masses [classes], only whether there is a way: 0 or -inf.
    """
    log_mass = np.zeros(automaton.log_weights.shape[1]) if masses is None else np.log(masses, where=masses > 0, out=np.full(len(masses), -np.inf))
    log_weights, following = np.asarray(automaton.log_weights, float) + log_mass, np.asarray(automaton.following)
    psi = [np.asarray(automaton.final, float)]
    for _ in range(budget):
        later = psi[-1][following]
        later[:, automaton.end_class] = 0.0
        ways = log_weights + later
        best = ways.max(axis=1, keepdims=True)
        shift = np.where(np.isneginf(best), 0.0, best)
        with np.errstate(divide="ignore"):
            psi.append(np.log(np.exp(ways - shift).sum(axis=1)) + shift[:, 0] if masses is not None else np.where(np.isneginf(best[:, 0]), -np.inf, 0.0))
    return np.stack(psi)


def shortest(automaton: TokenAutomaton) -> int:
    """The number of tokens, without an end token, of the shortest text."""
    reached, tokens = np.zeros(len(automaton.final), bool), 0
    reached[0] = True
    allowed = np.asarray(automaton.log_weights) > -np.inf
    while not (reached & (np.asarray(automaton.final) > -np.inf)).any():
        after = np.asarray(automaton.following)[reached][allowed[reached]]
        reached, tokens = reached.copy(), tokens + 1
        reached[after] = True
    return tokens


def _masses(automaton: TokenAutomaton, law: Any) -> np.ndarray:
    """The probability of each class. A class that the law never draws counts as its rarest: nothing that can be finished may have none."""
    vocab = len(automaton.class_of)
    probabilities = np.full(vocab, 1 / vocab) if isinstance(law, str) and law == "uniform" else law
    if isinstance(probabilities, str) or np.shape(probabilities) != (vocab,):
        raise ValueError(f"within: law must be 'uniform' or {vocab} probabilities, got {law if isinstance(law, str) else np.shape(probabilities)!r}")
    probabilities = np.asarray(probabilities, float)
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and probabilities.sum() > 0):
        raise ValueError("within: law must be finite probabilities, not all zero")
    probabilities = np.maximum(probabilities, probabilities[probabilities > 0].min()) / probabilities.sum()
    return np.bincount(np.asarray(automaton.class_of), probabilities, minlength=automaton.log_weights.shape[1])
