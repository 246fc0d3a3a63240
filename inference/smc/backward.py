"""Backward simulation (Godsill, Doucet and West 2004): trajectories put together anew from all that a filter has seen."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.drive import Generations, check_counts, check_key
from posterity.inference.posterior import Posterior
from posterity.inference.retraced import Retraced, Told, go_on, lasting, retraced
from posterity.inference.smc.resampling import Ancestors
from posterity.inference.smc.smc import smc
from posterity.ppl.effects import draw, followed, isolated, loop, particle_map
from posterity.ppl.program import Program, choices_of
from posterity.ppl.transform import times


class Smoothed(NamedTuple):
    """A trajectory in the program's own terms."""

    value: Any  # at its end
    path: Any  # at every time, its leading axis length + 1: what the value would be, had the scan ended there


class Traces(NamedTuple):
    """m trajectories by what they chose, which is enough to run them again."""

    path: Int[Array, "m times"]  # which particle of every generation; -1 beyond the last
    drawn: Any  # the choices of every step, [m, length + 1, ...]; those of entry 0, and beyond the last step made, mean nothing
    steps: Int[Array, " m"]  # steps made


def ffbsi(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    draws: int | None = None,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    progress: bool = False,
) -> Posterior:
    """The posterior of whole trajectories by a particle filter forwards and simulation backwards, which undoes the filter's loss of its past.

    `po.smc` with all generations kept, then `backward_simulation`; properly weighted for every `n` and `draws`, with its path too.
    Costs length * n * draws transitions and keeps length * n particles.

    Args:
      key: a `jax.random.key`.
      program: one made of a function (`retraced`).
      n: the number of particles of the filter.
      draws: the number of trajectories; n by default.
      resampling, threshold, progress: of the filter, as in `smc`.

    Returns:
      A `Posterior` of `Smoothed`: `value`, and `path`, the value at every time.

    Raises:
      TypeError, ValueError: as `smc`, `retraced` and `backward_simulation`.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> posterior = po.ffbsi(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), n=500)
    >>> bool(jnp.all(abs(posterior["path"].expect() - jnp.array([0.0, 0.99, 1.94, 2.79])) < 0.2))
    True
    """
    check_key(key)
    filter_key, back_key = jax.random.split(key)
    program = retraced(program)
    posterior = smc(filter_key, program, n=n, resampling=resampling, threshold=threshold, history="full", progress=progress)
    return backward_simulation(back_key, program, posterior, draws=n if draws is None else draws)


def backward_simulation(key: PRNGKeyArray, program: Retraced, posterior: Posterior, *, draws: int) -> Posterior:
    """Trajectories drawn backwards in time from a filter's generations: properly weighted as the filter is, for every number of draws.

    The last state is drawn by its weight; then, from the last step to the first, the particle before by its weight times the density with
    which the program goes on from it with the choices made since, potentials included. Where states forget what they came from that is one
    transition; in general it is the whole rest of the trajectory, run again from every particle until all agree in what is to come
    (`inference.retraced.lasting`): length times the cost, for a program whose states hold all their past and use it.

    Args:
      key: a `jax.random.key`.
      program: a `po.retraced` program.
      posterior: of it, by `smc(..., history="full")`; every way to resample is right.
      draws: how many trajectories. Given the filter they are independent; the errors that queries report count the families of the filter too.

    Returns:
      A `Posterior` of `Smoothed`, of equal weights, with the filter's evidence; `eves` are the trajectories' particles at time 0.

    Raises:
      TypeError: when `program` is not retraced.
      ValueError: when draws is less than 1, or the posterior kept no generations.

    Source: Godsill, Doucet and West (2004); for states that remember, Lindsten and Schön (2013), "Backward simulation methods".
    """
    check_key(key)
    check_counts(draws=(draws, 1))
    if not isinstance(program, Retraced):
        raise TypeError(f"backward_simulation: program must be one made by po.retraced, got {program!r}")
    generations_of("backward_simulation", posterior)
    run = _simulated.__wrapped__ if followed() else _simulated  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
    return run(key, program, posterior, draws)


@functools.partial(jax.jit, static_argnames="draws")
def _simulated(key: PRNGKeyArray, program: Retraced, posterior: Posterior, draws: int) -> Posterior:
    with isolated():
        traces = simulate(key, program, posterior.generations, posterior.steps, draws)
        states, _ = replay(program, traces, posterior.generations)
        values, choices = smoothed(program, states), choices_of(program, jax.tree.map(lambda x: x[-1], states))
    equal = jnp.where(posterior.log_evidence > -jnp.inf, -jnp.log(float(draws)), -jnp.inf)
    return replace(
        posterior,
        values=values,
        choices=choices,
        log_weights=jnp.full(draws, equal, posterior.log_weights.dtype),
        eves=traces.path[:, 0],
        ancestors=None,
        generations=None,
    )


