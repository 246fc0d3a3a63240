"""A Markov chain run for some draws, and the questions one asks of its draws."""

import functools
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from posterity.inference import checkpoint as checkpoints
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import check_counts, check_key, in_stretches
from posterity.inference.queries import Weighted
from posterity.ppl.effects import followed, isolated, loop


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


class Links(NamedTuple):
    """A chain under way."""

    key: PRNGKeyArray
    time: Array  # [] moves made
    state: Any
    values: Any  # a pytree with leading axis draws; zeros for those to come
    allowed: Array  # [draws] bool
    accepted: Array  # [draws] bool
    invalid: Array  # []


def chain(
    key: PRNGKeyArray,
    program: Any,
    start: Partial,
    step: Partial,
    read: Partial,
    *,
    draws: int,
    warmup: int,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """Runs `step(key, state) -> (state, moved)` from `start(key, key)`; keeps `draws` states after `warmup` as `read` gives them.

    `read(state)` is a pytree and whether the state is allowed at all (bool). The chain is one of a batch of one; the functions
    are `jax.tree_util.Partial`s, whose arguments are data. `program` is shown, and told in checkpoints.
    """
    check_key(key)
    check_counts(draws=(draws, 1), warmup=(warmup, 0))
    if checkpoint is not None:
        checkpoints.check(checkpoint, key, start, step, read)
    if progress or checkpoint is not None:
        kept = checkpoint and checkpoints.keep(checkpoint, _about(key, program, start, step, draws, warmup))
        links = jax.jit(_begin, static_argnames="draws")(key, start, read, draws)
        goes = functools.partial(jax.jit(_going), moves=draws + warmup)
        stretch = jax.jit(_stretch, donate_argnames="links")
        links = in_stretches(links, goes, stretch, (step, read, warmup), shown=Shown(program, draws + warmup), progress=progress, kept=kept)
        found = jax.jit(_finish)(links)
    else:
        found = (_whole.__wrapped__ if followed() else _whole)(key, start, step, read, draws, warmup)  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
    if not isinstance(found.invalid, Tracer) and int(found.invalid):
        raise ValueError(f"{program}: {int(found.invalid)} proposals had a log potential that was NaN or +inf; each must be finite or -inf")
    return found


class Shown(NamedTuple):
    """What a progress bar says."""

    program: Any
    length: int

    def __repr__(self) -> str:
        return repr(self.program)


def _about(key: PRNGKeyArray, program: Any, start: Partial, step: Partial, draws: int, warmup: int) -> dict[str, Any]:
    about = checkpoints.describe(key, program, draws, start, step, warmup=warmup)
    return {"draws" if name == "n" else name: value for name, value in about.items()}


@functools.partial(jax.jit, static_argnames=("draws", "warmup"))
def _whole(key: PRNGKeyArray, start: Partial, step: Partial, read: Partial, draws: int, warmup: int) -> Chain:
    return _finish(_stretch(_begin(key, start, read, draws), step, read, warmup, draws + warmup, limit=draws + warmup))


def _begin(key: PRNGKeyArray, start: Partial, read: Partial, draws: int) -> Links:
    init_key, run_key, chain_key = jax.random.split(key, 3)
    with isolated():
        state = start(init_key, run_key)
        blank = jax.tree.map(lambda x: jnp.zeros((draws, *x.shape), x.dtype), jax.eval_shape(lambda: read(state)[0]))
    none, never = jnp.zeros((), jnp.int32), jnp.zeros(draws, bool)
    return Links(chain_key, none, state, blank, never, never, none)


def _going(links: Links, moves: Array | int) -> Array:
    return links.time < moves


def _stretch(links: Links, step: Partial, read: Partial, warmup: Array | int, until: Array | int, *, limit: int = 0) -> Links:
    """The chain when `until` moves are made, or all; `limit` is for who follows every turn."""
    draws = links.allowed.shape[0]

    def once(links: Links) -> Links:
        with isolated():
            state, moved = step(jax.random.fold_in(links.key, links.time), links.state)
            value, possible = read(state)
        row = jnp.where(links.time < warmup, draws, links.time - warmup)  # beyond the end: dropped
        values, allowed, accepted = jax.tree.map(
            lambda rows, x: rows.at[row].set(x, mode="drop"), (links.values, links.allowed, links.accepted), (value, possible, moved.accepted[0])
        )
        return Links(links.key, links.time + 1, state, values, allowed, accepted, links.invalid + jnp.sum(moved.invalid, dtype=jnp.int32))

    return loop(lambda links: links.time < jnp.minimum(until, draws + warmup), once, links, limit=limit)


def _finish(links: Links) -> Chain:
    allowed = links.allowed
    log_weights = jnp.where(allowed, -jnp.log(jnp.sum(allowed).astype(float)), -jnp.inf)
    log_evidence = jnp.where(jnp.any(allowed) & (links.invalid == 0), jnp.nan, -jnp.inf)
    return Chain(links.values, log_weights, log_evidence, links.accepted, links.invalid)
