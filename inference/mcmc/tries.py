"""What kernels on runs are made of: go back to a position, go on from there in rows beside the chains' own, and take one of what was tried."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.inference.blocks import Moved
from posterity.inference.mcmc.metropolis import accept, log_potential
from posterity.inference.mcmc.runs import Kept, Runs
from posterity.ppl.effects import draw, loop
from posterity.ppl.rewind import mark, rewind


def spread(program: Kept, runs: Runs, tried: int) -> Runs:
    """The runs with room for `tried` groups more, if there is not enough; a group that is there holds copies of the chains' runs."""
    if runs.groups > tried:
        return runs
    return program.rows(runs, jnp.arange(runs.chains * (1 + tried)) % runs.chains)


def of_chain(runs: Runs, x: Any) -> Any:
    """For every row what is so of its chain, the first rows of x, leaves [chains or more, ...]."""
    chain = jnp.arange(runs.steps.shape[0]) % runs.chains
    return jax.tree.map(lambda x: x[chain], x)


def by_group(runs: Runs, x: Array) -> Array:
    """What is so of each row, [groups, chains]."""
    return x.reshape(runs.groups, runs.chains)


def are_tried(runs: Runs, tried: int) -> Bool[Array, " rows"]:
    """Which rows are of the first `tried` groups after the chains' own."""
    group = jnp.arange(runs.steps.shape[0]) // runs.chains
    return (group > 0) & (group <= tried)


def back(key: Array, program: Kept, runs: Runs, position: Int[Array, " rows"], tried: int, *, begun: bool = False) -> Runs:
    """Copies of each chain's run in the `tried` groups, taken back to before their `position` (1: the first step).

    With `begun`, those at position 0 are begun anew, from the initial law. A run that is not there again, as its program rewinds its own
    texts, has a log potential that is NaN.
    """
    rows = jnp.arange(runs.steps.shape[0])
    spare = are_tried(runs, tried)
    runs = program.rows(runs, jnp.where(spare, rows % runs.chains, rows))
    steps = jnp.where(spare, jnp.maximum(position - 1, 0), runs.steps)
    marks, log_potentials = runs.marks, runs.log_potentials
    if begun:
        n = runs.chains * tried
        fresh, log_fresh = program.inner.init(key, n)
        anew = (spare & (position == 0))[runs.chains : runs.chains + n]
        at = jnp.where(anew, jnp.arange(runs.chains, runs.chains + n), rows.shape[0]), 0  # beyond the end: dropped
        write = lambda history, x: history.at[at].set(x, mode="drop")  # noqa: E731
        marks, log_potentials = jax.tree.map(write, marks, mark(program.inner, fresh)), write(log_potentials, log_fresh)
    there = jax.tree.map(lambda history: history[rows, steps], marks)
    now = rewind(program.inner, runs.now, there)
    log_potentials = log_potentials.at[:, 0].set(jnp.where(_same(mark(program.inner, now), there), log_potentials[:, 0], jnp.nan))
    return replace(runs, now=now, marks=marks, log_potentials=log_potentials, steps=steps)


def on(
    key: Array, program: Kept, runs: Runs, until: Int[Array, " rows"] | Array | int, where: Bool[Array, " rows"], given: dict[str, Any] | None = None
) -> Runs:
    """The runs `where` it holds, on until each has made `until` steps in all, or is done or forbidden.

    Their choices are those `given` for each step, leaves [rows, length, ...], or fresh ones.
    """
    rows, length = jnp.arange(runs.steps.shape[0]), runs.log_priors.shape[1]

    def going(runs: Runs) -> Bool[Array, " rows"]:
        return where & (runs.steps < until) & ~program.done(runs) & (log_potential(runs) > -jnp.inf)  # pyright: ignore[reportArgumentType]

    def turn(state: tuple[Array, Runs]) -> tuple[Array, Runs]:
        t, runs = state
        now = given and jax.tree.map(lambda x: x[rows, jnp.minimum(runs.steps, length - 1)], given)
        return t + 1, program.step(jax.random.fold_in(key, t), runs, where=going(runs), given=now)[0]

    if length == 0:
        return runs
    return loop(lambda state: jnp.any(going(state[1])), turn, (jnp.zeros((), jnp.int32), runs), limit=length)[1]


def priors(runs: Runs, since: Int[Array, " rows"] | int = 1) -> Float[Array, " rows"]:
    """The log density of the choices of each run's steps from step `since` on, [rows] nats."""
    step = jnp.arange(1, runs.log_priors.shape[1] + 1)
    counted = (step >= jnp.reshape(since, (-1, 1))) & (step <= runs.steps[:, None])
    return jnp.sum(jnp.where(counted, runs.log_priors, 0.0), axis=1)


