"""REBASE: reward-balanced search, which is a particle filter whose resampling is deterministic."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.budget import Budget
from posterity.inference.search.beam import refilled
from posterity.inference.search.result import Selection
from posterity.inference.search.rounds import found
from posterity.ppl.program import Program

SLACK = 1e-4  # shares this little above a whole number are that number: they are sums in float32


@struct.dataclass
class Balanced:
    """Those that are done stay; the other places are shared out by `allocation`."""

    temperature: Float[Array, ""] | float

    def __call__(self, key: Array, program: Any, particles: Any, scores: Array, done: Array, time: Array) -> tuple[Any, Array]:
        counts = allocation(scores, jnp.sum(~done), self.temperature, ~done)
        return particles, refilled(done, jnp.repeat(jnp.arange(done.shape[0]), counts, total_repeat_length=done.shape[0]))


def allocation(
    scores: Float[Array, " n"], width: Int[Array, ""] | int, temperature: Float[Array, ""] | float = 0.2, active: Bool[Array, " n"] | None = None
) -> Int[Array, " n"]:
    """How many of `width` next steps each text gets, [n] int32: the best first, each ceil(what is left times its share of what is left), the last the rest.

    Shares are softmax(scores / temperature) of the `active`. Deterministic: the counts sum to `width`, and are no unbiased resampling.

    Source: Wu et al. (2024), "Inference scaling laws" (their code; the paper rounds instead).

    >>> allocation(jnp.array([0.9, 0.7, 0.4, 0.1]), 16)
    Array([11,  4,  1,  0], dtype=int32)
    """
    active = jnp.ones(scores.shape, bool) if active is None else active
    order = jnp.argsort(jnp.where(active, -scores, jnp.inf), stable=True)
    shares = jax.nn.softmax(jnp.where(active, scores / temperature, -jnp.inf))[order]
    rest = jnp.cumsum(shares[::-1])[::-1]
    last = jnp.sum(active) - 1

    def take(left: Array, x: tuple) -> tuple[Array, Array]:
        share, rest, place = x
        wanted = jnp.ceil(left * share / jnp.where(rest > 0, rest, 1.0) - SLACK).astype(jnp.int32)
        count = jnp.where(place == last, left, jnp.clip(wanted, 0, left))
        return left - count, count

    _, counts = jax.lax.scan(take, jnp.asarray(width, jnp.int32), (shares, rest, jnp.arange(order.shape[0])))
    return jnp.zeros(scores.shape, jnp.int32).at[order].set(counts)


def rebase(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    temperature: float = 0.2,
    choose: Literal["best", "weighted", "majority"] = "weighted",
    budget: Budget | None = None,
) -> Selection:
    """Reward-balanced search: before each step the texts still under way share their places by `allocation`; those that have ended keep theirs.

    Not properly weighted: shares are rounded up in order, and texts do not carry what the rounding took.

    Args:
      key, program, n, choose, budget: as in `beam`.
      temperature: shares are softmax(score / temperature).

    Raises:
      TypeError, ValueError: as `beam`; also for a temperature that is not positive.

    Source: Wu et al. (2024), "Inference scaling laws: an empirical analysis of compute-optimal inference for problem-solving with language models".

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program = po.reason(lm, "a", reward=lambda text: 1.0 / (1 + text.generated), delimiter=";", max_steps=2, max_step_tokens=3)
    >>> len(rebase(jax.random.key(0), program, n=4))
    4
    """
    if not (isinstance(temperature, Tracer) or 0 < temperature < float("inf")):
        raise ValueError(f"rebase: temperature must be positive and finite, got {temperature!r}")
    return found("rebase", key, program, n, Balanced(jnp.asarray(temperature, float)), choose, budget)
