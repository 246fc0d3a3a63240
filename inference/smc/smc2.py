"""SMC^2 (Chopin, Jacob and Papaspiliopoulos 2013): resample-move over parameters, each with an inner SMC."""

from collections.abc import Callable
from typing import Any

import jax
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray

from posterity.inference.checkpoint import Checkpoint
from posterity.inference.mcmc import pmmh
from posterity.inference.posterior import Posterior
from posterity.inference.smc.nested import nested
from posterity.inference.smc.resample_move import rejuvenated
from posterity.inference.smc.resampling import Ancestors
from posterity.ppl.program import Program


def smc2(
    key: PRNGKeyArray,
    parameters: Program | dist.Distribution,
    model: Callable[[Any], Program],
    *,
    n: int,
    inner: int,
    moves: int = 1,
    proposal: Callable[[Any], dist.Distribution] | None = None,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    history: bool | str = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """The posterior of parameters and of a model's value under them, and the evidence, as observations come in.

    This is resample-move on `nested(parameters, model, n=inner)` with PMMH as its move: new parameters are judged by a fresh inner SMC
    up to the present step. Properly weighted for every `n`, `inner` and `moves`.

    Args:
      key: a `jax.random.key`.
      parameters, model, proposal: as in `pmmh`.
      n: the number of parameter particles.
      inner: the number of inner particles of each.
      moves: how many PMMH moves before each step.
      resampling, threshold: of both levels, as in `smc`.
      history, progress, checkpoint: as in `smc`.

    Returns:
      A `Posterior` of `Draw`s (`parameters`, `value`).

    Raises:
      TypeError, ValueError: as `pmmh` and `resample_move`.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def flips(bias):
    ...     def step(heads, _):
    ...         head = po.sample("head", dist.Bernoulli(bias))
    ...         po.factor("two in a row", jax.numpy.where(head, 0.0, -jax.numpy.inf))
    ...         return heads + head
    ...     return po.scan(step, 0, length=2)
    >>> posterior = po.smc2(jax.random.key(0), dist.Uniform(0.0, 1.0), flips, n=500, inner=8)  # two heads: Beta(3, 1), evidence 1/3
    >>> bool(abs(posterior.expect(lambda draw: draw.parameters) - 0.75) < 0.05), bool(abs(posterior.log_evidence + 1.1) < 0.2)
    (True, True)
    """
    program = nested(parameters, model, n=inner, resampling=resampling, threshold=threshold)
    kernel = jax.tree_util.Partial(pmmh.move, proposal=pmmh.proposes(parameters, proposal))
    return rejuvenated(
        key,
        program,
        kernel,
        n=n,
        moves=moves,
        resampling=resampling,
        threshold=threshold,
        history=history,
        progress=progress,
        checkpoint=checkpoint,
    )
