"""Integer arithmetic solved one reduction a line: problems, their traces, and the exact check of every line.

A prompt is an expression of non-negative integers with `+ - *` and parentheses, closed by `=`. Its solution rewrites
the expression, one reduction a line, down to a number:

    47+6*(12-8)=        the prompt
    47+6*4              parentheses around a lone number vanish with the reduction that made it
    47+24
    71

Every value met on the way lies in 0..`LARGEST`. A reduction is *legal* when it respects precedence, associativity to
the left, and parentheses; several may be legal at once (`2*3+4*5`), and the *canonical* trace takes the leftmost.
"""

import re
import zlib
from collections.abc import Iterator
from itertools import pairwise, takewhile
from random import Random
from typing import NamedTuple

CHARACTERS = "0123456789+-*()=\n"
LARGEST = 99_999  # of every operand and every intermediate value
MAX_OPERATIONS = 5
# A reduction shortens its line, so the longest text has 33 + (31 + 30 + 29 + 28 + 27) characters, 4 line breaks and an end token.
MAX_EXPRESSION = 32  # characters
MAX_TEXT = 183  # tokens: prompt, solution and end token

_PRECEDENCE = {"+": 1, "-": 1, "*": 2}


class Level(NamedTuple):
    """A grade of difficulty."""

    operations: int
    digits: int  # of an operand, at most
    parentheses: bool
    largest: int  # no intermediate value is above it
    reach: int = 0  # some intermediate value is at least this


# Graded so that the accuracy of the shipped model falls from level to level, and is about a half on the last.
LEVELS = {
    1: Level(1, 1, False, 99),
    2: Level(2, 1, True, 999),
    3: Level(2, 2, False, 999),
    4: Level(3, 2, True, 999),
    5: Level(3, 2, True, 9_999),
    6: Level(4, 2, True, 99_999, reach=100),
}


def parse(prompt: str) -> str:
    """The expression of a prompt, without its `=`.

    Raises ValueError, saying where, for an illegal character, unbalanced parentheses, a missing operand or operator,
    parentheses around a lone number, leading zeros, a missing `=`, no operation or more than `MAX_OPERATIONS`, more
    than `MAX_EXPRESSION` characters, and a value outside 0..`LARGEST`.

    >>> parse("47+6*(12-8)=")
    '47+6*(12-8)'
    """
    for position, character in enumerate(prompt):
        if character not in CHARACTERS or character == "\n":
            raise _refusal(prompt, position, f"illegal character {character!r} (allowed are digits, + - * ( ) and a final =)")
        if character == "=" and position < len(prompt) - 1:
            raise _refusal(prompt, position, "'=' before the end")
    if not prompt.endswith("="):
        raise _refusal(prompt, len(prompt), "the final '=' is missing")
    expression = prompt[:-1]
    if len(expression) > MAX_EXPRESSION:
        raise _refusal(prompt, MAX_EXPRESSION, f"too long: {len(expression)} characters (at most {MAX_EXPRESSION})")
    parser = _Parser(prompt)
    parser.sum()
    if parser.position < len(expression):
        found = prompt[parser.position]
        raise _refusal(prompt, parser.position, "unbalanced ')'" if found == ")" else f"an operator is missing before {found!r}")
    if not 1 <= parser.operations <= MAX_OPERATIONS:
        raise _refusal(prompt, 0, f"{parser.operations} operations (from 1 to {MAX_OPERATIONS} are allowed)")
    return expression


def legal_next_lines(line: str) -> list[str]:
    """Every line one legal reduction away from a well-formed `line`, from left to right; none when it is a number."""
    return list(_reductions(line))


def is_reduction(before: str, after: str) -> bool:
    """Whether `after` is `before` with exactly one legal reduction, done correctly."""
    return after in _reductions(before)


def is_number(line: str) -> bool:
    """Whether a line is a single number: no sign, no leading zeros, at most `LARGEST`."""
    return _value(line) is not None


def trace(prompt: str) -> list[str]:
    """The canonical solution, line by line.

    >>> trace("47+6*(12-8)=")
    ['47+6*4', '47+24', '71']
    """
    line, lines = parse(prompt), []
    while not is_number(line):
        line = next(_reductions(line))
        lines.append(line)
    return lines


def check(prompt: str, text: str) -> list[bool]:
    """A verdict on every line of a finished `text`: a legal reduction of the line before it, and a number if and only if it is the last."""
    lines = [parse(prompt), *text.split("\n")]
    verdicts = [is_reduction(before, after) and not is_number(after) for before, after in pairwise(lines)]
    verdicts[-1] = is_reduction(lines[-2], lines[-1]) and is_number(lines[-1])
    return verdicts


def generate(seed: int, level: int, count: int) -> list[str]:
    """`count` prompts of a level (drawn with replacement), the same for the same seed.

    >>> generate(seed=0, level=1, count=3)  # doctest: +SKIP
    ['6+6=', '0+4=', '8*7=']
    """
    if level not in LEVELS:
        raise ValueError(f"generate: level must be one of {', '.join(map(str, LEVELS))}, got {level!r}")
    rng = Random(f"{seed}/{level}")
    return [random_prompt(rng, LEVELS[level]) for _ in range(count)]


