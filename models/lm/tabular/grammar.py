"""Probabilistic grammars brought into a form that can be read from left to right: binary and lexical rules, and their left corners.

Empty and unit productions and left recursion go by linear algebra: what is left writes every text with the same probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posterity.models.lm.tabular.symbols import SUM_TOLERANCE

LOST = 1e-6  # probability of never ending that is put down to rounding (Newton's method has half its digits where a grammar is critical)

Rules = Mapping[str, Mapping[str, float]]  # nonterminal: {right side, symbols separated by white space: probability}


class Table(NamedTuple):
    """A grammar's rules by kind, nonterminals and words by number; nonterminal 0 is where texts begin."""

    nonterminals: list[str]  # their names; empty for those that no rule given names
    words: list[str]
    empty: np.ndarray  # [N] probability of A -> (nothing)
    unit: np.ndarray  # [N, N] of A -> B
    lexical: np.ndarray  # [N, words] of A -> word
    binary: np.ndarray  # [N, pairs] of A -> B C
    pairs: np.ndarray  # [pairs, 2] the different B C


class Normal(NamedTuple):
    """A grammar in Chomsky normal form, with its left corners."""

    lexical: np.ndarray  # [N, words]
    binary: np.ndarray  # [N, pairs]
    pairs: np.ndarray  # [pairs, 2]
    corner: np.ndarray  # [N, N] how many B there are, on average, at the left edge below A, A itself included


def table(rules: Rules, start: str, opening: str) -> Table:
    """The rules, long ones cut into pairs and words in them raised to nonterminals; texts are `opening` and what `start` writes.

    A symbol with rules is a nonterminal. Every other one is a word, but one that begins with a capital letter must stand in
    quotes, so that a nonterminal that was forgotten or misspelled is not taken for a word.

    Raises:
      ValueError: for a start without rules, an unknown nonterminal, probabilities out of range or that do not sum to one,
        and for a grammar without words.
    """
    if start not in rules:
        raise ValueError(f"pcfg: the start symbol {start!r} has no rules; those that have are {', '.join(map(repr, rules)) or 'none'}")
    nonterminals: dict[Any, int] = {}  # by name; by the words or symbols that they write, as tuples; () for texts and None for the start
    words: dict[str, int] = {}
    found: dict[tuple, float] = {}

    def number(key: Any) -> int:
        return nonterminals.setdefault(key, len(nonterminals))

    def add(left: int, kind: str, right: Any, probability: float) -> None:
        found[left, kind, right] = found.get((left, kind, right), 0.0) + probability

    def word(symbol: str) -> int:
        return words.setdefault(symbol, len(words))

    def part(symbol: str) -> int:
        """The nonterminal for a symbol in a right side of several."""
        if symbol in rules:
            return number(symbol)
        if (symbol,) not in nonterminals:
            add(number((symbol,)), "lexical", word(_unquoted(symbol)), 1.0)
        return number((symbol,))

    def rest(symbols: tuple[str, ...]) -> int:
        """The nonterminal that writes these symbols and nothing else."""
        if len(symbols) == 1:
            return part(symbols[0])
        if symbols not in nonterminals:
            add(number(symbols), "binary", (part(symbols[0]), rest(symbols[1:])), 1.0)
        return number(symbols)

    texts, begin = number(()), number(None)
    for left, right_sides in rules.items():
        for right, probability in _checked(left, right_sides, rules).items():
            symbols = tuple(right.split())
            if not symbols:
                add(number(left), "empty", None, probability)
            elif len(symbols) == 1 and symbols[0] in rules:
                add(number(left), "unit", number(symbols[0]), probability)
            elif len(symbols) == 1:
                add(number(left), "lexical", word(_unquoted(symbols[0])), probability)
            else:
                add(number(left), "binary", (part(symbols[0]), rest(symbols[1:])), probability)
    if not words:
        raise ValueError("pcfg: the grammar writes no words at all")
    seen = list(words)
    add(begin, "lexical", word(opening), 1.0)
    add(texts, "binary", (begin, number(start)), 1.0)
    return _laid_out([key if key in rules else "" for key in nonterminals], seen, found)


