"""The blocks that particle algorithms are composed of, each with its law (Ścibior et al. 2018).

A `Population` means the measure E[exp(log_evidence) sum_i exp(log_weights_i) delta(x_i)]. `spawn`, `resample`, `advance`
and `move` keep that meaning; `evidence` pushes a population's mass out as a number and `collapse` leaves one particle of
it, which together mean the same again. So every composition of them is properly weighted:

    smc           = finish . (advance . resample)^T . spawn n
    resample-move = finish . (advance . move . resample)^T . spawn n
    pmmh          = move^k (parameters >>= collapse . smc)          where the weight is the evidence of smc
    smc2          = resample-move (parameters >>= collapse . smc)
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.drive import Info
from posterity.inference.population import Population, size_and_mass
from posterity.inference.smc.resampling import Ancestors, Systematic
from posterity.ppl.effects import cond, draw, loop
from posterity.ppl.program import Program
from posterity.ppl.transform import times


class Moved(NamedTuple):
    """What a move did."""

    accepted: Bool[Array, " n"]
    invalid: Bool[Array, " n"]  # a proposal had a potential that was NaN or +inf; it is not taken


class Kernel(Protocol):
    """Moves every particle on its own; leaves invariant the law, weighed by all potentials so far, of particles that ran for `time` steps."""

    def __call__(self, key: PRNGKeyArray, program: Any, particles: Any, *, time: Array | int | None = None) -> tuple[Any, Moved]:
        """The particles moved; `time` None means to the end."""
        ...


def spawn(key: PRNGKeyArray, program: Program, n: int) -> Population:
    """n particles from the initial law, each of weight 1/n times its potential."""
    particles, log_potential = program.init(key, n)
    log_weights, none = jnp.full(n, -jnp.log(n), log_potential.dtype), jnp.zeros((), jnp.int32)
    start = Population(particles, log_weights, jnp.zeros((), log_potential.dtype), jnp.arange(n, dtype=jnp.int32), none)
    return weigh(start, particles, log_potential)


def advance(key: PRNGKeyArray, program: Program, population: Population) -> Population:
    """One step of every particle, with its potential multiplied in."""
    return weigh(population, *program.step(key, population.particles))


def run(key: PRNGKeyArray, program: Program, particles: Any, steps: Array | int) -> Any:
    """The particles after `steps` more steps (no more than the program has), without their weights."""
    if program.length == 0:
        return particles

    def again(state):
        time, particles = state
        return time + 1, program.step(jax.random.fold_in(key, time), particles)[0]

    return loop(lambda state: state[0] < steps, again, (jnp.zeros((), jnp.int32), particles), limit=program.length)[1]


def run_weighed(key: PRNGKeyArray, program: Program, particles: Any, log_potential: Float[Array, " n"], *, steps: int) -> tuple[Any, Float[Array, " n"]]:
    """The particles after `steps` more steps, or fewer when all are done, their log potentials [n] multiplied to those given."""
    if steps == 0:
        return particles, log_potential

    def move(state):
        t, particles, log_potential = state
        particles, more = program.step(jax.random.fold_in(key, t), particles)
        return t + 1, particles, times(log_potential, more)

    start = (jnp.zeros((), jnp.int32), particles, log_potential)
    return loop(lambda state: (state[0] < steps) & ~jnp.all(program.done(state[1])), move, start, limit=steps)[1:]


def weigh(population: Population, particles: Any, log_potential: Float[Array, " n"]) -> Population:
    """The population with these particles and their potentials multiplied in.

    NaN and +inf count as zero, and are counted; not those of particles that are forbidden already, whose state may be anything.
    """
    count = lambda: jnp.sum((population.log_weights > -jnp.inf) & ~(log_potential < jnp.inf), dtype=jnp.int32)  # noqa: E731
    usual = jnp.max(log_potential) < jnp.inf  # not so if any is NaN; counting costs more, so only where it is needed
    return replace(
        population,
        particles=particles,
        log_weights=population.log_weights + jnp.where(jnp.isfinite(log_potential), log_potential, -jnp.inf),
        invalid=population.invalid + cond(usual, lambda: jnp.zeros((), jnp.int32), count),
    )


def resample(key: PRNGKeyArray, program: Program, population: Population, resampling: type[Ancestors] = Systematic) -> tuple[Population, Int[Array, " n"]]:
    """Particles copied in proportion to their weights, which become equal; their sum moves into the evidence. Also the ancestors [n]."""
    law = resampling(population.log_weights)
    ancestors = draw(key, "ancestors", law)
    return keep(select(program, population, ancestors, evidence(population)), ancestors, law), ancestors


def select(program: Program, population: Population, ancestors: Int[Array, " n"], log_evidence: Float[Array, ""]) -> Population:
    """Copies of ancestors that were drawn in proportion to the weights: of equal weight, with the `evidence` that the population had."""
    return Population(
        particles=program.select(population.particles, ancestors),
        log_weights=jnp.full_like(population.log_weights, -jnp.log(population.size)),
        log_evidence=log_evidence,
        eves=population.eves[ancestors],
        invalid=population.invalid,
    )


def keep(population: Population, ancestors: Int[Array, " n"], law: Ancestors) -> Population:
    """The selected population with the weight that each ancestor's copies have left, where `law` drew other numbers of copies than the weights ask for."""
    left = law.log_left
    return population if left is None else replace(population, log_weights=population.log_weights + left[ancestors])


