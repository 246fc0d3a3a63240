"""Annealed importance sampling as a program (Neal 2001): from the prior to the posterior in steps, which can be walked back."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Float, Int

from posterity.inference.blocks import Kernel, Moved
from posterity.inference.mcmc import kernels
from posterity.inference.mcmc.parameters import Choices, begin, supports, to_reals
from posterity.inference.mcmc.paths import Path, Tempered
from posterity.inference.posterior import Posterior
from posterity.inference.recorded import Trajectory
from posterity.inference.smc.tempering import tempering
from posterity.ppl.effects import loop
from posterity.ppl.program import FunctionProgram

PILOT = 1_000  # particles that find a ladder and covariances
JITTER = 1e-6  # of the mean variance: keeps a covariance of few distinct particles positive


@struct.dataclass
class Bridge(Path):
    """A static program with its likelihood coming in by powers: a step moves the particles at one exponent and weighs them for the next.

    Its final values and its evidence are the static program's, in law, when the kernel leaves every target prior * likelihood^exponent invariant.
    """

    ladder: Float[Array, " stages"]  # increasing, the last 1
    kernel: Partial
    moves: int = struct.field(pytree_node=False)

    def init(self, key: Array, n: int) -> tuple[Tempered, Array]:
        return self.raised(Path.init(self, key, n)[0], self.ladder[0])

    def step(self, key: Array, particles: Tempered, *, where: Array | None = None) -> tuple[Tempered, Array]:
        exponent = particles.exponent[0]
        return self.raised(self.moved(key, particles), jnp.min(jnp.where(self.ladder > exponent, self.ladder, 1.0)))

    def moved(self, key: Array, particles: Tempered) -> Tempered:
        """The particles moved at their exponent."""

        def once(state: tuple) -> tuple:
            count, particles = state
            return count + 1, self.kernel(jax.random.fold_in(key, count), self, particles, time=0)[0]

        return loop(lambda state: state[0] < self.moves, once, (jnp.zeros((), jnp.int32), particles), limit=self.moves)[1]


def annealed(key: Array, program: FunctionProgram, ladder: Any, kernel: Kernel | None, moves: int) -> tuple[Bridge, Posterior]:
    """A program's bridge, and the posterior of a pilot run, in which the ladder and the covariances that were not given are found.

    Raises:
      ValueError: on a ladder that does not rise to 1, or a program without choices.
    """
    pilot_key, prior_key = jax.random.split(key)
    pilot = tempering(pilot_key, program, n=PILOT, ladder=ladder)
    if not pilot.choices:
        raise ValueError(f"evidence: {program} chooses nothing, so that its evidence is the product of its potentials")
    rungs = jnp.asarray(pilot.ladder, float)
    moving = default_kernel(prior_key, program, pilot) if kernel is None else kernels.given(kernel)
    return Bridge(program, len(rungs), rungs, moving, moves), pilot


def default_kernel(key: Array, program: FunctionProgram, pilot: Posterior) -> Partial:
    """A reversible kernel that learns nothing: a random walk on real choices, `uniform` on finite ones between two of these; `prior` for other choices.

    The random walk's covariance at an exponent has the precision between prior's and posterior's, by the exponent: right where all is Gaussian.
    """
    choices = program.init(key, PILOT)[0].choices
    laws = supports(program, choices)
    real = tuple(name for name, law in laws.items() if not getattr(law.support, "is_discrete", True))
    finite = tuple(name for name, law in laws.items() if name not in real and law.has_enumerate_support)
    if not laws or len(real) + len(finite) < len(choices):
        return kernels.given(kernels.prior())
    if not real:
        return kernels.given(kernels.uniform(*finite))
    ends = ((choices, jnp.full(PILOT, 1 / PILOT)), (pilot.choices, pilot.weights))
    walk = Partial(_walk_on(real), precisions=jnp.stack([_precision(program, real, *end) for end in ends]))
    return kernels.given(kernels.cycle(walk, kernels.uniform(*finite), walk)) if finite else walk


def _walk(
    key: Array, program: Bridge, particles: Tempered, *, time: Any = None, names: tuple[str, ...], precisions: Float[Array, "2 d d"]
) -> tuple[Tempered, Moved]:
    exponent, d = particles.exponent[0], precisions.shape[1]
    covariance = jnp.linalg.inv((1 - exponent) * precisions[0] + exponent * precisions[1]) * (2.38**2 / d)
    return kernels.random_walk(*names, covariance=covariance)(key, program, particles, time=time)


@functools.cache
def _walk_on(names: tuple[str, ...]) -> Callable:
    """One object for each choice of names: jit knows compiled code again by it."""
    return functools.partial(_walk, names=names)


def _precision(program: FunctionProgram, names: tuple[str, ...], choices: Choices, weights: Any) -> Array:
    """The inverse covariance of weighted real choices in coordinates without constraints."""
    reals, _ = to_reals(program, names, choices)
    x = np.asarray(jax.vmap(lambda row: ravel_pytree(row)[0])(reals), float)
    inside = np.isfinite(x).all(axis=1)
    covariance = np.atleast_2d(np.cov(x[inside].T, aweights=np.asarray(weights, float)[inside]))
    return jnp.asarray(np.linalg.inv(covariance + JITTER * np.trace(covariance) / len(covariance) * np.eye(len(covariance))), float)


@jax.jit
def brought_down(key: Array, bridge: Bridge, choices: Choices) -> Trajectory:
    """Of each draw of the posterior, [m, ...] by name, a trajectory [m, 1, ...] of the bridge that ends in it, as `descent` finds it."""
    keys = jax.random.split(key, jax.tree.leaves(choices)[0].shape[0])
    return lax.map(lambda row: descent(row[0], bridge, row[1]), (keys, choices))


def descent(key: Array, bridge: Bridge, choices: Choices) -> Trajectory:
    """A trajectory (a batch of one) of the bridge that ends in these choices: one of the bridge's posterior, when they are one of the program's.

    The kernel must be reversible: then its moves, from one exponent down to the one before, are what led there.
    """
    now, log_likelihood = begin(bridge.inner, jax.tree.map(lambda x: x[None], choices))
    end = Tempered(now, log_likelihood, jnp.ones_like(log_likelihood))

    def back(state: tuple) -> tuple:
        time, later, states = state
        earlier = bridge.moved(jax.random.fold_in(key, time), later._replace(exponent=jnp.full_like(log_likelihood, bridge.ladder[time])))
        return time - 1, earlier, jax.tree.map(lambda rows, x: rows.at[time].set(x), states, earlier)

    start = (jnp.asarray(bridge.stages - 2), end, jax.tree.map(lambda x: jnp.broadcast_to(x, (bridge.stages, *x.shape)), end))
    *_, states = loop(lambda state: state[0] >= 0, back, start, limit=bridge.length)
    log_potentials = jnp.diff(bridge.ladder, prepend=0.0)[:, None] * states.log_likelihood
    return as_trajectory(end, states, log_potentials, jnp.full(1, bridge.length, jnp.int32))


def as_trajectory(now: Any, states: Any, log_potentials: Float[Array, "times 1"], steps: Int[Array, " 1"]) -> Trajectory:
    """A particle (a batch of one) with its states at all times, leading axis times, as `recorded` has them."""
    own = jax.tree.map(lambda rows, x: jnp.swapaxes(rows, 0, 1) if x.ndim else rows[None], states, now)
    return Trajectory(now, own, log_potentials.T, steps, jnp.full(1, log_potentials.shape[0] - 1, jnp.int32))
