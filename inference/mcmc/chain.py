"""Markov chains run for some draws, and the questions one asks of their draws."""

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
    """Draws of one or several Markov chains, equally weighted. Answers the queries of a `Posterior`, but of the evidence it knows nothing.

    The draws of one chain lie together, in their order; `by_chain` gives them with an axis for the chains.

    Errors are those of batch means, over sqrt(n) batches of consecutive draws, each within a chain (Flegal and Jones 2010): they count the
    autocorrelation within a batch, and are too small when a chain moves less than once a batch.
    """

    values: Any  # a pytree with leading axis n = chains * draws
    log_weights: Array  # [n] normalised, nats; -inf for draws before their chain first found a state that is not forbidden
    log_evidence: Array  # [] nats; -inf when no chain ever found one, else NaN: not estimated
    accepted: Array  # [n] bool, or the probability that the move to this draw was accepted with
    invalid: Array  # [] how many proposals had a potential that was NaN or +inf
    choices: dict[str, Any] = field(default_factory=dict)  # [n, ...] by name: what the program's initial law chose, where it is kept
    chains: int = struct.field(pytree_node=False, default=1)
    statistics: dict[str, Array] = field(default_factory=dict)  # [n] by name: what the kernel tells of the move to each draw, `divergent` say
    tuned: dict[str, Array] = field(default_factory=dict)  # [chains, ...] by name: what the warm-up came to, `step_size` say

    def __repr__(self) -> str:
        draws = f"draws={len(self)}" if self.chains == 1 else f"chains={self.chains}, draws={len(self) // self.chains}"
        divergences = f", divergences={int(self.divergences)}" if "divergent" in self.statistics else ""
        return f"Chain({draws}, acceptance={float(self.acceptance):.3f}{divergences})"

    @property
    def acceptance(self) -> Array:
        """The share of proposals that were accepted."""
        return jnp.mean(self.accepted)

    @property
    def divergences(self) -> Array:
        """How many draws ended a trajectory whose energy was lost: where these are, the chain may miss a part of the posterior."""
        return jnp.sum(self.statistics.get("divergent", jnp.zeros(len(self), bool)))

    def by_chain(self, f: Callable[[Any], Any] = lambda value: value) -> Any:
        """`f(value)` of every draw with an axis for the chains: [chains, draws, ...], as R-hat wants it; a pytree like f's result."""
        return jax.tree.map(lambda x: x.reshape(self.chains, len(self) // self.chains, *x.shape[1:]), self._each(f))

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
        """The number of each draw's batch [n]: about sqrt(n) in all, none across two chains."""
        draws = len(self) // self.chains
        size = min(math.ceil(math.sqrt(len(self))), draws)
        chain, draw = np.divmod(np.arange(len(self)), draws)
        return chain * -(-draws // size) + draw // size

    def _check_alive(self) -> None:
        if not isinstance(self.log_evidence, Tracer) and self.log_evidence == -jnp.inf:
            raise ValueError(f"no posterior to query: in {len(self)} draws the chain found no state that the potentials allow; more draws or particles may")


class Links(NamedTuple):
    """Chains under way."""

    key: PRNGKeyArray
    time: Array  # [] moves made
    state: Any
    values: Any  # a pytree with leading axes draws, chains; zeros for those to come
    allowed: Array  # [draws, chains] bool
    accepted: Array  # [draws, chains] bool
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
    chains: int | None = None,
    thinning: int = 1,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """Runs `step(key, state) -> (state, moved)` from `start(key, key)`; keeps `draws` states after `warmup` as `read` gives them.

    `read(state)` is a pytree and whether the state is allowed at all (bool). With a number of `chains` the state is a batch of so many, and what
    `read` gives has them as leading axis, [chains, ...] and [chains]; with None it is one chain, read without that axis. Of `moved` the first `chains`
    entries are the chains'. Of every `thinning` moves after the warm-up the last one's state is kept. The functions
    are `jax.tree_util.Partial`s, whose arguments are data. `program` is shown, and told in checkpoints.
    """
    check_key(key)
    check_counts(draws=(draws, 1), warmup=(warmup, 0), thinning=(thinning, 1), **({} if chains is None else {"chains": (chains, 1)}))
    read, count, moves = Partial(_alone, read) if chains is None else read, 1 if chains is None else chains, warmup + draws * thinning
    if checkpoint is not None:
        checkpoints.check(checkpoint, key, start, step, read)
    if progress or checkpoint is not None:
        options = {"warmup": warmup, "chains": count, "thinning": thinning}
        kept = checkpoint and checkpoints.keep(checkpoint, _about(key, program, start, step, draws, options))
        links = jax.jit(_begin, static_argnames="draws")(key, start, read, draws)
        goes = functools.partial(jax.jit(_going), moves=moves)
        stretch = jax.jit(_stretch, donate_argnames="links")
        links = in_stretches(links, goes, stretch, (step, read, warmup, thinning), shown=Shown(program, moves), progress=progress, kept=kept)
        found = jax.jit(_finish)(links)
    else:
        whole = _whole.__wrapped__ if followed() else _whole  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
        found = whole(key, start, step, read, draws, warmup, thinning)
    if not isinstance(found.invalid, Tracer) and int(found.invalid):
        raise ValueError(f"{program}: {int(found.invalid)} proposals had a log potential that was NaN or +inf; each must be finite or -inf")
    return found


def _alone(read: Partial, state: Any) -> tuple[Any, Array]:
    """What is read of one chain, as a batch of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], read(state))


class Shown(NamedTuple):
    """What a progress bar says."""

    program: Any
    length: int

    def __repr__(self) -> str:
        return repr(self.program)


def _about(key: PRNGKeyArray, program: Any, start: Partial, step: Partial, draws: int, options: dict[str, Any]) -> dict[str, Any]:
    about = checkpoints.describe(key, program, draws, start, step, **options)
    return {"draws" if name == "n" else name: value for name, value in about.items()}


@functools.partial(jax.jit, static_argnames=("draws", "warmup", "thinning"))
def _whole(key: PRNGKeyArray, start: Partial, step: Partial, read: Partial, draws: int, warmup: int, thinning: int) -> Chain:
    moves = warmup + draws * thinning
    return _finish(_stretch(_begin(key, start, read, draws), step, read, warmup, thinning, moves, limit=moves))


def _begin(key: PRNGKeyArray, start: Partial, read: Partial, draws: int) -> Links:
    init_key, run_key, chain_key = jax.random.split(key, 3)
    with isolated():
        state = start(init_key, run_key)
        values, allowed = jax.tree.map(lambda x: jnp.zeros((draws, *x.shape), x.dtype), jax.eval_shape(lambda: read(state)))
    none, never = jnp.zeros((), jnp.int32), jnp.zeros(allowed.shape, bool)
    return Links(chain_key, none, state, values, never, never, none)


def _going(links: Links, moves: Array | int) -> Array:
    return links.time < moves


def _stretch(links: Links, step: Partial, read: Partial, warmup: Array | int, thinning: Array | int, until: Array | int, *, limit: int = 0) -> Links:
    """The chains when `until` moves are made, or all; `limit` is for who follows every turn."""
    draws, chains = links.allowed.shape

    def once(links: Links) -> Links:
        with isolated():
            state, moved = step(jax.random.fold_in(links.key, links.time), links.state)
            value, possible = read(state)
        made = links.time + 1 - warmup
        row = jnp.where((made > 0) & (made % thinning == 0), made // thinning - 1, draws)  # beyond the end: dropped
        values, allowed, accepted = jax.tree.map(
            lambda rows, x: rows.at[row].set(x, mode="drop"), (links.values, links.allowed, links.accepted), (value, possible, moved.accepted[:chains])
        )
        return Links(links.key, links.time + 1, state, values, allowed, accepted, links.invalid + jnp.sum(moved.invalid, dtype=jnp.int32))

    return loop(lambda links: links.time < jnp.minimum(until, draws * thinning + warmup), once, links, limit=limit)


def _finish(links: Links) -> Chain:
    values, allowed, accepted = jax.tree.map(_one_after_another, (links.values, links.allowed, links.accepted))
    log_weights = jnp.where(allowed, -jnp.log(jnp.sum(allowed).astype(float)), -jnp.inf)
    log_evidence = jnp.where(jnp.any(allowed) & (links.invalid == 0), jnp.nan, -jnp.inf)
    return Chain(values, log_weights, log_evidence, accepted, links.invalid, chains=links.allowed.shape[1])


def _one_after_another(rows: Array) -> Array:
    """[draws, chains, ...] as [chains * draws, ...], the draws of a chain together."""
    return jnp.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:])
