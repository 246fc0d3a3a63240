"""Parallel tempering of whole runs: copies of every chain at powers of the potentials, which exchange their runs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float

from posterity.inference.blocks import Moved
from posterity.inference.mcmc.metropolis import log_potential
from posterity.inference.mcmc.on_runs import needs_scores
from posterity.inference.mcmc.particle_gibbs import exchanged
from posterity.inference.mcmc.runs import Kept, Runs
from posterity.inference.mcmc.tries import of_chain
from posterity.ppl.effects import particle_map


@struct.dataclass
class Exchanging:
    """Moves all copies of all chains by a kernel on runs, then lets neighbours exchange; see `kernels.parallel_tempering`.

    Row c * n + i is the copy of chain i whose potentials count to the power `exponents[c]`: the chains that are kept come first.
    """

    kernel: Any
    exponents: Float[Array, " copies"]

    @property
    def scored(self) -> bool:
        """Whether its kernel needs the densities of choices."""
        return needs_scores(self.kernel)

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        copies = self.exponents.shape[0]
        if jnp.ndim(program.exponent) == 0 or particles.chains % copies:
            raise ValueError("parallel_tempering is for po.mcmc: it goes around other kernels, not into a cycle of them, nor into an annealed one")
        move_key, swap_key = jax.random.split(key)
        runs, moved = self.kernel(move_key, program, particles, time=time)
        n = runs.chains // copies
        scores = log_potential(runs)[: runs.chains].reshape(copies, n).T  # pyright: ignore[reportArgumentType] - runs have what that asks for
        one = lambda key, scores: exchanged(key, scores, self.exponents)  # noqa: E731
        order = particle_map(one, (0, 0))(jax.random.split(swap_key, n), scores).T  # [copies, n]
        came_from = (order * n + jnp.arange(n)).reshape(-1)
        swapped = (order != jnp.arange(copies)[:, None]).reshape(-1)
        return program.rows(runs, of_chain(runs, came_from)), Moved(moved.accepted[came_from] | swapped, moved.invalid)
