"""Tasks: problems whose answers can be scored, by which strategies are measured."""

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.language_model import Prompt
from posterity.models.lm.text import Text
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.programs import arithmetic

DIFFICULTIES = {"easy": 4, "medium": 5, "hard": 6}  # levels of `arithmetic`, of which the shipped model solves .89, .71 and .47 with one sample
KNOWN = ("abacus:easy", "abacus:medium", "abacus:hard", "abacus:LEVEL", "reasoning-gym:NAME", "reasoning-gym:NAME,OPTION=VALUE,...")
PATIENCE = 1_000  # draws for each problem that is wanted: levels with few problems run out of new ones
INSTRUCTION = "Reply with the answer only."
SHORT = 32  # tokens: an answer without its reasoning


class Problem(NamedTuple):
    """One problem."""

    question: str
    score: Callable[[str], float]  # of an answer, in [0, 1]: 1 is right


class Task(NamedTuple):
    """Problems of one kind, the same for the same name, count and seed."""

    name: str
    problems: tuple[Problem, ...]
    chat: bool  # whether the question is put to a chat model as a user's message, or is itself the beginning of the text
    extract: Callable[[str], str]  # the answer in a generated text
    steps: int  # lines that suffice for a right text
    step_tokens: int  # tokens that suffice for a line

    def prompts(self, tokenizer: Tokenizer) -> list[str]:
        """What a model reads of each problem.

        Raises:
          ValueError: when the task is for chat models and the tokenizer has no chat template.
        """
        if not self.chat:
            return [problem.question for problem in self.problems]
        return [tokenizer.chat([{"role": "user", "content": f"{problem.question}\n{INSTRUCTION}"}]) for problem in self.problems]


def task(name: str, *, count: int, seed: int = 0) -> Task:
    """`count` problems of the task that `name` names.

    - `abacus:easy`, `abacus:medium`, `abacus:hard`, or `abacus:1` to `abacus:6`: distinct problems of a level of `arithmetic`, none of them
      ever trained on (`arithmetic.is_held_out`).
    - `reasoning-gym:NAME`: of the package `reasoning-gym`, scored by its own verifier; with options of how problems are made there, such as
      `reasoning-gym:chain_sum,max_terms=2,max_digits=1`, if they are to be easier.

    Raises:
      ImportError: for reasoning-gym without the extra `gym`.
      ValueError: for an unknown name (with the known ones), a count below 1, or more problems than there are.

    >>> found = task("abacus:hard", count=2)
    >>> [len(found.problems), found.problems[0].score("wrong")]
    [2, 0.0]
    """
    if count < 1:
        raise ValueError(f"task: count must be at least 1, got {count}")
    kind, _, which = name.partition(":")
    if kind == "abacus" and which in (*DIFFICULTIES, *map(str, arithmetic.LEVELS)):
        return _abacus(name, DIFFICULTIES.get(which) or int(which), count, seed)
    if kind == "reasoning-gym" and which:
        return _reasoning_gym(name, which, count, seed)
    raise ValueError(f"task: no task is called {name!r}; known are {', '.join(KNOWN)}")


def last_line(text: str) -> str:
    """The answer of a text that works line by line."""
    return text.rstrip("\n").rpartition("\n")[2]


