"""Particle Gibbs over steps: particle filters in a chain, each of which follows one text of the filter before."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.budget import Budget, Metered, Stopwatch, limited, of_work
from posterity.inference.drive import check_counts, check_key
from posterity.inference.population import normalise
from posterity.inference.search.beam import Charged
from posterity.inference.search.result import Selection
from posterity.inference.search.rounds import checked, score
from posterity.inference.smc.backward import by_weight
from posterity.inference.smc.resampling.conditional import ConditionalMultinomial
from posterity.ppl.effects import draw, followed, isolated, loop
from posterity.ppl.program import Program, as_program, runs_on_host
from posterity.ppl.side_by_side import anywhere
from posterity.ppl.transform import times

ANCESTORS = ("ancestor", "trace")


@runtime_checkable
class Repeatable(Protocol):
    """A program whose steps can be taken again by their choices: a capability."""

    def past(self, particles: Any) -> tuple[Any, Int[Array, " n"]]:
        """The choices of all steps, leaves [n, length, ...], and how many were made, [n]."""
        ...

    def told(
        self, key: PRNGKeyArray, particles: Any, given: Any, which: Bool[Array, " n"] | None = None, *, where: Bool[Array, " n"] | None = None
    ) -> tuple[Any, Float[Array, " n"], Float[Array, " n"]]:
        """A step with the choices `given` [n, ...] of those `which` (None: all): particles, log potentials, log densities of what was given, nats."""
        ...


class Path(NamedTuple):
    """A trajectory, as what was chosen on it."""

    choices: Any  # leaves [length, ...]
    steps: Int[Array, ""]


class Cloud(NamedTuple):
    """A conditional filter under way."""

    time: Int[Array, ""]
    particles: Any  # number 0 follows the path
    log_weights: Float[Array, " n"]  # of the last step, nats


def conditional(key: PRNGKeyArray, program: Any, start: tuple[Any, Float[Array, " n"]], path: Path, ancestors: str) -> Cloud:
    """A particle filter, resampled before every step, in which particle 0 makes the path's choices: conditional SMC from particles and log potentials.

    By making them anew it is a particle like the others at every step, weighed by what stands at that step, and copied with the cache as far as it
    has come. (The published code weighs the path by its next step's score.) Before a step, the path's own past is what it was ("trace"), or one drawn by
    weight times the density of the rest of the path ("ancestor"). A path of no steps leaves all particles free: then it is a plain filter.
    """
    n = start[1].shape[0]
    place = jnp.arange(n)

    def turn(cloud: Cloud) -> Cloud:
        first_key, others_key, step_key = jax.random.split(jax.random.fold_in(key, cloud.time), 3)
        particles, over = cloud.particles, jnp.all(program.done(cloud.particles))
        rest = jnp.where(place == 0, 0.0, -jnp.inf)
        if ancestors == "ancestor":
            rest, particles = to_end(program, particles, path, cloud.time)
        log_weights = jnp.where(jnp.any(cloud.log_weights > -jnp.inf), cloud.log_weights, 0.0)
        first = draw(first_key, "ancestor", by_weight(times(log_weights, jnp.where(path.steps > 0, rest, 0.0))))
        parents = (draw(others_key, "ancestors", ConditionalMultinomial(jnp.roll(log_weights, -first))) + first) % n
        chosen = program.select(particles, jnp.where(over, place, parents))
        given = jax.tree.map(lambda x: jnp.broadcast_to(x[cloud.time], (n, *x.shape[1:])), path.choices)
        particles, log_potential, _ = program.told(step_key, chosen, given, (cloud.time < path.steps) & (place == 0))
        return Cloud(cloud.time + 1, particles, jnp.where(over, cloud.log_weights, log_potential))

    def goes(cloud: Cloud) -> Array:
        return anywhere(~jnp.all(program.done(cloud.particles))) & (cloud.time < program.length)

    return loop(goes, turn, Cloud(jnp.zeros((), jnp.int32), *start), limit=program.length)


def to_end(program: Any, particles: Any, path: Path, time: Int[Array, ""]) -> tuple[Float[Array, " n"], Any]:
    """The log density, with its potentials, of the rest of the path after each particle, [n] nats; and the particles, charged for having been asked.

    -inf where the particle would not end as the path does.
    """
    n = program.done(particles).shape[0]

    def follow(state: tuple) -> tuple:
        time, later, rest = state
        more = time < path.steps
        given = jax.tree.map(lambda x: jnp.broadcast_to(x[time], (n, *x.shape[1:])), path.choices)
        later, log_potential, log_prior = program.told(jax.random.key(0), later, given, where=jnp.broadcast_to(more, (n,)))
        return time + 1, later, jnp.where(more, times(rest, times(log_prior, log_potential)), rest)

    start = (time, particles, jnp.zeros(n))
    _, later, rest = loop(lambda state: anywhere(state[0] < path.steps), follow, start, limit=program.length)
    rest = jnp.where(program.done(later), rest, -jnp.inf)
    return rest, program.charged(particles, later) if isinstance(program, Charged) else particles


def move(key: PRNGKeyArray, program: Any, particles: Any, *, n: int, ancestors: Literal["ancestor", "trace"] = "ancestor") -> Any:
    """A particle at its end (a batch of one) given another: one of a conditional filter with n particles. Leaves the program's posterior invariant."""
    init_key, cloud_key, last_key = jax.random.split(key, 3)
    choices, steps = program.past(particles)
    path = Path(jax.tree.map(lambda x: x[0], choices), steps[0])
    cloud = conditional(cloud_key, program, program.init(init_key, n), path, ancestors)
    return program.select(cloud.particles, draw(last_key, "chosen", by_weight(cloud.log_weights))[None])


class Chain(NamedTuple):
    """Sweeps under way."""

    sweep: Int[Array, ""]
    start: Any  # the particles that every sweep begins with, charged for the sweeps so far
    path: Path
    values: Any  # leaves [sweeps, n, ...]
    log_weights: Float[Array, "sweeps n"]  # normalised in each sweep
    complete: Bool[Array, "sweeps n"]


def particle_gibbs(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    sweeps: int = 4,
    ancestors: Literal["ancestor", "trace"] = "ancestor",
    budget: Budget | None = None,
) -> Selection:
    """Particle Gibbs: a particle filter, then `sweeps` - 1 more, each with one particle that follows a text drawn from the one before.

    Every sweep after the first leaves the posterior of texts invariant, for every n of at least 2: the mean over sweeps tends to the posterior as they
    become many, however few particles there are. Not properly weighted for a given number of them, and without evidence: hence a `Selection`, of all texts of
    all sweeps, each sweep weighted alike. n * sweeps rollouts in all.

    Args:
      key: a `jax.random.key`.
      program: one whose steps can be taken again, as `po.reason` makes.
      n: particles of a sweep, 2 or more.
      sweeps: 1 or more.
      ancestors: "ancestor" draws the followed text another beginning at every step, by weight times the density of its rest: it mixes over all steps, and
        costs reading that rest after each particle; "trace" keeps its own beginning.
      budget: the most that all sweeps may cost together; no seconds.

    Raises:
      TypeError: for a program whose steps cannot be taken again, or a budget in seconds.
      ValueError: for n < 2, sweeps < 1, other ancestors, or scores that are no numbers in [0, 1].

    Source: Andrieu, Doucet and Holenstein (2010); Lindsten, Jordan and Schön (2014) for ancestors; for language models Puri et al. (2025), algorithm 2.

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program = po.reason(lm, "a", reward=lambda text: 1.0 / (1 + text.generated), delimiter=";", max_steps=2, max_step_tokens=3)
    >>> len(particle_gibbs(jax.random.key(0), program, n=2, sweeps=2))
    4
    """
    program = limited("particle_gibbs", as_program(program), budget)
    check_key(key)
    check_counts(n=(n, 2), sweeps=(sweeps, 1))
    if ancestors not in ANCESTORS:
        raise ValueError(f"particle_gibbs: ancestors must be one of {', '.join(ANCESTORS)}, got {ancestors!r}")
    if not isinstance(program, Repeatable) or runs_on_host(program):
        raise TypeError(f"particle_gibbs: the steps of {program} cannot be taken again; those of po.reason can (for programs of a function: po.particle_gibbs)")
    if budget is not None and budget.seconds is not None:
        raise TypeError("particle_gibbs: its sweeps are one compiled program, which looks at no clock; give a budget in tokens, calls or rewards")
    with Stopwatch() as watch:
        found = jax.block_until_ready((swept if followed() else _compiled)(key, program, n, sweeps, ancestors))
    return found if isinstance(found.ledger.generated, Tracer) else checked("particle_gibbs", program, found, watch)


def swept(key: PRNGKeyArray, program: Any, n: int, sweeps: int, ancestors: str) -> Selection:
    """All texts of all sweeps. A sweep that was cut off has no weight, unless it is the first."""
    with isolated():
        particles, log_potential = program.init(jax.random.fold_in(key, sweeps), n)
        choices, values = program.past(particles)[0], program.value(particles)
        blank = jax.tree.map(lambda x: jnp.zeros((sweeps, *x.shape), x.dtype), values)
        path, none = Path(jax.tree.map(lambda x: x[0], choices), jnp.zeros((), jnp.int32)), jnp.zeros((sweeps, n))

        def sweep(chain: Chain) -> Chain:
            cloud_key, last_key = jax.random.split(jax.random.fold_in(key, chain.sweep))
            cloud = conditional(cloud_key, program, (chain.start, log_potential), chain.path, ancestors)
            last = draw(last_key, "chosen", by_weight(cloud.log_weights))
            value, (choices, steps), done = program.value(cloud.particles), program.past(cloud.particles), program.done(cloud.particles)
            complete = done & value.complete if isinstance(value, Metered) else done
            row = (value, normalise(cloud.log_weights), complete)
            values, log_weights, complete = jax.tree.map(lambda rows, x: rows.at[chain.sweep].set(x), (chain.values, chain.log_weights, chain.complete), row)
            start = program.charged(chain.start, cloud.particles) if isinstance(program, Charged) else chain.start
            return Chain(chain.sweep + 1, start, Path(jax.tree.map(lambda x: x[last], choices), steps[last]), values, log_weights, complete)

        chain = Chain(jnp.zeros((), jnp.int32), particles, path, blank, none, none.astype(bool))
        chain = loop(lambda chain: chain.sweep < sweeps, sweep, chain, limit=sweeps)
        work = of_work(program.value(chain.start), ~jnp.all(chain.complete))
    counted = jnp.all(chain.complete, axis=1, keepdims=True) | (jnp.arange(sweeps) == 0)[:, None]
    log_weights = normalise(jnp.where(counted, chain.log_weights, -jnp.inf).reshape(-1))
    values = jax.tree.map(lambda x: x.reshape(sweeps * n, *x.shape[2:]), chain.values)
    scores = score("particle_gibbs", program, values)
    return Selection(values, log_weights, jnp.array(jnp.nan), scores, chain.complete.reshape(-1), work, "particle_gibbs")


_compiled = jax.jit(swept, static_argnames=("n", "sweeps", "ancestors"))
