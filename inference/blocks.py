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
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from posterity.inference.drive import Info
from posterity.inference.smc.resampling import Ancestors, Systematic
from posterity.ppl.effects import cond, draw, loop
from posterity.ppl.population import Population, effective_sample_size
from posterity.ppl.program import Program

Kernel = Callable[[Array, Program, Any], tuple[Any, Array]]  # (key, program, particles) -> particles, which of them moved [n]


def spawn(key: Array, program: Program, n: int) -> Population:
    """n particles from the initial law, each of weight 1/n times its potential."""
    particles, log_potential = program.init(key, n)
    log_weights, none = jnp.full(n, -jnp.log(n), log_potential.dtype), jnp.zeros((), jnp.int32)
    start = Population(particles, log_weights, jnp.zeros((), log_potential.dtype), jnp.arange(n, dtype=jnp.int32), none)
    return weigh(start, particles, log_potential)


def advance(key: Array, program: Program, population: Population) -> Population:
    """One step of every particle, with its potential multiplied in."""
    return weigh(population, *program.step(key, population.particles))


def weigh(population: Population, particles: Any, log_potential: Array) -> Population:
    """The population with these particles and their potentials multiplied in.

    NaN and +inf count as zero, and are counted; not those of particles that are forbidden already, whose state may be anything.
    """
    invalid = (jnp.isnan(log_potential) | jnp.isposinf(log_potential)) & (population.log_weights > -jnp.inf)
    return replace(
        population,
        particles=particles,
        log_weights=population.log_weights + jnp.where(jnp.isfinite(log_potential), log_potential, -jnp.inf),
        invalid=population.invalid + jnp.sum(invalid, dtype=jnp.int32),
    )


def resample(key: Array, program: Program, population: Population, resampling: type[Ancestors] = Systematic) -> tuple[Population, Array]:
    """Particles copied in proportion to their weights, which become equal; their sum moves into the evidence. Also the ancestors [n]."""
    n = population.size
    ancestors = draw(key, "ancestors", resampling(population.log_weights))
    return Population(
        particles=program.select(population.particles, ancestors),
        log_weights=jnp.full_like(population.log_weights, -jnp.log(n)),
        log_evidence=evidence(population),
        eves=population.eves[ancestors],
        invalid=population.invalid,
    ), ancestors


def resample_below(
    threshold: Array | float, key: Array, program: Program, population: Population, resampling: type[Ancestors] = Systematic
) -> tuple[Population, Info]:
    """`resample` when the effective sample size is below `threshold * n`: adaptive resampling."""
    ess = effective_sample_size(population.log_weights)
    degenerate = (ess < threshold * population.size) & (ess > 0)
    population, ancestors = cond(degenerate, lambda p: resample(key, program, p, resampling), _keep, population)
    return population, Info(ess, degenerate, ancestors)


def move(key: Array, program: Program, population: Population, kernel: Kernel, times: int = 1) -> Population:
    """Every particle moved `times` times by a kernel that leaves invariant what its particles have been weighed for so far; weights stay."""

    def once(state):
        time, particles = state
        return time + 1, kernel(jax.random.fold_in(key, time), program, particles)[0]

    start = (jnp.zeros((), jnp.int32), population.particles)
    return replace(population, particles=loop(lambda state: state[0] < times, once, start, limit=times)[1])


def evidence(population: Population) -> Array:
    """The population's mass, log: an unbiased estimate of the evidence up to now (nats; -inf when no particle has any weight)."""
    return population.log_evidence + jax.scipy.special.logsumexp(population.log_weights)


def collapse(key: Array, population: Population) -> Array:
    """The index [] of one particle drawn by its weight: delta(x_index) with weight exp(evidence) means what the population means."""
    alive = jnp.any(population.log_weights > -jnp.inf)
    return draw(key, "collapsed", dist.Categorical(logits=jnp.where(alive, population.log_weights, 0.0)))


def _keep(population: Population) -> tuple[Population, Array]:
    return population, jnp.arange(population.size, dtype=jnp.int32)
