"""Texts that a server's model writes step by step, as a program: a step is a call, a particle a text so far."""

import asyncio
import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posterity.models.lm.remote import loop
from posterity.models.lm.remote.client import Remote
from posterity.models.lm.remote.completion import Finish
from posterity.models.programs.host import HostScan, Turn, host_scan
from posterity.ppl.answer import Answer

if TYPE_CHECKING:
    from posterity.models.potentials.verifiers import Verifier

Judge = Callable[[str, bool], float | Awaitable[float]]


@dataclass(frozen=True)
class Written(Answer):
    """What one particle has written. Its answer is what the model's `extract` reads in it."""

    text: str = ""  # after the prompt, stop strings included
    steps: int = 0
    finish: Finish | None = None  # how the last step ended: at a stop string, by the model's end of text, or cut off; None before the first
    ended: bool = False  # whether it is whole: by the model's end of text, by its context, or by the last step
    log_prob: float | None = 0.0  # nats, of all steps; None where the server tells none
    tokens: int | None = 0  # written; None where the server tells none
    nats: float = 0.0  # what the potential has said of it
    extract: Callable[[str], str] = str.strip

    def answer(self) -> str:
        return self.extract(self.text)

    def __str__(self) -> str:
        return self.text


def steps(
    lm: Remote,
    prompt: str,
    *,
    stop: str | Sequence[str] | re.Pattern = "\n",
    max_steps: int,
    max_step_tokens: int = 256,
    potential: "Judge | Verifier | None" = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    options: Mapping[str, Any] | None = None,
    extract: Callable[[str], str] | None = None,
) -> HostScan:
    """Texts that a model behind a server writes in steps, each a call that goes on with the text so far until `stop`. Its values are `Written`.

    Every step draws from the server's law, with a seed of its own that follows from the run's key. `potential(text, whole)` says what a text
    weighs, in nats, as in `po.potentials.judge`: of a whole text its weight, of an unfinished one a guess that steers and changes no answer
    (-inf only where nothing that goes on from it can weigh anything). A step weighs by how it changes. A text is whole when the model ends
    it, when it fills the model's context, or after the last step; one that `max_step_tokens` cut goes on with the next step.

    The server reads the text so far anew at every step, and may put other tokens to it than it wrote.

    Args:
      lm: of `po.load("openai:...")`.
      prompt: the text to go on with.
      stop: what ends a step and stays part of the text: a text or several, or a compiled pattern.
      max_steps: the largest number of steps.
      max_step_tokens: the largest number of tokens of a step.
      potential: a function, or coroutine function, of the text so far and whether it is whole, to nats; or a `po.potentials.verifier`, of which a
        whole text weighs its score.
      temperature, top_p, options: as `Remote.begin`.
      extract: the answer in a text; by default the model's.

    Raises:
      TypeError: when `lm` is no remote model, or `potential` neither function nor verifier.
      ValueError: for an empty stop or prompt, or numbers out of range.
    """
    if not isinstance(lm, Remote):
        raise TypeError(f"steps: lm must be a model behind a server, po.load('openai:URL'), got {lm!r}; for one in this process there is po.generate")
    judge = _judge(potential)
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"steps: prompt must be a text that is not empty, got {prompt!r}")
    for name, number in (("max_steps", max_steps), ("max_step_tokens", max_step_tokens)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"steps: {name} must be a whole number of at least 1, got {number!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"steps: temperature must be at least 0 and finite, got {temperature!r}")
    call = {"max_tokens": max_step_tokens, "stop": stop, "temperature": temperature, "top_p": top_p, "options": options}

    async def step(written: Written, seed: int) -> Turn:
        """One more step, and what it changes."""
        found = await asyncio.wrap_future(loop.submit(lm.begin(prompt + written.text, seed=seed, **call)))
        full = found.finish == "length" and found.tokens is not None and found.tokens < max_step_tokens
        ended = found.finish == "eos" or full or written.steps + 1 == max_steps
        text = written.text + found.text + found.stop
        nats = 0.0 if judge is None else await _asked(judge, text, ended)
        ended = ended or nats == -math.inf  # nothing that goes on from it can weigh anything: it costs no more calls
        counts = (_sum(written.log_prob, found.log_prob), _sum(written.tokens, found.tokens))
        return Turn(Written(text, written.steps + 1, found.finish, ended, *counts, nats, written.extract), nats - written.nats, ended)

    step.__name__ = f"steps of {lm.model}"
    return host_scan(step, Written(extract=extract or lm.extract), length=max_steps, workers=lm.concurrency)


def _judge(potential: "Judge | Verifier | None") -> Judge | None:
    """A potential as a function of a text and whether it is whole."""
    from posterity.models.potentials.verifiers import Verifier  # here, as models behind a server mostly do without

    if isinstance(potential, Verifier):
        guarded = potential.function

        def log_score(text: str, whole: bool) -> float:
            """Of an unfinished text, a guess."""
            score = guarded.score(text) if whole or guarded.unfinished is None else guarded.unfinished
            return math.log(score) if score > 0 else -math.inf if whole else 0.0

        return log_score
    if potential is not None and not callable(potential):
        raise TypeError(f"steps: potential must be a function of a text and whether it is whole, or a verifier; got {potential!r}")
    return potential


async def _asked(potential: Judge, text: str, whole: bool) -> float:
    """What a potential says, asked in a thread where it is no coroutine function."""
    try:
        if inspect.iscoroutinefunction(potential) or inspect.iscoroutinefunction(getattr(potential, "__call__", None)):  # noqa: B004 - of an instance
            nats = await potential(text, whole)  # pyright: ignore[reportGeneralTypeIssues]
        else:
            nats = await asyncio.to_thread(potential, text, whole)
        nats = float(nats)  # pyright: ignore[reportArgumentType]
    except Exception as error:
        raise RuntimeError(f"steps: the potential raised {type(error).__name__} for {text!r}: {error}") from error
    if not nats < math.inf:
        raise ValueError(f"steps: the potential must return nats below +inf, it returned {nats} for {text!r}")
    return nats


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other