def log_positions(runs: Runs) -> Float[Array, " rows"]:
    """The log of how many positions each run has: its initial law, and its steps."""
    return jnp.log1p(runs.steps.astype(float))


def end(runs: Runs, time: Array | int | None) -> Array | int:
    """How many steps runs are asked to make: `time`, by default all."""
    return runs.log_priors.shape[1] if time is None else time


def as_long(program: Kept, runs: Runs, steps: Int[Array, " rows"], time: Array | int | None) -> Bool[Array, " rows"]:
    """Which runs have made just so many steps, and would not be asked to go on."""
    return (runs.steps == steps) & (program.done(runs) | (runs.steps >= end(runs, time)))


def place(key: Array, runs: Runs, *, least: int) -> Int[Array, " rows"]:
    """A position of each chain's run, from `least` (0: the initial law, 1: the first step) to its last step, uniformly; for all its rows.

    Raises:
      ValueError: for steps, of a program that has none.
    """
    position = jnp.arange(least, runs.log_potentials.shape[1])
    if not position.size:
        raise ValueError("the program has no steps (no po.scan) of which one could be moved; see po.kernels for programs without")
    possible = position <= runs.steps[: runs.chains, None]
    logits = jnp.where(possible | ~jnp.any(possible, axis=1, keepdims=True), 0.0, -jnp.inf)
    return of_chain(runs, least + draw(key, "position", dist.CategoricalLogits(logits, validate_args=False)))


def choose(key: Array, program: Kept, runs: Runs, log_weights: Float[Array, " rows"], tries: int) -> tuple[Runs, Moved]:
    """Each chain's run, or one of its group of `tries`, taken by weight: by Metropolis and Hastings' rule for one, in proportion for several."""
    weights = by_group(runs, log_weights)[: 1 + tries]
    if tries == 1:
        moved = accept(key, weights[1], weights[0])
        return take(program, runs, moved.accepted.astype(jnp.int32)), moved
    group = draw(key, "taken", dist.CategoricalLogits(logits(weights), validate_args=False))
    return take(program, runs, group), Moved(group > 0, jnp.any(~(weights < jnp.inf), axis=0))


def logits(log_weights: Float[Array, "groups chains"]) -> Float[Array, "chains groups"]:
    """What one of the groups is drawn by, for each chain: its weights, where they are numbers; the first one where there is none."""
    usable = jnp.where(log_weights < jnp.inf, log_weights, -jnp.inf)
    nothing = jnp.where(jnp.arange(log_weights.shape[0]) == 0, 0.0, -jnp.inf)[:, None]
    return jnp.where(jnp.any(usable > -jnp.inf, axis=0), usable, nothing).T


def take(program: Kept, runs: Runs, group: Int[Array, " chains"]) -> Runs:
    """The runs with each chain's from the group that is said, copies of it in all its rows."""
    return program.rows(runs, of_chain(runs, group * runs.chains + jnp.arange(runs.chains)))


def support(program: Kept, runs: Runs, name: str) -> Array:
    """The values of a choice of the step, [size, ...].

    Raises:
      ValueError: when no step makes a choice of that name, or it is a batch, or has no finite support that is known while tracing.
    """
    laws = program.inner.laws(runs.now)
    if name not in laws:
        raise ValueError(f"gibbs: no step of {program.inner} makes a choice called {name!r}; they make {', '.join(map(repr, laws)) or 'none'}")
    law = laws[name]
    if law.batch_shape:
        raise ValueError(f"gibbs: {name!r} is a batch of choices, of shape {law.batch_shape}; write them as separate choices")
    try:
        values = law.enumerate_support(expand=False)
    except (NotImplementedError, jax.errors.JAXTypeError) as error:
        raise ValueError(f"gibbs: {name!r} has no finite support that is known while tracing: {type(law).__name__}") from error
    return jnp.asarray(values)


def _same(marks: Any, others: Any) -> Bool[Array, " rows"]:
    """Which marks agree in all whole numbers; others are as they were put back."""
    pairs = zip(jax.tree.leaves(marks), jax.tree.leaves(others), strict=True)
    same = [jnp.all((a == b).reshape(a.shape[0], -1), axis=1) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.integer)]
    return jnp.all(jnp.stack(same), axis=0) if same else jnp.ones((), bool)
