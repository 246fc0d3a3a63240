"""Weighted sets of texts: automata and grammars in which every way to write a text has a weight, and a text the sum of its ways'."""

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int

from posterity.models.lm.tabular import grammar as normal_form
from posterity.models.lm.tabular.pcfg import Chart
from posterity.models.lm.tabular.symbols import START, log
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.potential import Potential
from posterity.models.potentials.tokens import distinct, trie

ENTRIES = 2**26  # tokens times pairs of places while an automaton is lifted: half a gigabyte
TURNS = 100_000  # of the iteration for a grammar's total weights
CONVERGED = 1e-15  # relative


@struct.dataclass
class WeightedAutomaton(Potential):
    """A weighted automaton, which need not be deterministic. Its state is how the weight so far is shared between the places, [places], of sum 1.

    What is to go is the weight of all texts that go on from here (the prefix weight), where these sums are finite.
    """

    moves: Float[Array | np.ndarray, "classes places places"]  # weight of the ways that a token leads along
    final: Float[Array | np.ndarray, " places"]  # of ending there
    rest: Float[Array | np.ndarray, " places"] | None  # of all that can follow
    class_of: Int[Array | np.ndarray, " vocab"]
    end_class: int = struct.field(pytree_node=False)

    def start(self) -> Array:
        return jnp.zeros(len(self.final)).at[0].set(1.0)

    def update(self, ways: Array, token: Array) -> tuple[Array, Array]:
        label = jnp.asarray(self.class_of)[token]
        led = ways @ jnp.asarray(self.moves)[label]
        total = jnp.sum(led)
        after = jnp.where(total > 0, led / jnp.where(total > 0, total, 1.0), ways)
        return after, jnp.where(label == self.end_class, self.complete(ways), _log(total))

    def scores(self, ways: Array) -> Array:
        return self._each(ways, jnp.ones(len(self.final)), 0.0)

    def complete(self, ways: Array) -> Array:
        return _log(ways @ self.final)

    def to_go(self, ways: Array) -> Array | None:
        return None if self.rest is None else _log(ways @ self.rest)

    def gains(self, ways: Array, end_ids: tuple[int, ...]) -> Array:
        if self.rest is None:
            return self.scores(ways)
        now = ways @ self.rest
        return self._each(ways, jnp.asarray(self.rest), _log(jnp.where(now > 0, now, 1.0)))

    def _each(self, ways: Array, ahead: Array, known: Array | float) -> Array:
        """log of the weight behind every token, with `ahead` [places] to come, less what is known."""
        led = _log(ways @ (jnp.asarray(self.moves) @ ahead).T)
        return (jnp.where(jnp.arange(len(led)) == self.end_class, self.complete(ways), led) - known)[jnp.asarray(self.class_of)]


def weighted_automaton(
    arcs: Iterable[tuple[Hashable, str, Hashable, float]], final: Mapping[Any, float], tokenizer: Tokenizer, *, start: Hashable = 0
) -> WeightedAutomaton:
    """The texts of a weighted automaton: a text weighs the sum over its ways from `start` of the products of their arcs' weights and of the last place's.

    Args:
      arcs: (place, text, next place, weight); texts are compared byte by byte, whatever the tokens.
      final: what ending in a place weighs; other places are no ends.
      tokenizer: the model's.
      start: where texts begin.

    Raises:
      ValueError: for a weight that is negative or not finite, an arc without text, when no text has a weight, or the tables would be too large.

    >>> import jax, jax.numpy as jnp, posterity as po
    >>> lm = po.tabular.ngram(["ab", "ac", "ba"], order=2)
    >>> either = weighted_automaton([(0, "a", 1, 1.0), (1, "b", 2, 0.5), (1, "c", 2, 1.5)], {2: 1.0}, lm.tokenizer)
    >>> {text: round(estimate.value, 2) for text, estimate in po.exact(po.constrained(lm, "", either, max_tokens=3)).answers().items()}
    {'ac': 0.81, 'ab': 0.19}
    """
    places: dict[Any, int] = {start: 0}
    number = lambda place: places.setdefault(place, len(places))  # noqa: E731
    steps: list[tuple[int, int, int, float]] = []
    for i, (source, text, target, weight) in enumerate(arcs):
        spelled = text.encode()
        if not spelled:
            raise ValueError(f"weighted_automaton: the arc from {source!r} to {target!r} must write a text, it writes none")
        inner = [number(source), *(number((WeightedAutomaton, i, k)) for k in range(1, len(spelled))), number(target)]
        weights = [_checked(f"of the arc {source!r}, {text!r}, {target!r}", weight)] + [1.0] * (len(spelled) - 1)
        steps += zip(inner, spelled, inner[1:], weights)
    ending = {number(place): _checked(f"of ending in {place!r}", weight) for place, weight in final.items()}
    size = len(places)
    if tokenizer.vocab_size * size**2 > ENTRIES:
        raise ValueError(f"weighted_automaton: {tokenizer.vocab_size:,} tokens by {size} x {size} places are too many for tables; at most {ENTRIES:,} entries")
    by_byte = np.zeros((256, size, size))
    for source, byte, target, weight in steps:
        by_byte[byte, source, target] += weight
    return _lifted(by_byte, np.array([ending.get(place, 0.0) for place in range(size)]), tokenizer)