def simulate(key: PRNGKeyArray, program: Retraced, generations: Generations, end: Int[Array, ""], m: int, exponent: Array | float = 1.0) -> Traces:
    """m trajectories, drawn backwards from generation `end`, at which all particles are done; weights and potentials are raised to the exponent."""
    length, live = program.length, lasting(program, _generation(generations, 0).particles)

    def one(key):
        last_key, loop_key = jax.random.split(key)
        final = _generation(generations, end)
        index = draw(last_key, "last", by_weight(exponent * final.log_weights))
        steps, path = final.particles.steps[index], jnp.full(length + 1, -1, jnp.int32).at[end].set(index.astype(jnp.int32))
        drawn = jax.tree.map(lambda x: jnp.zeros((length + 1, *x.shape[1:]), x.dtype), final.particles.drawn)

        def back(state):
            time, path, drawn = state
            index = path[time]
            drawn = jax.tree.map(lambda rows, x: rows.at[time].set(x[time, index]), drawn, generations.particles.drawn)
            before = _generation(generations, time - 1)
            log_density = log_suffix(program, live, before.particles, drawn, time - 1, steps, exponent)
            log_weights = times(exponent * before.log_weights, log_density)
            index = draw(jax.random.fold_in(loop_key, time), "before", by_weight(log_weights))
            return time - 1, path.at[time - 1].set(index.astype(jnp.int32)), drawn

        if length:
            _, path, drawn = loop(lambda state: state[0] > 0, back, (jnp.asarray(end), path, drawn), limit=length)
        return Traces(path, drawn, steps)

    return some_at_once(one, generations.log_weights.shape[1], jax.random.split(key, m))


def log_suffix(
    program: Retraced, live: list[bool], particles: Told, drawn: Any, time: Array | int, steps: Int[Array, ""], exponent: Array | float = 1.0
) -> Float[Array, " n"]:
    """The log density, nats, with which the program goes on from each particle after `time` steps by the steps `time` + 1 .. `steps` of a trajectory.

    Their choices are `drawn`, [length + 1, ...]; potentials are included, raised to the exponent. -inf where the particle ends when the
    trajectory does not, or the other way round, and where the density is NaN. Once all particles agree in what later steps depend on (the
    leaves that are `live`), the rest is the same for all and left out.
    """

    def forward(state):
        time, particles, log_density = state
        given = jax.tree.map(lambda x: jnp.broadcast_to(x[time + 1], (log_density.shape[0], *x.shape[1:])), drawn)
        ended = program.done(particles)
        particles, log_prior, log_potential = go_on(program, particles, given)
        return time + 1, particles, times(log_density, jnp.where(ended, -jnp.inf, _or_nothing(times(log_prior, exponent * log_potential))))

    def going(state):
        time, particles, log_density = state
        return (time < steps) & ~_agree(live, particles, log_density > -jnp.inf)

    start = (jnp.asarray(time), particles, jnp.zeros(particles.steps.shape))
    time, particles, log_density = loop(going, forward, start, limit=program.length)
    return jnp.where((time < steps) | program.done(particles), log_density, -jnp.inf)


def replay(program: Retraced, traces: Traces, generations: Generations) -> tuple[Told, Float[Array, "times m"]]:
    """The trajectories run again: their states and log potentials (nats) at all times, leading axis length + 1; potentials of time 0 count as 0."""
    start = program.select(_generation(generations, 0).particles, traces.path[:, 0])

    def forward(particles, drawn):
        particles, _, log_potential = go_on(program, particles, drawn)
        return particles, (particles, log_potential)

    first, zero = jax.tree.map(lambda x: x[None], start), jnp.zeros((1, traces.path.shape[0]))
    if not program.length:
        return first, zero
    start = jax.tree.map(lambda x: lax.convert_element_type(x, x.dtype), start)  # not weakly typed
    rows = jax.tree.map(lambda x: jnp.moveaxis(x[:, 1:], 1, 0), traces.drawn)
    rest, log_potentials = lax.scan(forward, start, rows, length=program.length)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest), jnp.concatenate([zero, log_potentials])


def some_at_once(function: Callable, width: int, *rows: Array) -> Any:
    """`particle_map` of a function that holds `width` particles for each row, of so many rows at a time as memory is meant for."""
    together = max(1, 2**22 // width)
    if followed() or rows[0].shape[0] <= together:
        return particle_map(function, (0,) * len(rows))(*rows)
    return lax.map(lambda row: function(*row), rows, batch_size=together)


def smoothed(program: Program, states: Any) -> Smoothed:
    """The value and path of trajectories from their states, leading axes length + 1 and m."""
    path = jax.vmap(program.value)(states)
    return Smoothed(jax.tree.map(lambda x: x[-1], path), jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), path))


