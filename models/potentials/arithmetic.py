"""The exact check of arithmetic done line by line, on the device: a potential for programs that write such lines, and a reward.

It agrees with `posterity.models.programs.arithmetic.check`, which says what a legal reduction is.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.language_model import Prompt
from posterity.models.lm.text import Text
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.programs.arithmetic import CHARACTERS, LARGEST, MAX_EXPRESSION

PLUS, MINUS, TIMES, OPEN, CLOSE, EQUALS, NEWLINE = (CHARACTERS.index(character) for character in "+-*()=\n")
END, OTHER, NOTHING = 17, 18, 19  # NOTHING lies beyond both ends of a line
MAX_DIGITS = len(str(LARGEST))
_FAR = LARGEST + 1


class Alphabet(NamedTuple):
    """What every token id writes: the place in `CHARACTERS` of its one character, `END`, or `OTHER`. Hashable, so it is static under jit."""

    codes: tuple[int, ...]  # by token id

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The alphabet of a tokenizer; raises ValueError unless each character of `CHARACTERS` is a token of its own and some token ends a text."""
        places = {character.encode(): code for code, character in enumerate(CHARACTERS)}
        codes = [places.get(spelled, OTHER) for spelled in tokenizer.token_bytes]
        for i in tokenizer.end_ids:
            codes[i] = END
        if missing := [character for code, character in enumerate(CHARACTERS) if code not in codes]:
            raise ValueError(f"Alphabet: the tokenizer has no token for {''.join(missing)!r}; checking arithmetic needs one for each of {CHARACTERS!r}")
        if END not in codes:
            raise ValueError("Alphabet: the tokenizer has no token that ends a text")
        return cls(tuple(codes))


class Line(NamedTuple):
    """A line and its length; codes beyond it are NOTHING."""

    codes: Array  # [MAX_EXPRESSION] int32
    length: Array  # [] int32


def line_log_potential(tokens: Array, length: Array, alphabet: Alphabet) -> Array:
    r"""0 while a text may still be right, -inf (nats) when the line that its last token ended is wrong; [] float32.

    The text is the first `length` of `tokens` [capacity] int32: a prompt up to its first `=`, then lines. A line ends
    with a line break or the end token, and is right when it is one legal reduction of the line before it (itself
    taken to be well formed: it has been checked, or is the prompt) and is a single number exactly if the text ends
    there. Between line ends the potential is 0. Works under jit and vmap.

    >>> import jax.numpy as jnp
    >>> from posterity.models.lm.load import load
    >>> tokenizer = load("abacus").tokenizer
    >>> potential = lambda text: line_log_potential(jnp.array(tokenizer.encode(text)), len(text), Alphabet.of(tokenizer)).item()
    >>> potential("1+2*3=1+6\n"), potential("1+2*3=3*3\n"), potential("1+2*3=3")
    (0.0, -inf, 0.0)
    """
    place = jnp.arange(tokens.shape[0])
    codes = jnp.where(place < length, jnp.array(alphabet.codes)[tokens], NOTHING)
    last = codes[length - 1]
    prompt_end = jnp.argmax(codes == EQUALS)
    # Where lines begin: after the prompt's `=` (any other is no separator) and after every line break.
    breaks = ((codes == NEWLINE) & (place > prompt_end)) | ((place == prompt_end) & (codes == EQUALS))
    after_start = 1 + jnp.max(jnp.where(breaks & (place < length - 1), place, -1))
    before_start = 1 + jnp.max(jnp.where(breaks & (place < after_start - 1), place, -1))
    before, after = _line(codes, before_start, after_start - 1), _line(codes, after_start, length - 1)
    right = (after_start > prompt_end) & is_reduction(before, after) & (is_number(after) == (last == END))
    return jnp.where(((last == NEWLINE) | (last == END)) & ~right, -jnp.inf, 0.0)


