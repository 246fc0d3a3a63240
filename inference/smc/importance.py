"""Importance sampling from the program's own law: extend and weigh, never select."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from posterity.inference.drive import Info, drive
from posterity.ppl.population import Population, effective_sample_size
from posterity.ppl.posterior import Posterior
from posterity.ppl.program import Program


def init(key: Array, program: Program, n: int) -> Population:
    """n particles from the initial law, weighed by its potentials."""
    particles, log_potential = program.init(key, n)
    log_weights, none = jnp.full(n, -jnp.log(n), log_potential.dtype), jnp.zeros((), jnp.int32)
    start = Population(particles, log_weights, jnp.zeros((), log_potential.dtype), jnp.arange(n, dtype=jnp.int32), none)
    return weigh(start, particles, log_potential)


def step(key: Array, program: Program, population: Population) -> tuple[Population, Info]:
    """One step without selection. `importance` is `init` and this step to the end."""
    ess = effective_sample_size(population.log_weights)
    particles, log_potential = program.step(key, population.particles)
    return weigh(population, particles, log_potential), Info(ess, jnp.zeros((), bool), jnp.arange(population.size, dtype=jnp.int32))


def weigh(population: Population, particles, log_potential: Array) -> Population:
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


def importance(key: Array, program: Program, *, n: int, history: bool = True, progress: bool = False) -> Posterior:
    """Importance sampling: n particles run independently from the program's law, weighed by its potentials.

    Properly weighted. Unlike `smc` nothing is resampled, so the weights degenerate as steps go by.

    Args:
      key: a `jax.random.key`.
      program: what to infer.
      n: the number of particles.
      history: keep the (trivial) genealogy.
      progress: show a progress bar; the steps are then compiled one by one.

    Raises:
      ValueError: on n < 1, or when a potential is NaN or +inf.
    """
    return drive(key, program, n, init, jax.tree_util.Partial(step), history=history, progress=progress)
