"""Importance sampling from the program's own law: extend and weigh, never select."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from posterity.inference.blocks import advance
from posterity.inference.blocks import spawn as init
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, drive
from posterity.inference.population import Population, effective_sample_size
from posterity.inference.posterior import Posterior
from posterity.ppl.program import Program

__all__ = ["importance", "init", "step"]


def step(key: PRNGKeyArray, program: Program, population: Population) -> tuple[Population, Info]:
    """One step without selection. `importance` is `init` and this step to the end."""
    ess = effective_sample_size(population.log_weights)
    return advance(key, program, population), Info(ess, jnp.zeros((), bool), jnp.arange(population.size, dtype=jnp.int32))


def importance(
    key: PRNGKeyArray, program: Program, *, n: int, history: bool | str = True, progress: bool = False, checkpoint: Checkpoint | None = None
) -> Posterior:
    """Importance sampling: n particles run independently from the program's law, weighed by its potentials.

    Properly weighted. Unlike `smc` nothing is resampled, so the weights degenerate as steps go by.

    Args:
      key: a `jax.random.key`.
      program: what to infer.
      n: the number of particles.
      history: keep the (trivial) genealogy.
      progress: show a progress bar; the steps are then compiled one by one.
      checkpoint: as in `smc`.

    Raises:
      ValueError: on n < 1, or when a potential is NaN or +inf.
    """
    return drive(key, program, n, init, jax.tree_util.Partial(step), history=history, progress=progress, checkpoint=checkpoint)
