"""Waste-free resampling (Dau and Chopin 2022): few ancestors, each with a chain of moves of which every state is kept."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import PRNGKeyArray

from posterity.inference.blocks import Kernel, evidence, keep, select
from posterity.inference.drive import Info
from posterity.inference.population import Population, effective_sample_size
from posterity.inference.smc.resampling import Ancestors, Systematic
from posterity.ppl.effects import draw, loop
from posterity.ppl.program import Program


def resample_chains(
    key: PRNGKeyArray,
    program: Program,
    population: Population,
    *,
    kernel: Kernel,
    time: Array | int | None,
    moves: int,
    resampling: type[Ancestors] = Systematic,
) -> tuple[Population, Info]:
    """n / (moves + 1) ancestors drawn by the weights, each moved `moves` times; all states they pass through are the new particles, of equal weight.

    Properly weighted, like resampling and moving, for every kernel that leaves the target of `time` steps invariant: no state that was
    paid for is thrown away. The ancestors are every (moves + 1)-th of those that the scheme draws, from a random one on: of each particle
    as many on average as its weight asks for, and with the systematic scheme what it would draw for so few slots.

    Args:
      population: n particles, n a multiple of moves + 1.
    """
    ancestors_key, offset_key, moves_key = jax.random.split(key, 3)
    length = moves + 1
    law = resampling(population.log_weights)
    drawn = draw(ancestors_key, "ancestors", law)
    offset = draw(offset_key, "offset", dist.CategoricalLogits(jnp.zeros(length)))
    ancestors = jnp.repeat(drawn.reshape(-1, length)[:, offset], length)
    heads = jnp.arange(0, population.size, length)
    started = keep(select(program, population, ancestors, evidence(population)), ancestors, law)

    def once(state):
        turn, now, kept, invalid, accepted = state
        now, moved = kernel(jax.random.fold_in(moves_key, turn), program, now, time=time)
        kept = jax.tree.map(lambda rows, x: rows.at[heads + turn].set(x) if x.ndim else x, kept, now)
        return turn + 1, now, kept, invalid + jnp.sum(moved.invalid, dtype=jnp.int32), accepted + jnp.sum(moved.accepted, dtype=jnp.int32)

    start = (jnp.ones((), jnp.int32), program.select(started.particles, heads), started.particles, started.invalid, jnp.zeros((), jnp.int32))
    _, _, kept, invalid, accepted = loop(lambda state: state[0] < length, once, start, limit=moves)
    share = accepted / jnp.asarray(heads.size * moves, float)
    info = Info(effective_sample_size(population.log_weights), jnp.ones((), bool), ancestors, share)
    return replace(started, particles=kept, invalid=invalid), info