def weighted_texts(weights: Mapping[str, float], tokenizer: Tokenizer) -> WeightedAutomaton:
    """Some texts, each with its weight; all others weigh nothing.

    Raises:
      ValueError: as `weighted_automaton`.

    >>> import posterity as po
    >>> lm = po.tabular.ngram(["0", "00", "1"], order=3)
    >>> digits = weighted_texts({"0": 3, "00": 2, "1": 1}, lm.tokenizer)
    >>> round(float(jnp.exp(digits.to_go(digits.start()))), 4)
    6.0
    """
    prefixes = dict.fromkeys(text[: i + 1] for text in weights for i in range(len(text)))
    return weighted_automaton([(prefix[:-1], prefix[-1], prefix, 1.0) for prefix in prefixes], dict(weights), tokenizer, start="")


class Read(NamedTuple):
    """How far a grammar has read: a chart's columns and how many of them count."""

    columns: Any
    position: Int[Array, ""]


@struct.dataclass
class WeightedGrammar(Potential):
    """A weighted context-free grammar, read byte by byte; its prefix weights are those of a chart of probabilities, times the weight of all texts."""

    chart: Chart
    log_total: Float[Array | np.ndarray, ""]  # of all texts, nats
    spelled: Int[Array | np.ndarray, "vocab longest"]  # the chart's symbols that a token writes
    lengths: Int[Array | np.ndarray, " vocab"]  # 0 for end tokens, -1 for those that the grammar never writes
    capacity: int = struct.field(pytree_node=False)  # bytes

    def start(self) -> Read:
        chart = jax.tree.map(jnp.asarray, self.chart)
        columns = jax.tree.map(lambda x: jnp.zeros((self.capacity + 2, *x.shape), x.dtype).at[0].set(x), chart.first(self.capacity + 1))
        return self._read(Read(columns, jnp.zeros((), jnp.int32)), jnp.asarray(chart.lexical.shape[1] - 1))

    def update(self, state: Read, token: Array) -> tuple[Read, Array]:
        length, row = jnp.asarray(self.lengths)[token], jnp.asarray(self.spelled)[token]
        full = state.position + length > self.capacity + 1

        def read(i, carry):
            state, gain = carry
            return self._read(state, row[i]), gain + self._law(state)[row[i]]

        after, gain = lax.fori_loop(0, jnp.where(full, 0, length), read, (state, jnp.zeros(())))
        return after, jnp.where(length == 0, self.complete(state), jnp.where(full | (length < 0), -jnp.inf, gain))

    def scores(self, state: Read) -> Array | None:
        if self.spelled.shape[1] > 1:
            return None
        law = jnp.where(state.position > self.capacity, -jnp.inf, self._law(state))[jnp.asarray(self.spelled)[:, 0]]
        lengths = jnp.asarray(self.lengths)
        return jnp.where(lengths == 0, self.complete(state), jnp.where(lengths < 0, -jnp.inf, law))

    def complete(self, state: Read) -> Array:
        return self._law(state)[-2] + self.log_total

    def to_go(self, state: Read) -> Array:
        return jnp.asarray(self.log_total)

    def gains(self, state: Read, end_ids: tuple[int, ...]) -> Array | None:
        scores = self.scores(state)
        return None if scores is None else scores - jnp.where(jnp.asarray(self.lengths) == 0, self.log_total, 0.0)

    def _law(self, state: Read) -> Array:
        return self.chart.next(jax.tree.map(lambda x: x[state.position], state.columns))

    def _read(self, state: Read, symbol: Array) -> Read:
        column = jax.tree.map(jnp.asarray, self.chart).read(state.columns, state.position, symbol)
        return Read(jax.tree.map(lambda x, new: x.at[state.position + 1].set(new), state.columns, column), state.position + 1)


