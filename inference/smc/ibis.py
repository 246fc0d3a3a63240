"""Iterated batch importance sampling (Chopin 2002): SMC through the data, with moves of the parameters over all of the past."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray
from numpyro import handlers

from posterity.inference.blocks import Kernel
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.mcmc import kernels
from posterity.inference.mcmc.parameters import Choices, begin, function_program
from posterity.inference.posterior import Posterior
from posterity.inference.smc.resample_move import rejuvenated
from posterity.inference.smc.resampling import Ancestors
from posterity.ppl.effects import Decider, loop
from posterity.ppl.program import FunctionProgram
from posterity.ppl.transform import Transformed, active, times


class Judged(NamedTuple):
    """Particles whose choices are all in the initial law, with what the data so far say of them."""

    now: Any  # the inner program's particles
    log_potential: Float[Array, " n"]  # of all steps so far, nats
    time: Int[Array, " n"]  # steps asked for


@struct.dataclass
class Parameters(Transformed):
    """A program that draws its parameters at the beginning and nothing later: `mcmc.parameters.Parametric`. The meaning is the program's."""

    inner: FunctionProgram

    def __repr__(self) -> str:
        return f"<parameters of {self.inner}>"

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Judged, Array]:
        now, log_potential = self.inner.init(key, n)
        return Judged(now, log_potential, jnp.zeros(n, jnp.int32)), log_potential

    def step(self, key: PRNGKeyArray, particles: Judged, *, where: Array | None = None) -> tuple[Judged, Array]:
        _check(self.inner, particles.now)
        moved = active(self, particles, where)
        now, log_potential = self.inner.step(key, particles.now, where=where)
        asked = particles.time + (1 if where is None else where)
        return Judged(now, jnp.where(moved, times(particles.log_potential, log_potential), particles.log_potential), asked), log_potential

    def at(self, key: Array, choices: Choices | None, particles: Judged, time: Array | int | None) -> Judged:
        init_key, idle_key = jax.random.split(key)
        now, log_potential = self.inner.init(init_key, particles.time.shape[0]) if choices is None else begin(self.inner, choices)
        fresh = Judged(now, log_potential, jnp.zeros_like(particles.time))
        if not self.length:
            return fresh
        end = self.length if time is None else time
        again = lambda state: (state[0] + 1, self.step(idle_key, state[1])[0])  # noqa: E731 - steps draw nothing
        return loop(lambda state: state[0] < end, again, (jnp.zeros((), jnp.int32), fresh), limit=self.length)[1]

    def log_likelihood(self, particles: Judged) -> Array:
        return particles.log_potential


def ibis(
    key: PRNGKeyArray,
    program: Any,
    *,
    n: int,
    kernel: Kernel | None = None,
    moves: int = 3,
    waste_free: bool = False,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    history: bool | str = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """The posterior of parameters that are drawn once, as the data come in: iterated batch importance sampling.

    The program draws its parameters before `po.scan` and observes one datum, or one batch of them, in each step, drawing nothing there. So this is
    resample-move SMC whose moves change the parameters and judge them by all data so far. Properly weighted for every n and every number of
    moves when the kernel leaves its target invariant; with one that learns from the particles (the default, on real choices) consistent as n grows,
    and not exactly unbiased.

    Moves are made before every step, which costs moves * length^2 / 2 observations a particle: put as many data into a step as the
    posterior can take in at once, and more the later they come.

    Args:
      key: a `jax.random.key`.
      program: a state-space program without choices in its steps. (Without steps this is importance sampling.)
      n: the number of particles; a multiple of moves + 1 when `waste_free`.
      kernel: one of `po.kernels`, or another of that kind; by default `random_walk` on real choices and `uniform` on finite ones.
      moves: how many moves before each step.
      waste_free: keep all states of n / (moves + 1) chains (`waste_free` of `inference.smc`), from the second step on, in place of the last states of n chains.
      resampling, threshold, history, progress, checkpoint: as in `smc`.

    Raises:
      TypeError: when `program` is not made by `@po.program`.
      ValueError: as `smc`; when the program's steps draw, when the kernel does not fit its choices, or n not the moves.

    Source: Chopin (2002), "A sequential particle filter method for static models".

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def rate(counts):
    ...     rate = po.sample("rate", dist.Gamma(2.0, 1.0))
    ...     def step(rate, count):
    ...         po.observe("count", dist.Poisson(rate), count)
    ...         return rate
    ...     return po.scan(step, rate, counts)
    >>> posterior = po.ibis(jax.random.key(0), rate(jnp.array([4, 7, 5])), n=1_000)  # Gamma(18, 4)
    >>> bool(abs(posterior.expect() - 4.5) < 0.15)
    True
    """
    return rejuvenated(
        key,
        Parameters(function_program("ibis", program)),
        kernels.given(kernel),
        n=n,
        moves=moves,
        waste_free=waste_free,
        resampling=resampling,
        threshold=threshold,
        history=history,
        progress=progress,
        checkpoint=checkpoint,
    )


class _Draws(Decider):
    """Notes what is drawn."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            self.names.append(msg["name"])


def _check(program: FunctionProgram, particles: Any) -> None:
    """Raises ValueError when a step of the program draws."""
    key, draws = jax.random.key(0), _Draws()
    with handlers.block(), draws:
        jax.eval_shape(lambda particles: program.step(key, program.select(particles, jnp.zeros(1, jnp.int32)))[0], particles)
    if draws.names:
        drawn = ", ".join(map(repr, dict.fromkeys(draws.names)))
        raise ValueError(f"ibis: the steps of {program} draw {drawn}, but only the choices before its scan are moved; use po.resample_move, or po.smc2")
