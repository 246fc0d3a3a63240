"""What the reward model of Abacus learns from and is measured on: texts that Abacus writes, and of each of their beginnings whether it is right."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from posterity.models.lm.decoder import Decoder
from posterity.models.programs.arithmetic import CHARACTERS, is_number, legal_next_lines, parse
from posterity.models.weights.evaluate_abacus import continued, longest_text

END = len(CHARACTERS)  # the id of the end token; a character's id is its place in CHARACTERS
WIDTHS = (24, 32, 48, 64, 96, 184)  # texts are sampled and batched with others of about their length
ROWS = 256  # texts sampled together
STEP_END = 4.0  # how much more the end of a step counts in training, as the reward is read there, than a token within one


class Rollouts(NamedTuple):
    """Texts of Abacus, and of each of their beginnings whether it is right."""

    tokens: np.ndarray  # [texts, widest], int32, end tokens beyond
    right: np.ndarray  # [texts, widest]: whether the text up to and with this token is the beginning of a right solution
    counts: np.ndarray  # [texts, widest]: 0 for the prompt and beyond the end, STEP_END at the end of a step, else 1
    lengths: np.ndarray  # [texts]


def sampled(key: Array, abacus: Decoder, prompts: Sequence[str]) -> list[list[int]]:
    """One solution of each prompt at temperature 1: its tokens up to the end token, or to where no right solution could still be going on."""
    solutions: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: longest_text(prompts[i]))
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        forced = np.full((ROWS, width_of(longest_text(prompts[rows[-1]]))), -1, np.int32)  # fewer prompts than rows: the last rows are thrown away
        for row, i in zip(forced, rows, strict=False):
            row[: len(prompts[i])] = [CHARACTERS.index(character) for character in prompts[i]]
        drawn = np.asarray(continued(*nnx.split(abacus), jax.random.fold_in(key, first), jnp.asarray(forced))).tolist()
        for row, i in zip(drawn, rows, strict=False):
            own = row[len(prompts[i]) : longest_text(prompts[i])]
            solutions[i] = own[: own.index(END) + 1] if END in own else own
    return solutions


def still_right(prompt: str, tokens: Sequence[int]) -> list[bool]:
    """Of every beginning of a solution, of 1, 2, ... tokens: whether it is the beginning of a right solution.

    At the end of a line that is what `arithmetic.check` says of the lines so far. Within one it says whether a legal line begins like that.
    """
    line, following, right, verdicts = "", legal_next_lines(parse(prompt)), True, []
    for token in tokens:
        character = "" if token == END else CHARACTERS[token]
        if character in ("", "\n"):
            right = right and line in following and is_number(line) == (token == END)
            line, following = "", legal_next_lines(line) if right else []
        else:
            line += character
            right = right and any(legal.startswith(line) for legal in following)
        verdicts.append(right)
    return verdicts


def labelled(texts: Sequence[tuple[str, Sequence[int]]]) -> Rollouts:
    """Prompts and solutions, with their labels."""
    lengths = np.array([len(prompt) + len(solution) for prompt, solution in texts])
    shape = len(texts), width_of(int(lengths.max()))
    tokens, right, counts = np.full(shape, END, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32)
    for row, (prompt, solution) in enumerate(texts):
        own = slice(len(prompt), len(prompt) + len(solution))
        tokens[row, : own.start] = [CHARACTERS.index(character) for character in prompt]
        tokens[row, own] = solution
        right[row, own] = still_right(prompt, solution)
        counts[row, own] = np.where(step_ends(tokens[row, own]), STEP_END, 1.0)
    return Rollouts(tokens, right, counts, lengths)


def step_ends(tokens: np.ndarray) -> np.ndarray:
    """Which tokens end a step: line breaks and end tokens."""
    return (tokens == END) | (tokens == CHARACTERS.index("\n"))


def width_of(length: int) -> int:
    """The width that texts of so many tokens are padded to."""
    return next(width for width in WIDTHS if width >= length)
