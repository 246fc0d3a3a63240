"""A Markov chain run for some draws, and the questions one asks of its draws."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer

from posterity.inference.blocks import Moved
from posterity.ppl.effects import loop
from posterity.ppl.queries import Weighted


@struct.dataclass
class Chain(Weighted):
    """Draws of a Markov chain, equally weighted, in their order. Answers the queries of a `Posterior`, but of the evidence it knows nothing.

    Errors are those of batch means, over sqrt(n) batches of consecutive draws (Flegal and Jones 2010): they count the
    autocorrelation within a batch, and are too small when the chain moves less than once a batch.
    """

    values: Any  # a pytree with leading axis n
    log_weights: Array  # [n] normalised, nats; -inf for draws before the chain first found a state that is not forbidden
    log_evidence: Array  # [] nats; -inf when it never found one, else NaN: not estimated
    accepted: Array  # [n] bool
    invalid: Array  # [] how many proposals had a potential that was NaN or +inf
    choices: dict[str, Any] = field(default_factory=dict)  # none have names

    def __repr__(self) -> str:
        return f"Chain(draws={len(self)}, acceptance={float(self.acceptance):.3f})"

    @property
    def acceptance(self) -> Array:
        """The share of proposals that were accepted."""
        return jnp.mean(self.accepted)

    def effective(self, f: Callable[[Any], Any]) -> float:
        """How many independent draws would give the mean of the scalar `f(value)` with the same error; n when f is constant."""
        error, spread = self.estimate(f).error, float(self.expect(lambda value: jnp.asarray(f(value), float) ** 2) - self.expect(f) ** 2)
        return spread / error**2 if error > 0 else float(len(self))

    def _error(self, y: np.ndarray, mean: float) -> float:
        weights = self._host_weights()
        deviations = weights * (np.where(weights > 0, y, mean) - mean)
        batches = np.bincount(self._batches(), weights=deviations)
        return math.sqrt(float(batches @ batches) * len(batches) / max(len(batches) - 1, 1))

    def _share_errors(self, weights: np.ndarray, which: np.ndarray, alive: np.ndarray) -> np.ndarray:
        y = np.zeros(len(self), int) - 1
        y[alive] = which
        return np.array([self._error((y == answer).astype(float), float(weights[which == answer].sum())) for answer in range(which.max() + 1)])

    def _batches(self) -> np.ndarray:
        """The number of each draw's batch [n]."""
        return np.arange(len(self)) // math.ceil(math.sqrt(len(self)))

    def _check_alive(self) -> None:
        if not isinstance(self.log_evidence, Tracer) and self.log_evidence == -jnp.inf:
            raise ValueError(f"no posterior to query: in {len(self)} draws the chain found no state that the potentials allow; more draws or particles may")


def chain(
    key: Array, start: Any, step: Callable[[Array, Any], tuple[Any, Moved]], read: Callable[[Any], tuple[Any, Array]], *, draws: int, warmup: int
) -> Chain:
    """Runs `step(key, state) -> (state, moved)` from `start`; keeps `draws` states after `warmup` as `read` gives them.

    `read(state)` is a pytree and whether the state is allowed at all (bool). The chain is one of a batch of one.
    """

    def once(run):
        time, state, kept, allowed, accepted, invalid = run
        state, moved = step(jax.random.fold_in(key, time), state)
        value, possible = read(state)
        row = jnp.where(time < warmup, draws, time - warmup)  # beyond the end: dropped
        kept, allowed, accepted = jax.tree.map(
            lambda rows, x: rows.at[row].set(x, mode="drop"), (kept, allowed, accepted), (value, possible, moved.accepted[0])
        )
        return time + 1, state, kept, allowed, accepted, invalid + jnp.sum(moved.invalid, dtype=jnp.int32)

    blank = jax.tree.map(lambda x: jnp.zeros((draws, *x.shape), x.dtype), jax.eval_shape(lambda: read(start)[0]))
    none, never = jnp.zeros((), jnp.int32), jnp.zeros(draws, bool)
    _, _, values, allowed, accepted, invalid = loop(lambda run: run[0] < warmup + draws, once, (none, start, blank, never, never, none), limit=warmup + draws)
    log_weights = jnp.where(allowed, -jnp.log(jnp.sum(allowed).astype(float)), -jnp.inf)
    return Chain(values, log_weights, jnp.where(jnp.any(allowed) & (invalid == 0), jnp.nan, -jnp.inf), accepted, invalid)
