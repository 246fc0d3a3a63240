"""Draws decided by a number: the code of a branch, whose digits pick a value at one draw after another.

With codes 0..K-1, K the product of all support sizes, a traced computation is enumerated by one `vmap`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from posterity.ppl.effects import Decider
from posterity.ppl.support import atoms


class Script(Decider):
    """Decides every draw by the next digit of `code`, and keeps the log probability of what it decided.

    Draws under a branch not taken count once: at digit 0 with probability one, at others with probability zero. Loops are
    unrolled to their limit; `at_loop(going, body, state, limit)`, if given, stands in for the first one.
    """

    def __init__(self, code: Array, at_loop: Callable | None = None):
        super().__init__()
        self.at_loop = at_loop
        self.restart(code)

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def restart(self, code: Array) -> None:
        """From here on by another code."""
        self.rest, self.decided = code, jnp.zeros(())
        self.active: Array | bool = True
        self.choices: list[tuple[str, int]] = []  # each draw's name and the size of its support

    @property
    def log_prob(self) -> Array:
        """The log probability of the branch, nats; -inf when the code has more digits than there were draws."""
        return jnp.where(self.rest == 0, self.decided, -jnp.inf)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["value"] is None:
            values, log_probs = atoms(msg)
            size, draws = log_probs.shape
            base, digits = self.rest.dtype.type(size), []
            for _ in range(draws):
                digits.append(lax.rem(self.rest, base))
                self.rest = lax.div(self.rest, base)
                self.choices.append((msg["name"], size))
            digit = jnp.stack(digits)
            total = jnp.log(jnp.sum(jnp.exp(log_probs), axis=0))  # tables in float32 do not sum to one in float64
            log_prob = log_probs.T.reshape(-1)[digit + base * np.arange(draws, dtype=base.dtype)] - jnp.where(jnp.abs(total) < 1e-5, total, jnp.nan)
            if self.active is not True:
                log_prob = jnp.where(self.active, log_prob, jnp.where(digit == 0, 0.0, -jnp.inf))
            self.decided = self.decided + jnp.sum(log_prob)
            msg["value"] = values(digit)

    def cond(self, predicate: Array, true: Callable, false: Callable, *operands: Any) -> Any:
        with self.where(predicate):
            taken = true(*operands)
        with self.where(~predicate):
            other = false(*operands)
        return _choose(predicate, taken, other)

    def loop(self, going: Callable, body: Callable, state: Any, limit: int) -> Any:
        if self.at_loop is not None:
            action, self.at_loop = self.at_loop, None
            return action(going, body, state, limit)
        for _ in range(limit):
            more = going(state)
            with self.where(more):
                state = _choose(more, body(state), state)
        return state

    @contextlib.contextmanager
    def where(self, condition: Array) -> Iterator[None]:
        """Draws count where `condition` holds."""
        before, self.active = self.active, self.active & condition
        try:
            yield
        finally:
            self.active = before


def _choose(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
