"""Verifiers: Python functions of whole texts as rewards, asked on the host, many at a time, with time limits."""

import functools
import importlib
import math
import queue
import threading
from collections.abc import Callable
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
from posterity.models.potentials.judge import WORKERS, Function
from posterity.models.programs.extract import canonical, extractor


@struct.dataclass
class Verifier:
    """A Python function of whole texts as a reward. See `verifier`."""

    function: "Guarded" = struct.field(pytree_node=False)

    def begin(self, prompt: Prompt, n: int, steps: int) -> tuple:
        return ()

    def score(self, state: tuple, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], tuple]:
        last = texts.tokens.shape[1] - 1
        place = jnp.minimum(texts.prompt_length[:, None] + jnp.arange(last + 1), last)
        own = jnp.take_along_axis(texts.tokens, place, axis=1)
        whole = where & texts.ended if self.function.unfinished is not None else where
        host = functools.partial(self.function, texts.tokenizer)
        score = jax.pure_callback(host, jax.ShapeDtypeStruct(where.shape, jnp.float32), own, texts.generated, whole, where, vmap_method="broadcast_all")
        return score.astype(float), state

    def select(self, state: tuple, ancestors: Int[Array, " m"]) -> tuple:
        return state

    @property
    def failures(self) -> list[tuple[str, Exception]]:
        """The texts for which the function raised or took too long, with what was raised; those that got the score `failed`."""
        return self.function.failures


class Guarded:
    """A function of texts with what happens when it fails. Compared by identity, as it keeps answers and failures."""

    def __init__(self, function: Callable[[str], float], seconds: float, workers: int, failed: float | None, unfinished: float | None):
        self.function, self.seconds, self.workers, self.failed, self.unfinished = function, seconds, workers, failed, unfinished
        self.failures: list[tuple[str, Exception]] = []
        self._asked: dict[Tokenizer, Function] = {}

    def __call__(self, tokenizer: Tokenizer, tokens: Any, lengths: Any, whole: Any, where: Any) -> np.ndarray:
        """The scores of the texts that are `whole`; `unfinished` of the others [...] float32."""
        asked = self._asked.setdefault(tokenizer, Function(self.score, tokenizer, self.workers, 2.0 * self.seconds + 1.0))
        whole = np.asarray(whole)
        found = np.full(whole.shape, 0.0 if self.unfinished is None else self.unfinished, np.float32)
        if whole.any():
            found[whole] = asked(np.asarray(tokens)[whole], np.asarray(lengths)[whole], np.ones(whole.sum(), bool))
        return found

    def score(self, text: str, whole: bool = True) -> float:
        """What the function says of a text, within its time."""
        try:
            value = float(self._in_time(text))
            if not 0 <= value <= 1:
                raise ValueError(f"a score must lie in [0, 1], got {value}")
        except Exception as error:
            if self.failed is None:
                raise
            self.failures.append((text, error))
            return self.failed
        return value

    def _in_time(self, text: str) -> Any:
        answer: queue.SimpleQueue = queue.SimpleQueue()

        def work() -> None:
            try:
                answer.put((self.function(text), None))
            except Exception as error:
                answer.put((None, error))

        threading.Thread(target=work, daemon=True).start()  # a daemon: one that hangs must not keep the process from ending
        try:
            value, error = answer.get(timeout=self.seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {self.seconds:g} seconds") from None
        if error is not None:
            raise error
        return value


def verifier(
    function: Callable[[str], float], *, seconds: float = 10.0, workers: int = WORKERS, failed: float | None = None, unfinished: float | None = 1.0
) -> Verifier:
    """A Python function as a reward: generated text -> score in [0, 1] (True and False count as 1 and 0).

    It is asked once a text, in threads. For `reason`, and by `at_end` for `constrained`.

    Args:
      function: of the text that follows the prompt; the same answer for the same text.
      seconds: what a call may take. One that hangs is left behind in its thread.
      workers: calls under way at once.
      failed: the score of a text for which the function raises, takes too long or returns no score; without it that ends the run, with
        an error that names the text. `.failures` lists them.
      unfinished: the score of texts that have not ended (1: what is not known yet weighs nothing); None asks about these too.

    Raises:
      TypeError: when `function` cannot be called.
      ValueError: for seconds or workers that are not positive, and scores out of [0, 1].

    >>> short = verifier(lambda text: len(text) < 4)
    >>> short.function.score("abc"), short.function.score("abcd")
    (1.0, 0.0)
    """
    if not callable(function):
        raise TypeError(f"verifier: give a function of a text, got {type(function).__name__}")
    if not (seconds > 0 and math.isfinite(seconds)) or workers < 1:
        raise ValueError(f"verifier: seconds must be positive and finite and workers at least 1, got {seconds} and {workers}")
    for name, score in (("failed", failed), ("unfinished", unfinished)):
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"verifier: {name} must be a score in [0, 1], or None, got {score}")
    return Verifier(Guarded(function, seconds, workers, failed, unfinished))


def equals(expected: str, *, extract: str | Callable[[str], str] = "last_line", **options: Any) -> Verifier:
    r"""Whether the answer in a text equals an expression, by SymPy: `1/2`, `0.5` and `\frac{2}{4}` are equal.

    Args:
      expected: the right answer.
      extract: how the answer is read from a text, as `reason` has it.
      options: those of `verifier`.

    Raises:
      ImportError: without SymPy (the extra `symbolic`).
      ValueError: as `verifier`, for an extractor that is none, and for an expected answer that is empty.

    >>> equals("x*(x+1)").function.score("so it is\nx^2 + x")
    1.0
    """
    if not expected.strip():
        raise ValueError("equals: expected must not be empty")
    wanted, read = canonical(expected), extractor(extract)

    def right(text: str) -> float:
        answer = read(text)
        return float(bool(answer.strip()) and (canonical(answer) == wanted or canonical(f"({answer})-({expected})") == "0"))

    return verifier(right, **options)


class Task(NamedTuple):
    """A question with what verifies its answers."""

    question: str
    answer: str  # a right one; there may be others
    verifier: Verifier


def gym(name: str, index: int = 0, *, seed: int = 0, extract: str | Callable[[str], str] = "last_line", options: Any = None, **verifying: Any) -> Task:
    """A task of `reasoning-gym` with its own verifier, which may give part of the score for part of the answer.

    Args:
      name: of the data set, such as "chain_sum".
      index: of the task in it.
      seed: of the data set.
      extract: how the answer is read from a text, as `reason` has it.
      options: of the data set, by name.
      verifying: options of `verifier`.

    Raises:
      ImportError: without the extra `gym`.
      ValueError: for a name or an option that reasoning-gym does not have, and as `verifier`.

    >>> import posterity as po
    >>> task = po.potentials.gym("chain_sum", seed=1)  # doctest: +SKIP
    """
    try:
        library = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ImportError('gym needs the package reasoning-gym: pip install "posterity[gym]"') from error
    if index < 0:
        raise ValueError(f"gym: index must be 0 or more, got {index}")
    try:
        data = library.create_dataset(name, seed=seed, size=index + 1, **(options or {}))
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"gym: reasoning-gym cannot make {name!r} with {options or {}}: {error}") from error
    entry, read = data[index], extractor(extract)
    return Task(entry["question"], str(entry["answer"]), verifier(lambda text: data.score_answer(answer=read(text), entry=entry), **verifying))