def resample_below(
    threshold: Float[Array, ""] | float,
    key: PRNGKeyArray,
    program: Any,
    population: Population,
    resampling: Callable[[Array], Ancestors] = Systematic,
    copies: Callable[..., Population] = select,
) -> tuple[Population, Info]:
    """`resample` when the effective sample size is below `threshold * n`: adaptive resampling. `copies` is what `select` is, over devices perhaps."""
    ess, log_mass = size_and_mass(population.log_weights)
    log_evidence = population.log_evidence + log_mass
    degenerate = (ess < threshold * population.size) & (ess > 0)
    # Two branches: what a branch gives is in memory. In one, XLA computes the ancestors anew for every leaf that is selected, at four times the cost.
    drawn = lambda p: draw(key, "ancestors", resampling(p.log_weights))  # noqa: E731
    ancestors = cond(degenerate, drawn, lambda p: jnp.arange(p.size, dtype=jnp.int32), population)
    population = cond(degenerate, lambda p: keep(copies(program, p, ancestors, log_evidence), ancestors, resampling(p.log_weights)), lambda p: p, population)
    return population, Info(ess, degenerate, ancestors)


def move(key: PRNGKeyArray, program: Program, population: Population, kernel: Kernel, time: Array | int, times: int = 1) -> tuple[Population, Float[Array, ""]]:
    """Every particle, run for `time` steps so far, moved `times` times by the kernel; weights stay. Also the share accepted (NaN for no moves).

    How often must not depend on the particles: moving only those that were just resampled by `resample_below` would bias the result.
    """

    def once(state):
        count, particles, invalid, accepted = state
        particles, moved = kernel(jax.random.fold_in(key, count), program, particles, time=time)
        return count + 1, particles, invalid + jnp.sum(moved.invalid, dtype=jnp.int32), accepted + jnp.sum(moved.accepted, dtype=jnp.int32)

    none = jnp.zeros((), jnp.int32)
    start = (none, population.particles, population.invalid, none)
    _, particles, invalid, accepted = loop(lambda state: state[0] < times, once, start, limit=times)
    return replace(population, particles=particles, invalid=invalid), accepted / jnp.asarray(population.size * times, float)


def evidence(population: Population) -> Float[Array, ""]:
    """The population's mass, log: an unbiased estimate of the evidence up to now (nats; -inf when no particle has any weight)."""
    return population.log_evidence + jax.scipy.special.logsumexp(population.log_weights)


def collapse(key: PRNGKeyArray, population: Population) -> Int[Array, ""]:
    """The index [] of one particle drawn by its weight: delta(x_index) with weight exp(evidence) means what the population means."""
    alive = jnp.any(population.log_weights > -jnp.inf)
    return draw(key, "collapsed", dist.CategoricalLogits(jnp.where(alive, population.log_weights, 0.0), validate_args=False))
