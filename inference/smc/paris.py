"""Smoothing while filtering: sums over a trajectory's steps, exactly given the particles or by PaRIS (Olsson and Westerborn 2017)."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from numpyro import handlers

from posterity.inference.blocks import advance, resample_below, spawn
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, check_counts, drive
from posterity.inference.population import Population
from posterity.inference.posterior import Posterior
from posterity.inference.retraced import Retraced, Told, go_on, lasting, retraced
from posterity.inference.smc.backward import by_weight, some_at_once
from posterity.inference.smc.resampling import Ancestors, scheme
from posterity.inference.smc.smc import share
from posterity.ppl.effects import draw, loop
from posterity.ppl.program import Program
from posterity.ppl.transform import Transformed, times


class Sums(NamedTuple):
    """Particles with the sum so far, averaged over the pasts that each may have had."""

    now: Told
    total: Any  # [n, ...]
    markov: Bool[Array, " n"]  # no pair of particles was met whose future would depend on more than the choices between them
    bounded: Bool[Array, " n"]  # no density was met above the bound


@struct.dataclass
class Summed(Transformed):
    """A retraced program whose particles have room for a sum."""

    inner: Retraced
    functional: Callable  # a `jax.tree_util.Partial`

    def __repr__(self) -> str:
        return f"<sums over {self.inner}>"

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Sums, Float[Array, " n"]]:
        now, log_potential = self.inner.init(key, n)
        with handlers.block():  # shapes are asked for, nothing is drawn
            one = jax.eval_shape(lambda now: self.added(now.steps, *[self.inner.value(now)] * 2), now)
        return Sums(now, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one), *jnp.ones((2, n), bool)), log_potential

    def step(self, key: PRNGKeyArray, particles: Sums, *, where: Bool[Array, " n"] | None = None) -> tuple[Sums, Float[Array, " n"]]:
        now, log_potential = self.inner.step(key, particles.now, where=where)
        return particles._replace(now=now), log_potential

    def value(self, particles: Sums) -> Sums:
        return particles._replace(now=None)

    def added(self, time: Int[Array, " n"], before: Any, after: Any) -> Any:
        """What a step adds, in float, [n, ...]."""
        return jax.tree.map(lambda x: jnp.asarray(x, float), jax.vmap(self.functional)(time, before, after))


class Step(NamedTuple):
    """A step of all particles: the weighted population before, and where it came to."""

    inner: Retraced
    live: list[bool]  # which leaves of particles the future depends on
    log_weights: Float[Array, " n"]  # of those before
    before: Told
    after: Told


def paris(
    key: PRNGKeyArray,
    program: Program,
    functional: Callable[[Array, Any, Any], Any],
    *,
    n: int,
    samples: int | None = 2,
    bound: float | None = None,
    tries: int = 32,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """Smoothed expectations of a sum over steps, as a filter goes along, with memory for one generation.

    Beside every particle stands the mean of the sum over the pasts that it may have had: of `samples` particles before it, drawn by weight times the
    density of its last step from there (PaRIS), or of all of them (`samples=None`; Del Moral, Doucet and Singh 2010). Properly weighted for
    such sums S: E[exp(log_evidence) * expect()] = ⟦p⟧(S) for every n, samples, bound and tries. Its variance grows with the number
    of steps and not its square, if samples is 2 or more; with 1 it is no better than tracing ancestors.

    Args:
      key: a `jax.random.key`.
      program: one made of a function (`retraced`), Markov: what a step leaves, as far as later steps depend on it, must follow from its choices.
      functional: `functional(t, before, after)`, what step t = 1, 2, .. adds: an array or pytree, of the values of a single particle before and after it.
      n: the number of particles.
      samples: how many pasts are drawn for each; None for the mean over all. Costs n^2 transitions a step, but of order n with a bound.
      bound: of the log density (nats) of a step's choices, wherever it comes from; then pasts are drawn by rejection, each in at most `tries` tries
        and else from all n. If the step's potential depends on where it comes from, of the density times the potential over the potential as it was.
      resampling, threshold, progress, checkpoint: as in `smc`.

    Returns:
      A `Posterior` whose values are the sums, [n, ...]: ask for `expect()`. Of anything else than their mean they say nothing.

    Raises:
      TypeError: as `retraced`.
      ValueError: when samples or tries is less than 1, a density exceeds the bound, or the program is not Markov; as `smc`.
        Inside `jax.jit`, where nothing can be raised, the sums are NaN then.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> def square(t, before, after):  # the mean squared step tells the noise of the walk
    ...     return (after - before) ** 2
    >>> posterior = po.paris(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), square, n=200)
    >>> bool(abs(posterior.expect() - 3.45) < 0.3)
    True
    """
    check_counts(samples=(1 if samples is None else samples, 1), tries=(tries, 1))
    program = retraced(program)
    if not callable(functional):
        raise TypeError(f"paris: functional must be a function of (t, value before, value after), got {functional!r}")
    summed = Summed(program, functional if isinstance(functional, jax.tree_util.Partial) else jax.tree_util.Partial(functional))
    step = jax.tree_util.Partial(_step_with(scheme(resampling), samples, tries), threshold=share(threshold), bound=None if bound is None else float(bound))
    posterior = drive(key, summed, n, spawn, step, history="none", progress=progress, checkpoint=checkpoint)
    sums, kept = posterior.values, posterior.log_weights > -jnp.inf
    for name, holds in (("bound", sums.bounded), ("markov", sums.markov)):
        if not isinstance(holds, Tracer) and not jnp.all(holds):
            raise ValueError(f"paris: {_WRONG[name]}")
    right = kept & sums.bounded & sums.markov
    return replace(posterior, values=jax.tree.map(lambda x: jnp.where(_as(right | ~kept, x), x, jnp.nan), sums.total))


_WRONG = {
    "bound": "a step's density was found above the bound",
    "markov": "the program is not Markov: what a step leaves depends on more than its choices; use po.ffbsi, which runs the rest of a trajectory again",
}


def step(
    key: PRNGKeyArray,
    program: Summed,
    population: Population,
    *,
    samples: int | None,
    tries: int,
    bound: Array | float | None = None,
    threshold: Float[Array, ""] | float = 0.5,
    resampling: type[Ancestors],
) -> tuple[Population, Info]:
    """One generation of `smc`, then what each particle's past adds up to."""
    select_key, advance_key, back_key = jax.random.split(key, 3)
    parents, info = resample_below(threshold, select_key, program, population, resampling)
    grown = advance(advance_key, program, parents)
    old, own, new = population.particles, parents.particles, grown.particles
    live = lasting(program.inner, old.now)
    taken = Step(program.inner, live, population.log_weights, old.now, new.now)
    before, after = program.inner.value(old.now), program.inner.value(new.now)
    moved = new.now.steps > own.now.steps  # what stands still keeps its sum

    def sums(index: Int[Array, " m"], to: Int[Array, " m"]) -> Any:
        """The sum of the particles `to` after the step, had they come from the particles `index` before it."""
        pick = lambda tree, index: jax.tree.map(lambda x: x[index], tree)  # noqa: E731
        return jax.tree.map(jnp.add, pick(old.total, index), program.added(new.now.steps[to], pick(before, index), pick(after, to)))

    bounded = own.bounded
    if samples is None:

        def mean(to: Int[Array, ""]) -> tuple[Any, Bool[Array, ""]]:
            log_weights, markov = row(taken, to)
            weights = jax.nn.softmax(jnp.where(jnp.any(log_weights > -jnp.inf), log_weights, 0.0))
            every = sums(jnp.arange(population.size), jnp.full(population.size, to))
            return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), every), markov

        total, markov = some_at_once(mean, population.size, jnp.arange(population.size))
    else:
        if bound is None:
            index, markov = drawn(back_key, taken, samples)
        else:
            index, markov, bounded = rejected(back_key, taken, own.now, samples, bound, tries)
        total = jax.tree.map(lambda x: jnp.mean(x, axis=1), jax.vmap(sums, (1, None), 1)(index, jnp.arange(population.size)))
    total = jax.tree.map(lambda a, b: jnp.where(_as(moved, a), a, b), total, own.total)
    particles = Sums(new.now, total, own.markov & (markov | ~moved), own.bounded & (bounded | ~moved))
    return replace(grown, particles=particles), info


