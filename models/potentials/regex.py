"""Regular expressions as automata over bytes, by outlines-core."""

import hashlib
import re
from typing import Any

import numpy as np

from posterity.models.potentials import disk
from posterity.models.potentials.automaton import Automaton

END = 256  # a label that no byte has
# Written after a text, to see where the library's automaton would accept it. Its own accepting states cannot be used: from them it
# leaves out the first bytes of longer characters (0.2.14: "aé?" does not match "aé"). The last code point, which is no character.
CLOSING = "\U0010ffff"
LONG = 256  # characters from which on a pattern's automaton is kept on disk


def regex(pattern: str) -> Automaton:
    r"""The texts that a regular expression matches as a whole, in UTF-8.

    The dialect is that of Rust's `regex`: like Python's, without look-around, back-references and word boundaries; `\d`, `\w`, `.` and negated
    classes are about Unicode characters, `(?s)` lets `.` match line breaks.

    Raises:
      ValueError: for a pattern that is none, with the position of the error; that uses what automata cannot do; or that no text matches.
      ModuleNotFoundError: without outlines-core (the extra `constraints`).

    >>> regex("[a-z]+é?").accepts("café"), regex("[a-z]+é?").accepts("caféé")
    (True, False)
    """
    if len(pattern) < LONG:
        return Automaton(**_tables(pattern))
    return Automaton(**disk.kept("regex", hashlib.sha256(pattern.encode()).hexdigest(), lambda: _tables(pattern)))


def outlines_core() -> Any:
    """The library, which is no dependency of the core."""
    try:
        import outlines_core
        import outlines_core.json_schema  # pyright: ignore[reportMissingImports] - its stubs leave it out
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "regular expressions and JSON Schema need outlines-core: pip install 'posterity[constraints]'", name="outlines_core"
        ) from error
    return outlines_core


def _tables(pattern: str) -> dict[str, np.ndarray]:
    library = outlines_core()
    vocabulary = library.Vocabulary(END, {bytes([byte]): [byte] for byte in range(END)})
    try:
        index = library.Index(f"(?:{_unanchored(pattern)}){CLOSING}", vocabulary)
    except ValueError as error:
        raise ValueError(_complaint(pattern, str(error))) from error
    transitions, accepting = index.get_transitions(), index.get_final_states()
    start = index.get_initial_state()
    numbers = {state: i for i, state in enumerate(dict.fromkeys([start, *transitions, *accepting]))}
    following = np.full((len(numbers), 256), -1, np.int32)
    for state, steps in transitions.items():
        for byte, after in steps.items():
            if byte != END:
                following[numbers[state], byte] = numbers[after]
    closed = np.arange(len(numbers))
    for byte in CLOSING.encode():
        closed = np.where(closed < 0, -1, following[closed, byte])
    final = np.array([state in accepting for state in numbers])
    automaton = Automaton.of(following, (closed >= 0) & final[closed])
    if automaton.empty:
        raise ValueError(f"regex: no text matches {_short(pattern)}")
    return automaton._asdict()


def _unanchored(pattern: str) -> str:
    """The pattern without the anchors around it: it is matched as a whole anyway."""
    if _alternates(pattern):  # of which each has its own
        return pattern
    end = re.search(r"(\\*)\$$", pattern)
    if end and len(end[1]) % 2 == 0:
        pattern = pattern[:-1]
    return pattern.removeprefix("^")


def _alternates(pattern: str) -> bool:
    """Whether a | stands outside of all groups and classes."""
    depth = 0
    for part in re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|[()|]", pattern, re.DOTALL):
        if part == "|" and depth == 0:
            return True
        depth += {"(": 1, ")": -1}.get(part, 0)
    return False


def _complaint(pattern: str, reason: str) -> str:
    if "no transitions" in reason:
        return f"regex: a part of {_short(pattern)} can be matched by no text"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"regex: {error.msg} at position {error.pos} of {_short(pattern)}"
    return f"regex: {_short(pattern)} cannot be matched by an automaton: no look-around, back-references, anchors within, word boundaries ({reason})"


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