def short_answer(text: str) -> str:
    """The answer of a text that says it in a sentence: its last number, or without any its first word.

    >>> short_answer("Yes, it does."), short_answer("The GCD of 12 and 1,008 is 12.")
    ('Yes', '12')
    """
    numbers = re.findall(r"-?\d(?:[\d,]*\d)?(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else next(iter(re.findall(r"[\w'-]+", text)), "")


def _abacus(name: str, level: int, count: int, seed: int) -> Task:
    rng, prompts = Random(f"{name}/{seed}"), {}
    for _ in range(PATIENCE * count):
        prompt = arithmetic.random_prompt(rng, arithmetic.LEVELS[level])
        if arithmetic.is_held_out(prompt):
            prompts[prompt] = None
        if len(prompts) == count:
            break
    else:
        raise ValueError(f"task: {name} has no {count} problems that were never trained on; it has about {len(prompts)}")
    problems = tuple(Problem(prompt, _Equals(arithmetic.trace(prompt)[-1])) for prompt in prompts)
    # Every reduction is a line, and shorter than the prompt; of all prompts of the level, so that what is compiled does not depend on which were drawn.
    return Task(name, problems, chat=False, extract=last_line, steps=arithmetic.LEVELS[level].operations, step_tokens=arithmetic.longest(level))


def _reasoning_gym(name: str, which: str, count: int, seed: int) -> Task:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ImportError(f"task: {name} needs the package reasoning-gym: pip install 'posterity[gym]'")
    import reasoning_gym  # pyright: ignore[reportMissingImports] - optional, and slow to import

    which, *given = which.split(",")
    options = dict(_option(name, one) for one in given)
    try:
        dataset = reasoning_gym.create_dataset(which, size=count, seed=seed, **options)
    except (ValueError, TypeError, AssertionError) as error:  # an unknown name, an unknown option, a value out of range
        raise ValueError(f"task: {name} cannot be made: {error}") from error
    problems = tuple(Problem(entry["question"], _Verified(dataset, entry)) for entry in dataset)
    return Task(name, problems, chat=True, extract=short_answer, steps=1, step_tokens=SHORT)


def _option(name: str, given: str) -> tuple[str, Any]:
    """A name and a value: as JSON has it, or a word."""
    option, equals, value = given.partition("=")
    if not (option and equals and value):
        raise ValueError(f"task: options of {name} are OPTION=VALUE, got {given!r}")
    try:
        return option, json.loads(value)
    except json.JSONDecodeError:
        return option, value


@struct.dataclass
class Verifier:
    """A task's own score of the answer as the reward of a text that has ended (and 1/2 before): asked on the host, also from compiled code."""

    number: Int[Array, ""]  # of the problem
    score_of: Callable[[int, list[int]], float] = struct.field(pytree_node=False)  # a problem's number, generated tokens; see `verifier`

    def begin(self, prompt: Prompt, n: int, steps: int) -> tuple:
        return ()

    def score(self, state: tuple, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], tuple]:
        def ask(number: np.ndarray, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
            each = zip(*(x.ravel() for x in np.broadcast_arrays(number, start, length)), tokens.reshape(-1, tokens.shape[-1]), strict=True)
            scores = [self.score_of(int(number), row[start:length].tolist()) for number, start, length, row in each]
            return np.array(scores, np.float32).reshape(length.shape)

        numbers = jnp.broadcast_to(self.number, texts.length.shape)
        result = jax.ShapeDtypeStruct(texts.length.shape, jnp.float32)
        scores = jax.pure_callback(ask, result, numbers, texts.tokens, texts.prompt_length, texts.length, vmap_method="broadcast_all")
        return jnp.where(texts.ended, scores, 0.5), state

    def select(self, state: tuple, ancestors: Int[Array, " m"]) -> tuple:
        return state


def verifier(task: Task, tokenizer: Tokenizer) -> Callable[[int, list[int]], float]:
    """The score of generated tokens as an answer to a problem, by its number, at most 1 and at least 0; asked once for each answer."""

    @functools.lru_cache(maxsize=100_000)
    def score(number: int, answer: str) -> float:
        return min(max(task.problems[number].score(answer), 0.0), 1.0)

    return lambda number, tokens: score(number, task.extract(tokenizer.decode(tokens)))


class _Equals(NamedTuple):
    answer: str

    def __call__(self, given: str) -> float:
        return float(given == self.answer)


class _Verified(NamedTuple):
    dataset: Any  # of reasoning-gym
    entry: dict[str, Any]

    def __call__(self, given: str) -> float:
        return float(self.dataset.score_answer(answer=given, entry=self.entry))
