"""The ledger of a run, and limits on it."""

import math
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.inference.budget.stopwatch import Stopwatch
from posterity.ppl.program import Program


class Work(Protocol):
    """What all particles of a run have done together; each a count."""

    prompt: Any
    generated: Any
    reused: Any
    calls: Any
    rewards: Any


@runtime_checkable
class Metered(Protocol):
    """Values of a program that keeps accounts, as `po.reason` does: a capability."""

    work: Work  # the same for every particle
    complete: Any  # bool: its text was not left in the middle for want of budget or time


@runtime_checkable
class Limited(Protocol):
    """A program that can keep to limits: a capability."""

    def within(self, *, tokens: int | None = None, calls: int | None = None, rewards: int | None = None) -> Program:
        """The program, which stops where the next token, call or score would go beyond."""
        ...


class Budget(NamedTuple):
    """The most that a run may cost; None is no limit. It stops before going beyond any of them.

    Counts are kept to exactly. Seconds are looked at between steps: a run stops before a step for which, by the longest so far, time is short.

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program = po.reason(lm, "a", delimiter=";", max_steps=2, max_step_tokens=3)
    >>> found = po.search.self_consistency(jax.random.key(0), program, n=8, budget=po.Budget(tokens=12))
    >>> int(found.ledger.tokens) <= 12, bool(found.ledger.cut)
    (True, True)
    """

    tokens: int | None = None  # of the language model, read and written
    calls: int | None = None  # steps that it is asked for, of one text each
    rewards: int | None = None  # scores
    seconds: float | None = None  # on the clock


@struct.dataclass
class Ledger:
    """What a run has cost. Counts are of all texts that there ever were, those dropped on the way included; seconds are NaN in compiled code."""

    prompt: Int[Array, ""]  # tokens of the prompt, read once
    generated: Int[Array, ""]  # tokens
    reused: Int[Array, ""]  # tokens that texts took over from the prompt's or an ancestor's cache, and nobody read again
    calls: Int[Array, ""]  # steps asked of the language model, one text each
    rewards: Int[Array, ""]  # texts scored
    cut: Bool[Array, ""]  # the budget ended the run
    wall: float | Float[Array, ""] = math.nan  # seconds
    device: float | Float[Array, ""] = math.nan  # of them seconds in which nothing was traced or compiled

    @property
    def tokens(self) -> Int[Array, ""]:
        """Tokens that the language model read and wrote."""
        return self.prompt + self.generated

    def timed(self, watch: Stopwatch) -> Self:
        """With the seconds of a stopwatch that has stopped."""
        return replace(self, wall=watch.wall, device=watch.device)

    def __add__(self, other: "Ledger") -> "Ledger":
        """Both runs together."""
        return Ledger(**{name: x | y if name == "cut" else x + y for (name, x), y in zip(vars(self).items(), vars(other).values(), strict=True)})


def of_work(values: Any, cut: Array | bool) -> Ledger:
    """The ledger that a run's values hold; zeros where the program keeps none."""

    def count(name: str) -> Array:
        return jnp.asarray(getattr(values.work, name))[0] if isinstance(values, Metered) else jnp.zeros((), jnp.int32)

    return Ledger(count("prompt"), count("generated"), count("reused"), count("calls"), count("rewards"), jnp.asarray(cut))


def limited(name: str, program: Program, budget: Budget | None) -> Program:
    """The program within the budget's counts.

    Raises:
      TypeError: when there are counts to keep to and the program keeps none, or the budget is no `Budget`.
      ValueError: for a limit that is not a positive number (calls and rewards may be 0).
    """
    if budget is None:
        return program
    if not isinstance(budget, Budget):
        raise TypeError(f"{name}: budget must be a po.Budget, got {type(budget).__name__}")
    counts = {key: limit for key, limit in budget._asdict().items() if limit is not None and key != "seconds"}
    for key, limit in counts.items():
        if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit < 2**31:
            raise ValueError(f"{name}: the budget's {key} must be a whole number below 2^31, got {limit!r}")
    if budget.seconds is not None and not (isinstance(budget.seconds, (int, float)) and 0 < budget.seconds < math.inf):
        raise ValueError(f"{name}: the budget's seconds must be positive and finite, got {budget.seconds!r}")
    if not counts:
        return program
    if not isinstance(program, Limited):
        raise TypeError(f"{name}: {program} keeps no accounts, so a budget of {', '.join(counts)} cannot hold; po.reason makes programs that do")
    return program.within(**counts)
