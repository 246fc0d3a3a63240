"""Sets of texts by the strings, characters, words or lines in them, as automata over bytes. Combine them with `&`, `|` and `~`."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from posterity.models.potentials.automaton import Automaton

SPACE = frozenset(b" \t\n\r\f\v")


def contains(*texts: str) -> Automaton:
    """The texts in which each of these occurs, wherever and in whatever order.

    >>> contains("cat", "at home").accepts("the cat at home")
    True
    """
    first, *rest = (_occurs([text]) for text in _given("contains", texts))
    for other in rest:
        first &= other
    return first


def in_order(*texts: str) -> Automaton:
    """The texts in which these occur one after the other, without overlap.

    >>> in_order("ab", "ba").accepts("abba"), in_order("ab", "ba").accepts("aba")
    (True, False)
    """
    blocks, offset = [], 0
    for text in _given("in_order", texts):
        following, _ = search([text])
        blocks.append(following[:-1] + offset)  # its last state, where it is found, is the first of the next
        offset += len(following) - 1
    following = np.vstack([*blocks, np.full((1, 256), offset)])
    return Automaton.of(following.astype(np.int32), np.arange(offset + 1) == offset)


def without(*texts: str) -> Automaton:
    """The texts in which none of these occurs.

    >>> without("he", "she").accepts("hers"), without("he", "she").accepts("his")
    (False, True)
    """
    return ~_occurs(_given("without", texts))


def at_most(costs: Mapping[str, int], budget: int) -> Automaton:
    """The texts in which what occurs costs no more than a budget in all; each time counts, and so do occurrences that overlap.

    It is a set of texts as any other: under `po.constrained` no text that costs more can come out, and looking ahead sees to it that none gets
    stuck. Costs that a model gives: `safe`.

    Args:
      costs: what each of some texts costs, whole numbers from 1 on.
      budget: a whole number from 0 on.

    Raises:
      ValueError: for other numbers, or texts that are empty.

    >>> polite = at_most({"damn": 2, "hell": 1}, 2)
    >>> polite.accepts("hell, hell"), polite.accepts("damn hell")
    (True, False)
    """
    texts = _given("at_most", tuple(costs))
    if not all(isinstance(cost, int) and cost >= 1 for cost in costs.values()) or not (isinstance(budget, int) and budget >= 0):
        raise ValueError(f"at_most: costs must be whole numbers from 1 on and the budget one from 0 on, got {dict(costs)!r} and {budget!r}")
    following, _ = search(texts)
    read = {0: b""}  # by state
    for text in texts:
        state = 0
        for i, byte in enumerate(text.encode()):
            state = int(following[state, byte])
            read[state] = text.encode()[: i + 1]
    paid = np.array([sum(cost for text, cost in costs.items() if read[state].endswith(text.encode())) for state in range(len(following))])
    spent = np.arange(budget + 1)[None, :, None] + paid[following][:, None, :]  # [states, spent before, byte]
    after = np.where(spent <= budget, following[:, None, :] * (budget + 1) + spent, -1)
    return Automaton.of(after.reshape(-1, 256).astype(np.int32), np.ones(after.shape[0] * after.shape[1], bool))


def until(*texts: str) -> Automaton:
    """The texts that end as soon as one of these has occurred.

    >>> until(".", "!").accepts("No!"), until(".", "!").accepts("No! Yes.")
    (True, False)
    """
    following, found = search(_given("until", texts))
    following[found] = -1
    return Automaton.of(following, found)


def stopped(automaton: Automaton, stop: str) -> Automaton:
    r"""The texts that, cut off after the first `stop` in them, are in a set.

    >>> lines = stopped(contains("yes"), "\n")
    >>> lines.accepts("oh yes\n\nNo"), lines.accepts("oh no\nyes")
    (True, False)
    """
    ended, other = automaton & until(stop), automaton & without(stop)
    if ended.empty:
        return other
    following, last = ended.following.copy(), np.flatnonzero(ended.accepting)
    following[last] = last[:, None]  # from where it has been written on, anything may follow
    return other | Automaton(following, ended.accepting)


def of_characters(characters: str) -> Automaton:
    """The texts of these characters only.

    >>> of_characters("aé").accepts("éaé"), of_characters("aé").accepts("e")
    (True, False)
    """
    rows: list[np.ndarray] = [np.full(256, -1, np.int32)]
    for character in _given("of_characters", tuple(characters)):
        state, spelled = 0, character.encode()
        for byte in spelled[:-1]:
            if rows[state][byte] < 0:
                rows[state][byte] = len(rows)
                rows.append(np.full(256, -1, np.int32))
            state = rows[state][byte]
        rows[state][spelled[-1]] = 0
    return Automaton.of(np.stack(rows), np.arange(len(rows)) == 0)


def length(unit: Literal["bytes", "characters", "words", "lines"], least: int = 0, most: int | None = None) -> Automaton:
    r"""The texts of `least` to `most` bytes, characters, words or lines.

    A word is a run of bytes other than white space (ASCII), a line what a line break ends, or the end of the text where something follows
    the last line break. Characters are counted by their first bytes (UTF-8).

    Raises:
      ValueError: for another unit, or bounds that are no such range.

    >>> length("words", 2, 3).accepts("to be or"), length("lines", 2, 2).accepts("one\ntwo\n"), length("characters", most=2).accepts("été")
    (True, True, False)
    """
    if unit not in _BEGINS:
        raise ValueError(f"length: unit must be one of {', '.join(map(repr, _BEGINS))}, got {unit!r}")
    if not (isinstance(least, int) and least >= 0 and (most is None or (isinstance(most, int) and most >= least))):
        raise ValueError(f"length: least must be a whole number from 0 on and most another that is no smaller, got {least!r} and {most!r}")
    begins, last = _BEGINS[unit], least if most is None else most
    following = np.full((last + 1, 2, 256), -1, np.int32)
    for count in range(last + 1):
        for inside in (0, 1):
            for byte in range(256):
                more, within = begins(inside, byte)
                after = min(count + more, last) if most is None else count + more
                if after <= last:
                    following[count, inside, byte] = 2 * after + within
    accepting = np.repeat(np.arange(last + 1) >= least, 2)
    return Automaton.of(following.reshape(-1, 256), accepting)


# What a byte does, by whether the one before it lies inside a word or line: (does it begin one, does it lie in one).
_BEGINS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "bytes": lambda inside, byte: (1, 0),
    "characters": lambda inside, byte: (int(byte & 0xC0 != 0x80), 0),
    "words": lambda inside, byte: (0, 0) if byte in SPACE else (1 - inside, 1),
    "lines": lambda inside, byte: (1 - inside, int(byte != ord("\n"))),
}


def search(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where each byte leads in the search for any of some texts, [states, 256] int32, and whether one ends there [states] (Aho and Corasick 1975).

    State 0 is the beginning; of a single text, state k has read k of its bytes.
    """
    rows: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for text in texts:
        state = 0
        for byte in text.encode():
            if byte not in rows[state]:
                rows[state][byte] = len(rows)
                rows.append({})
            state = rows[state][byte]
        ends.add(state)
    following, found = np.zeros((len(rows), 256), np.int32), np.zeros(len(rows), bool)
    fail, queue = [0] * len(rows), [0]
    for state in queue:  # breadth first: what a state falls back to has been filled in
        found[state] = state in ends or (state > 0 and found[fail[state]])
        following[state] = following[fail[state]] if state else 0
        for byte, after in rows[state].items():
            fail[after] = following[state, byte] if state else 0
            following[state, byte] = after
            queue.append(after)
    return following, found


def _occurs(texts: list[str]) -> Automaton:
    following, found = search(texts)
    following[found] = np.flatnonzero(found)[:, None]
    return Automaton.of(following, found)


def _given(name: str, texts: tuple[str, ...]) -> list[str]:
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name}: give one or more texts that are not empty, got {texts!r}")
    return list(texts)