def random_prompt(rng: Random, level: Level) -> str:
    """One prompt: a random tree of operations over random operands, redrawn until all its values are in range."""
    while True:
        tree = _random_tree(rng, level, level.operations)
        if tree is not None and tree.peak >= level.reach and len(tree.text) <= MAX_EXPRESSION:
            return tree.text + "="


def longest(level: int) -> int:
    """The most characters that an expression of a level has; with its line break a line of a right solution, which is shorter, has no more.

    >>> [longest(level) for level in LEVELS]
    [3, 7, 8, 15, 15, 20]
    """
    operations, digits, parentheses, *_ = LEVELS[level]
    # Every operation but the outermost may stand in parentheses.
    return min((operations + 1) * digits + operations + 2 * (operations - 1) * parentheses, MAX_EXPRESSION)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the eighth of all prompts (by their checksum) that is never trained on."""
    return zlib.crc32(prompt.encode()) % 8 == 0


class _Tree(NamedTuple):
    text: str
    value: int
    precedence: int  # of its last operation; 3 for a number
    peak: int  # its largest intermediate value


def _random_tree(rng: Random, level: Level, operations: int) -> _Tree | None:
    """A random expression; None when a value left the range."""
    if operations == 0:
        operand = rng.randrange(10 ** rng.randint(1, level.digits))
        return _Tree(str(operand), operand, 3, 0)
    operator = rng.choice("+-*")
    # Without parentheses the tree leans to the left, and precedence alone says what it means.
    left_operations = rng.randrange(operations) if level.parentheses else operations - 1
    left, right = _random_tree(rng, level, left_operations), _random_tree(rng, level, operations - 1 - left_operations)
    if left is None or right is None:
        return None
    precedence = _PRECEDENCE[operator]
    if not level.parentheses and left.precedence < precedence:
        return None
    value = _apply(operator, left.value, right.value)
    if not 0 <= value <= level.largest:
        return None
    left_text = _wrap(rng, level, left, left.precedence < precedence)
    right_text = _wrap(rng, level, right, right.precedence <= precedence)
    return _Tree(f"{left_text}{operator}{right_text}", value, precedence, max(value, left.peak, right.peak))


def _wrap(rng: Random, level: Level, part: _Tree, needed: bool) -> str:
    """The text of an operand, in parentheses where they are needed, and now and then where they are not."""
    return f"({part.text})" if needed or (level.parentheses and part.precedence < 3 and rng.random() < 0.1) else part.text


def _apply(operator: str, left: int, right: int) -> int:
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def _value(text: str) -> int | None:
    """The number that `text` spells, or None."""
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,4}", text) else None


def _reductions(line: str) -> Iterator[str]:
    parts = re.findall(r"[0-9]+|[^0-9]", line)
    for i in range(1, len(parts) - 1):
        operator, left, right = parts[i], _value(parts[i - 1]), _value(parts[i + 1])
        if operator not in _PRECEDENCE or left is None or right is None:
            continue
        before, after = i - 2, i + 2
        binds_left = before < 0 or _PRECEDENCE.get(parts[before], 0) < _PRECEDENCE[operator]
        binds_right = after >= len(parts) or _PRECEDENCE.get(parts[after], 0) <= _PRECEDENCE[operator]
        value = _apply(operator, left, right)
        if not (binds_left and binds_right and 0 <= value <= LARGEST):
            continue
        while before >= 0 and after < len(parts) and parts[before] == "(" and parts[after] == ")":
            before, after = before - 1, after + 1
        yield "".join([*parts[: before + 1], str(value), *parts[after:]])


class _Parser:
    """Recursive descent over a prompt: one method a rule of the grammar, each returning the value of what it read."""

    def __init__(self, prompt: str):
        self.prompt, self.position, self.operations = prompt, 0, 0

    def sum(self) -> int:
        return self.chain(self.product, "+-")

    def product(self) -> int:
        return self.chain(self.atom, "*")

    def chain(self, operand, operators: str) -> int:
        start = self.position
        value = operand()
        while self.prompt[self.position] in operators:
            operator = self.prompt[self.position]
            self.position, self.operations = self.position + 1, self.operations + 1
            value = self.in_range(_apply(operator, value, operand()), start)
        return value

    def atom(self) -> int:
        start = self.position
        if self.prompt[start] == "(":
            self.position += 1
            operations = self.operations
            value = self.sum()
            if self.prompt[self.position] != ")":
                raise _refusal(self.prompt, start, "unbalanced '('")
            if self.operations == operations:
                raise _refusal(self.prompt, start, "parentheses around a lone number")
            self.position += 1
            return value
        digits = "".join(takewhile(str.isdecimal, self.prompt[start:]))
        if not digits:
            raise _refusal(self.prompt, start, f"a number or '(' is missing before {self.prompt[start]!r}")
        if len(digits) > 1 and digits[0] == "0":
            raise _refusal(self.prompt, start, f"leading zeros in {digits}")
        self.position += len(digits)
        return self.in_range(int(digits), start)

    def in_range(self, value: int, start: int) -> int:
        if not 0 <= value <= LARGEST:
            raise _refusal(self.prompt, start, f"{self.prompt[start : self.position]} is {value:,}, outside 0..{LARGEST:,}")
        return value


def _refusal(prompt: str, position: int, what: str) -> ValueError:
    return ValueError(f"prompt {prompt!r}, position {position}: {what}")