def row(step: Step, to: Int[Array, ""]) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """The log weights of all particles before for having led to one, and whether it would have been the same one from each."""
    n = step.log_weights.shape[0]
    log_density, _, same = pairs(step, jnp.arange(n), jnp.full(n, to))
    log_weights = times(step.log_weights, log_density)
    return log_weights, jnp.all(same | jnp.isneginf(log_weights))


def pairs(step: Step, index: Int[Array, " m"], to: Int[Array, " m"]) -> tuple[Float[Array, " m"], Float[Array, " m"], Bool[Array, " m"]]:
    """From particle `index` before to `to` after: log density and potential together, the potential alone (nats), and whether what comes out is `to`."""
    particles = step.inner.select(step.before, index)
    after, log_prior, log_potential = go_on(step.inner, particles, jax.tree.map(lambda x: x[to], step.after.drawn))
    log_density = times(jnp.where(step.inner.done(particles), -jnp.inf, log_prior), log_potential)
    leaves = zip(jax.tree.leaves(after.now), jax.tree.leaves(step.after.now), step.live, strict=True)
    same = [jnp.all((x == y[to]).reshape(to.shape[0], -1), axis=1) for x, y, lasts in leaves if lasts and x.ndim]
    return jnp.where(log_density < jnp.inf, log_density, -jnp.inf), log_potential, functools.reduce(jnp.logical_and, same, jnp.ones(to.shape[0], bool))