class ByInversion(dist.CategoricalLogits):
    """Indices by weight, by their distribution function: n sums in all, where NumPyro draws n Gumbel variates for each index."""

    def sample(self, key: Any, sample_shape: tuple = ()) -> Array:
        ends = jnp.cumsum(jax.nn.softmax(self.logits))
        point = jax.random.uniform(key, sample_shape, ends.dtype) * ends[-1]
        return jnp.searchsorted(ends, jnp.minimum(point, jnp.nextafter(ends[-1], 0.0)), side="right")  # never one of weight zero


def by_weight(log_weights: Float[Array, " n"]) -> dist.Distribution:
    """An index drawn by its weight; any, when all are zero."""
    alive = jnp.any(log_weights > -jnp.inf)
    return ByInversion(jnp.where(alive, log_weights, 0.0), validate_args=False)


def fixed_lag(program: Program, posterior: Posterior, f: Callable[[Any], Any] | None = None, *, lag: int) -> Any:
    """Smoothed expectations at every time, each as the particles `lag` steps later see it (Kitagawa and Sato 2001).

    Biased: E[f(x_t) | y up to t + lag] is what it tends to with many particles, and not E[f(x_t) | all y]. The bias dies out with the lag as fast
    as the program forgets; the variance grows with it, as fewer particles of time t have descendants. lag=0 is the filter itself,
    and with a lag of all steps it is the filter's own genealogy, which has no bias.

    Args:
      program: any program whose particles are arrays.
      posterior: of it, by `smc(..., history="full")`.
      f: of a single particle's value; by default the value itself.
      lag: in steps, at least 0.

    Returns:
      The pytree of f with leading axis length + 1, in float; NaN at times that the run did not come to, or when the evidence is zero.

    Raises:
      ValueError: when lag is no whole number of at least 0, or the posterior kept no generations.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> program = po.retraced(walk(jnp.array([1.0, 2.0, 3.0])))
    >>> posterior = po.smc(jax.random.key(0), program, n=500, history="full")
    >>> bool(jnp.all(abs(po.fixed_lag(program, posterior, lag=1) - jnp.array([0.0, 0.99, 1.94, 2.79])) < 0.2))
    True
    """
    check_counts(lag=(lag, 0))
    generations, length = generations_of("fixed_lag", posterior), program.length
    moments = jnp.arange(length + 1)
    ancestors = jnp.pad(jnp.asarray(posterior.ancestors), ((1, 0), (0, 0)))  # row t: of the particles after t steps

    def further(ahead: Array, index: Array) -> Array:
        """Of each particle `ahead` + 1 steps later the ancestor, from those `ahead` steps later."""
        later = moments + ahead + 1
        parents = ancestors[jnp.minimum(later, length)]
        return jnp.where((later <= posterior.steps)[:, None], jnp.take_along_axis(index, parents, axis=1), index)

    own = jnp.broadcast_to(jnp.arange(len(posterior), dtype=jnp.int32), (length + 1, len(posterior)))
    index = lax.fori_loop(0, min(lag, length), further, own)
    weights = jax.nn.softmax(generations.log_weights[jnp.minimum(moments + lag, posterior.steps)], axis=1)
    known = (moments <= posterior.steps) & (posterior.log_evidence > -jnp.inf)

    def mean(rows: Array) -> Array:
        x = jnp.asarray(jax.vmap(lambda row, i: row[i])(rows, index), float)
        w = weights.reshape(weights.shape + (1,) * (x.ndim - 2))
        total = jnp.sum(jnp.where(w > 0, w * x, 0.0), axis=1)
        return jnp.where(known.reshape(-1, *[1] * (total.ndim - 1)), total, jnp.nan)

    with isolated():
        values = jax.vmap(program.value)(generations.particles)
    return jax.tree.map(mean, values if f is None else jax.vmap(jax.vmap(f))(values))


def generations_of(name: str, posterior: Posterior) -> Generations:
    """All generations of a run.

    Raises:
      ValueError: when it kept none.
    """
    if posterior.generations is None:
        raise ValueError(f'{name}: this run kept no generations; call the inference with history="full"')
    return posterior.generations


def _generation(generations: Generations, time: Array | int) -> Generations:
    return jax.tree.map(lambda x: x[time], generations)


def _or_nothing(log_density: Array) -> Array:
    return jnp.where(jnp.isnan(log_density) | jnp.isposinf(log_density), -jnp.inf, log_density)


def _agree(live: list[bool], particles: Told, counts: Bool[Array, " n"]) -> Bool[Array, ""]:
    """Whether all particles that count are alike in all that is live."""
    some = jnp.argmax(counts)
    leaves = [x for x, lasts in zip(jax.tree.leaves(particles.now), live, strict=True) if lasts and x.ndim]
    same = [jnp.all((x == x[some]).reshape(x.shape[0], -1), axis=1) for x in leaves]
    return jnp.all(functools.reduce(jnp.logical_and, same, jnp.ones_like(counts)) | ~counts)