def normal(grammar: Table) -> Normal:
    """The same law of texts without empty and unit productions.

    Raises:
      ValueError: when derivations never end with some probability; the law of texts then would not sum to one.
    """
    ending = least_solution(grammar, grammar.lexical.sum(axis=1) + grammar.empty)
    if np.any(ending < 1 - LOST):
        probability, worst = min((ending[i], name) for i, name in enumerate(grammar.nonterminals) if name)
        raise ValueError(
            f"pcfg: the grammar loses probability to derivations that never end: those from {worst} end with probability {probability:.6g}; "
            "make recursive rules less probable"
        )
    nothing = np.minimum(least_solution(grammar, grammar.empty), 1.0)
    left, right = grammar.pairs.T
    writing = np.any(grammar.lexical > 0, axis=1)
    for _ in writing:
        writing = writing | (grammar.unit @ writing + grammar.binary @ (writing[left] | writing[right]) > 0)
    # From here on nonterminals are conditioned on writing something (Chi 1999); those that never do have no rules.
    something = np.where(writing, 1 - nothing, 0.0)
    unit = grammar.unit.copy()
    for pair, (b, c) in enumerate(grammar.pairs):
        unit[:, b] += grammar.binary[:, pair] * nothing[c]
        unit[:, c] += grammar.binary[:, pair] * nothing[b]
    share = np.divide(1.0, something, out=np.zeros_like(something), where=something > 0)[:, None]
    unit, lexical, binary = share * unit * something, share * grammar.lexical, share * grammar.binary * something[left] * something[right]
    chains = powers(unit)
    lexical, binary = chains @ lexical, chains @ binary
    below = np.zeros_like(unit)
    np.add.at(below.T, left, binary.T)
    return Normal(lexical, binary, grammar.pairs, powers(below))


def powers(step: np.ndarray) -> np.ndarray:
    """I + step + step^2 + ..., of a matrix whose powers vanish; zero exactly where no path leads."""
    paths = np.eye(len(step), dtype=bool)
    for _ in step:
        paths = paths | (paths @ step > 0)
    return np.where(paths, np.maximum(np.linalg.inv(np.eye(len(step)) - step), 0.0), 0.0)


def least_solution(grammar: Table, constant: np.ndarray) -> np.ndarray:
    """The least x >= 0 with x_A = constant_A + sum_B unit_AB x_B + sum_BC binary_ABC x_B x_C: the probability that a derivation ends in what `constant` says.

    By Newton's method from zero, which rises to it (Etessami and Yannakakis 2009), over the nonterminals where it is not zero.
    """
    left, right = grammar.pairs.T
    positive = constant > 0
    for _ in constant:
        positive = positive | (grammar.unit @ positive + grammar.binary @ (positive[left] & positive[right]) > 0)
    x, chosen = np.zeros_like(constant), np.flatnonzero(positive)
    for _ in range(100):
        residual = constant + grammar.unit @ x + grammar.binary @ (x[left] * x[right]) - x
        if np.all(residual[chosen] <= 1e-16):
            break
        slope = grammar.unit.copy()
        np.add.at(slope.T, left, (grammar.binary * x[right]).T)
        np.add.at(slope.T, right, (grammar.binary * x[left]).T)
        x[chosen] += np.linalg.lstsq(np.eye(len(chosen)) - slope[np.ix_(chosen, chosen)], residual[chosen])[0]  # singular where a grammar is critical
    return x


def _checked(left: str, right_sides: Mapping[str, float], rules: Rules) -> dict[str, float]:
    """A nonterminal's right sides with probabilities that sum to one."""
    if not isinstance(right_sides, Mapping) or not all(isinstance(right, str) for right in right_sides):
        raise ValueError(f"pcfg: the rules of {left} must be texts with their probabilities, such as {{'a S b': 0.4, 'c': 0.6}}; got {right_sides!r}")
    for right, probability in right_sides.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"pcfg: the probability of {left} -> {right} must lie in [0, 1], got {probability}")
        for symbol in right.split():
            if symbol not in rules and symbol[0].isupper():
                raise ValueError(f"pcfg: {symbol!r} in {left} -> {right} has no rules; if it is a word, write it in quotes")
    total = sum(right_sides.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"pcfg: the probabilities of the rules of {left} must sum to one, they sum to {total:.6g}")
    return {right: probability / total for right, probability in right_sides.items() if probability > 0}


def _laid_out(nonterminals: Sequence[str], words: Sequence[str], found: Mapping[tuple, float]) -> Table:
    pairs = {right: i for i, right in enumerate(dict.fromkeys(right for _, kind, right in found if kind == "binary"))}
    n = len(nonterminals)
    empty, unit, lexical, binary = np.zeros(n), np.zeros((n, n)), np.zeros((n, len(words) + 2)), np.zeros((n, len(pairs)))
    for (left, kind, right), probability in found.items():
        if kind == "empty":
            empty[left] = probability
        elif kind == "unit":
            unit[left, right] = probability
        elif kind == "lexical":
            # After the words come the end, which no rule writes, and the start.
            lexical[left, right if right < len(words) else len(words) + 1] = probability
        else:
            binary[left, pairs[right]] = probability
    return Table(list(nonterminals), list(words), empty, unit, lexical, binary, np.array(list(pairs), np.int32).reshape(-1, 2))


def _unquoted(symbol: str) -> str:
    quoted = len(symbol) > 2 and symbol[0] == symbol[-1] and symbol[0] in "'\""
    return symbol[1:-1] if quoted else symbol