def weighted_grammar(rules: Mapping[str, Mapping[str, float]], tokenizer: Tokenizer, *, start: str = "S", max_bytes: int = 64) -> WeightedGrammar:
    """The texts of a weighted context-free grammar: a text weighs the sum over its derivations of the products of their rules' weights.

    Time and memory grow with the square and with the length of the text. Where some token writes more than one byte there are no
    scores: give `po.constrained` an `ask`.

    Args:
      rules: for each nonterminal its right sides with their weights; symbols are separated by white space. What has no rules, or stands in
        double quotes, is a text; quotes are needed around white space and in front of capital letters.
      tokenizer: the model's.
      start: the nonterminal that writes texts.
      max_bytes: the longest text; longer ones weigh nothing.

    Raises:
      ValueError: for a start or another nonterminal without rules, weights that are negative, not finite, or sum to infinity over
        all texts, and when no text has a weight.

    >>> import posterity as po
    >>> lm = po.tabular.ngram(["ab", "abb", "b"], order=3)
    >>> rule = weighted_grammar({"S": {"A B": 3, "A B B": 2}, "A": {"a": 1}, "B": {"b": 1}}, lm.tokenizer)
    >>> round(float(jnp.exp(rule.to_go(rule.start()))), 4)
    5.0
    """
    if start not in rules:
        raise ValueError(f"weighted_grammar: the start symbol {start!r} has no rules; those that have are {', '.join(map(repr, rules)) or 'none'}")
    if max_bytes < 1:
        raise ValueError(f"weighted_grammar: max_bytes must be at least 1, got {max_bytes}")
    parsed = {
        left: [(_symbols(left, right, rules), _checked(f"of {left} -> {right}", weight)) for right, weight in sides.items()] for left, sides in rules.items()
    }
    totals = _totals(parsed)
    if totals[start] == 0:
        raise ValueError(f"weighted_grammar: no text that {start!r} writes has a weight")
    names = {left: f"N{i}" for i, left in enumerate(parsed)}
    # Each nonterminal's rules by their share of the weight of all that it writes are a grammar of probabilities (Nederhof and Satta 2003).
    probabilities: dict[str, dict[str, float]] = {names[left]: {} for left in parsed if totals[left] > 0}
    for left, sides in parsed.items():
        for symbols, weight in sides:
            if (share := weight * _product(symbols, totals)) > 0:
                right = " ".join(names[symbol] if is_left else _spelling(symbol) for is_left, symbol in symbols)
                into = probabilities[names[left]]
                into[right] = into.get(right, 0.0) + share / totals[left]
    table = normal_form.table(probabilities, names[start], START)
    normal = normal_form.normal(table)
    chart = Chart(log(normal.lexical), log(normal.binary), log(normal.corner), normal.pairs)
    known = {ord(word) - _FIRST: i for i, word in enumerate(table.words)}
    return WeightedGrammar(chart, np.asarray(np.log(totals[start])), *_spelled(known, tokenizer), max_bytes)


_FIRST = 0x2800  # bytes are written as characters from here on, none of which is white space or a capital letter