@struct.dataclass
class Checker:
    """The exact check as a reward: log odds of `sure` nats that a text is right so far, and of -`sure` once some line of it was wrong.

    Sure without bounds it scores 1 and 0. With `po.degraded` less sure a one is mistaken by a known amount: with noise of standard deviation s nats
    it puts a right text above a wrong one with probability Phi(sqrt(2) sure / s).

    >>> import jax, jax.numpy as jnp, posterity as po
    >>> lm = po.load("abacus")
    >>> reward = Checker(jnp.array(2.0), Alphabet.of(lm.tokenizer))
    >>> posterior = po.smc(jax.random.key(0), po.reason(lm, "7*8=", reward=reward, max_steps=2), n=4)
    >>> print(posterior.values.reward.round(2))
    [0.88 0.88 0.88 0.88]
    """

    sure: Float[Array, ""]  # nats
    alphabet: Alphabet = struct.field(pytree_node=False)

    def begin(self, prompt: Prompt, n: int, steps: int) -> Bool[Array, " n"]:
        return jnp.ones(n, bool)

    def score(self, state: Bool[Array, " n"], texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
        """Checks the line that each text has just ended."""
        potential = jax.vmap(lambda tokens, length: line_log_potential(tokens, length, self.alphabet))(texts.tokens, texts.length)
        right = state & ((potential == 0) | ~where)
        return jax.nn.sigmoid(jnp.where(right, self.sure, -self.sure)), right

    def select(self, state: Bool[Array, " n"], ancestors: Int[Array, " m"]) -> Bool[Array, " m"]:
        return state[ancestors]

    def mark(self, state: Bool[Array, " n"]) -> Bool[Array, " n"]:
        return state

    def rewind(self, state: Bool[Array, " n"], marks: Bool[Array, " n"]) -> Bool[Array, " n"]:
        return marks


def is_reduction(before: Line, after: Line) -> Array:
    """Whether `after` is the well-formed line `before` with one legal reduction done correctly; [] bool.

    All places of `before` are tried as the operator at once: each writes the line that reducing there would give.
    """
    expected, legal = jax.vmap(lambda place: _reduced(before, place))(jnp.arange(MAX_EXPRESSION))
    return jnp.any(legal & jnp.all(expected == after.codes, axis=-1))


def is_number(line: Line) -> Array:
    """Whether a line is a single number: no leading zeros, at most `LARGEST`; [] bool."""
    digits = jnp.all((line.codes < 10) | (jnp.arange(MAX_EXPRESSION) >= line.length))
    return digits & (line.length >= 1) & (line.length <= MAX_DIGITS) & ((line.codes[0] != 0) | (line.length == 1))


def _line(codes: Array, start: Array, stop: Array) -> Line:
    """The line of codes from `start` to `stop`. One that is too long is cut; as a reduction is shorter than its line, it still equals none."""
    place = start + jnp.arange(MAX_EXPRESSION)
    return Line(jnp.where(place < stop, codes.at[place].get(mode="fill", fill_value=NOTHING), NOTHING), stop - start)


def _reduced(line: Line, place: Array) -> tuple[Array, Array]:
    """The codes of the line with the operation at `place` carried out, and whether that is legal."""
    steps = jnp.arange(MAX_EXPRESSION)
    operator = line.codes[place]
    left_digits, right_digits = _run(line, place - 1, -1, _is_digit), _run(line, place + 1, 1, _is_digit)
    left, right = _number(line, place - left_digits, left_digits), _number(line, place + 1, right_digits)
    start, stop = place - left_digits, place + 1 + right_digits  # of the operation's text
    beyond_left, beyond_right = _at(line, start - 1), _at(line, stop)
    value = _apply(operator, left, right)
    legal = (
        (_precedence(operator) > 0)
        & (left_digits > 0)
        & (right_digits > 0)
        & (_precedence(beyond_left) < _precedence(operator))
        & (_precedence(beyond_right) <= _precedence(operator))
        & (value >= 0)
        & (value <= LARGEST)
    )
    shed = jnp.minimum(_run(line, start - 1, -1, lambda code: code == OPEN), _run(line, stop, 1, lambda code: code == CLOSE))
    start, stop = start - shed, stop + shed
    powers = 10 ** jnp.arange(MAX_DIGITS)
    digits = jnp.maximum(1, jnp.sum(value >= powers))
    written = value // powers[jnp.clip(digits - 1 - (steps - start), 0, MAX_DIGITS - 1)] % 10
    rest = _at(line, steps - (start + digits) + stop)
    return jnp.where(steps < start, line.codes, jnp.where(steps < start + digits, written, rest)), legal


def _at(line: Line, place: Array) -> Array:
    """The code at a place of the line; NOTHING outside it."""
    inside = (place >= 0) & (place < MAX_EXPRESSION)
    return jnp.where(inside, line.codes[jnp.clip(place, 0, MAX_EXPRESSION - 1)], NOTHING)


def _run(line: Line, place: Array, direction: int, belongs) -> Array:
    """How many codes in a row `belongs` accepts, from `place` on in a direction."""
    return jnp.argmin(belongs(_at(line, place + direction * jnp.arange(MAX_EXPRESSION + 1))))  # the last of them is NOTHING


def _number(line: Line, start: Array, digits: Array) -> Array:
    """The value of a run of digits; beyond `LARGEST` if it is longer than a number in range."""
    power = jnp.arange(MAX_DIGITS)
    codes = _at(line, start + digits - 1 - power)
    return jnp.where(digits <= MAX_DIGITS, jnp.sum(jnp.where(power < digits, codes * 10**power, 0)), _FAR)


def _apply(operator: Array, left: Array, right: Array) -> Array:
    """The result of an operation, or a value beyond `LARGEST` where it is (int32 cannot hold 99,999 squared)."""
    too_large = (right > 0) & (left > LARGEST // jnp.maximum(right, 1))
    product = jnp.where(too_large, _FAR, left * jnp.where(too_large, 0, right))
    return jnp.select([operator == PLUS, operator == MINUS, operator == TIMES], [left + right, left - right, product], _FAR)


def _precedence(code: Array) -> Array:
    return jnp.where(code == TIMES, 2, jnp.where((code == PLUS) | (code == MINUS), 1, 0))


def _is_digit(code: Array) -> Array:
    return code < 10