def drawn(key: PRNGKeyArray, step: Step, samples: int) -> tuple[Int[Array, "n samples"], Bool[Array, " n"]]:
    """For every particle, particles before it by what they weigh for it."""

    def one(key, to):
        log_weights, markov = row(step, to)
        return draw(key, "before", by_weight(log_weights).expand([samples])), markov

    n = step.log_weights.shape[0]
    return some_at_once(one, n, jax.random.split(key, n), jnp.arange(n))


def rejected(key: PRNGKeyArray, step: Step, own: Told, samples: int, bound: Array | float, tries: int) -> tuple[Array, Array, Array]:
    """As `drawn`, by rejection; also whether the bound held."""
    try_key, rest_key = jax.random.split(key)
    n = step.log_weights.shape[0]
    each, to = n * samples, jnp.repeat(jnp.arange(n), samples)
    propose = by_weight(step.log_weights).expand([each])
    log_own = go_on(step.inner, own, step.after.drawn)[2][to]  # the potential as it was

    def again(state):
        count, index, left, markov, bounded = state
        propose_key, accept_key = jax.random.split(jax.random.fold_in(try_key, count))
        proposed = draw(propose_key, "proposed", propose)
        log_density, _, same = pairs(step, proposed, to)
        log_ratio = jnp.where(jnp.isneginf(log_own), 0.0, log_density - bound - log_own)  # what weighs nothing may come from anywhere
        taken = draw(accept_key, "accepted", dist.Bernoulli(probs=jnp.exp(jnp.minimum(log_ratio, 0.0)))) == 1
        markov, bounded = markov & (same | jnp.isneginf(log_density)), bounded & (log_ratio < 1e-3)
        return count + 1, jnp.where(left & taken, proposed, index), left & ~taken, markov, bounded

    def one_more(state):
        count, index, left, markov = state
        which = jnp.argmax(left)
        log_weights, alike = row(step, to[which])
        found = draw(jax.random.fold_in(rest_key, count), "before", by_weight(log_weights))
        return count + 1, index.at[which].set(found.astype(index.dtype)), left.at[which].set(False), markov.at[which].set(markov[which] & alike)

    some, none = jnp.ones(each, bool), jnp.zeros((), jnp.int32)
    start = (none, jnp.zeros(each, jnp.int32), some, some, some)
    _, index, left, markov, bounded = loop(lambda state: jnp.any(state[2]) & (state[0] < tries), again, start, limit=tries)
    _, index, _, markov = loop(lambda state: jnp.any(state[2]), one_more, (none, index, left, markov), limit=each)
    return index.reshape(n, samples), jnp.all(markov.reshape(n, samples), axis=1), jnp.all(bounded.reshape(n, samples), axis=1)


def _as(condition: Array, like: Array) -> Array:
    return condition.reshape(condition.shape + (1,) * (like.ndim - 1))


@functools.cache
def _step_with(resampling: type[Ancestors], samples: int | None, tries: int) -> Callable:
    """One object for each choice: jit knows compiled code again by it."""
    return functools.partial(step, resampling=resampling, samples=samples, tries=tries)
