"""Draws decided by a number: the code of a branch, whose digits pick a value at one draw after another.

With codes 0..K-1, K the product of all support sizes, a traced computation is enumerated by one `vmap`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax

from posterity.ppl.effects import Atomic, Decider


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


def atoms(msg: Any) -> tuple[Callable[[Any], Any], Array]:
    """What a choice can be: `values(digits [draws])`, and log probabilities [size, draws] (nats); a batch is as many draws.

    Raises:
      ValueError: when it has no finite support, or one that is not known while tracing.
    """
    name, shape = msg["name"], msg["kwargs"].get("sample_shape")
    law = msg["fn"].expand_by(shape) if shape else msg["fn"]
    if isinstance(law, Atomic):
        values, log_probs = law.atoms()
        return lambda digits: jax.tree.map(lambda x: x[digits[0]], values), log_probs[:, None]
    while isinstance(law, dist.Independent):
        law = law.base_dist  # an event of independent parts is as many draws
    draws = math.prod(law.batch_shape)
    log_table = _log_table(law)
    if log_table is not None:
        return lambda digits: digits.reshape(law.batch_shape).astype(int), log_table.reshape(draws, -1).T
    if not law.has_enumerate_support:
        raise ValueError(f"enumeration: site {name!r} has no finite support: {type(law).__name__}")
    try:
        support = law.enumerate_support()
    except NotImplementedError as error:
        raise ValueError(f"enumeration: the support of site {name!r} is not known while tracing: {error}") from error
    rows = support.reshape(len(support), draws, *law.event_shape)
    return lambda digits: rows[digits, jnp.arange(draws)].reshape(law.batch_shape + law.event_shape), jnp.asarray(law.log_prob(support)).reshape(-1, draws)


def _log_table(law: dist.Distribution) -> Array | None:
    """Log probabilities [..., size] of 0, 1, .., size - 1 for the laws that most choices have: NumPyro's `log_prob` would look each one up."""
    if isinstance(law, dist.BernoulliProbs):
        heads = jnp.asarray(law.probs)
        law = dist.CategoricalProbs(jnp.stack([1 - heads, heads], axis=-1))
    if isinstance(law, dist.CategoricalProbs):
        return jnp.asarray(law.logits)
    if isinstance(law, dist.CategoricalLogits):
        return jax.nn.log_softmax(law.logits)
    if isinstance(law, dist.BernoulliLogits):
        odds = jnp.asarray(law.logits)
        return jax.nn.log_sigmoid(jnp.stack([-odds, odds], axis=-1))
    return None


def _choose(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