def _spelling(text: str) -> str:
    return " ".join(chr(_FIRST + byte) for byte in text.encode())


def _symbols(left: str, right: str, rules: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Whether each symbol of a right side is a nonterminal, and its name or text."""
    found = []
    for quoted, bare in re.findall(r'"([^"]*)"|([^\s"]+)', right):
        if bare[:1].isupper() and bare not in rules:
            raise ValueError(f"weighted_grammar: {bare!r} in {left} -> {right} has no rules; if it is a text, write it in quotes")
        found.append((bare in rules, bare or quoted))
    return found


def _totals(parsed: Mapping[str, list]) -> dict[str, float]:
    """The weight of all that each nonterminal writes: the least solution of x_A = sum over A's rules of weight times product, from below."""
    totals = dict.fromkeys(parsed, 0.0)
    for _ in range(TURNS):
        found = {left: sum((weight * _product(symbols, totals) for symbols, weight in sides), 0.0) for left, sides in parsed.items()}
        if not all(map(math.isfinite, found.values())):
            break
        if all(found[left] - totals[left] <= CONVERGED * found[left] for left in parsed):
            return found
        totals = found
    raise ValueError("weighted_grammar: the weights of all texts sum to infinity, or so slowly that it cannot be told; make recursive rules lighter")


def _product(symbols: list[tuple[bool, str]], totals: Mapping[str, float]) -> float:
    return math.prod(totals[symbol] for is_left, symbol in symbols if is_left)


def _spelled(symbols: Mapping[int, int], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Each token's bytes as a chart's symbols [vocab, longest], and how many there are [vocab]: 0 at the end, -1 for what is never written."""
    written = [i not in tokenizer.end_ids and bool(token) and all(byte in symbols for byte in token) for i, token in enumerate(tokenizer.token_bytes)]
    longest = max((len(token) for token, may in zip(tokenizer.token_bytes, written) if may), default=1)
    spelled, lengths = np.zeros((tokenizer.vocab_size, longest), np.int32), np.full(tokenizer.vocab_size, -1, np.int32)
    for i, token in enumerate(tokenizer.token_bytes):
        if written[i]:
            spelled[i, : len(token)], lengths[i] = [symbols[byte] for byte in token], len(token)
    lengths[list(tokenizer.end_ids)] = 0
    return spelled, lengths


def _lifted(by_byte: np.ndarray, final: np.ndarray, tokenizer: Tokenizer) -> WeightedAutomaton:
    """The automaton of matrices of bytes [256, places, places] over tokens, in classes of tokens that lead alike."""
    size = len(final)
    moves, above = np.zeros((tokenizer.vocab_size, size, size)), np.eye(size)[None]
    for level in trie(tokenizer):
        above = above[level.parent] @ by_byte[level.byte]
        moves[level.tokens] = above[level.nodes]
    step = by_byte.sum(axis=0)
    paths = np.eye(size, dtype=bool)
    for _ in range(size):
        paths |= paths @ (step > 0)
    useful = paths[0] & (paths @ (final > 0))
    if not useful[0]:
        raise ValueError("weighted_automaton: no text has a weight; its evidence is zero")
    step = step * np.outer(useful, useful)
    rest = normal_form.powers(step) @ (final * useful) if np.abs(np.linalg.eigvals(step)).max() < 1 else None
    rows, class_of = distinct(moves.reshape(len(moves), -1).view(np.uint64))
    end_class, class_of = len(rows), np.array(class_of, np.int32)
    class_of[list(tokenizer.end_ids)] = end_class
    tables = np.concatenate([rows.view(float).reshape(-1, size, size), np.zeros((1, size, size))])
    kind = np.dtype(jnp.zeros(()).dtype)
    return WeightedAutomaton(tables.astype(kind), final.astype(kind), None if rest is None else rest.astype(kind), class_of, end_class)


def _checked(what: str, weight: float) -> float:
    if not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"weighted: the weight {what} must be finite and not negative, got {weight}")
    return float(weight)


def _log(x: Array) -> Array:
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)
