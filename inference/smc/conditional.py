"""Conditional SMC (Andrieu, Doucet and Holenstein 2010): a kernel on trajectories, by an SMC in which one particle keeps the given path."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import PRNGKeyArray

from posterity.inference.mcmc.metropolis import upto, where
from posterity.ppl.effects import draw, loop
from posterity.ppl.recorded import Recorded, Trajectory


def conditional_smc(key: PRNGKeyArray, program: Recorded, particles: Trajectory, *, n: int) -> Trajectory:
    """A new trajectory given one: SMC with `n` particles of which number 0 follows the given path, then one drawn by the final weights.

    Leaves the law of the program's trajectories invariant, for every n of at least 2. Ancestors of the others are drawn
    independently by the weights, before every step; particle 0 stays its own.

    Args:
      key: a `jax.random.key`.
      program: a recorded program.
      particles: one trajectory of it, run to its end (a batch of one).
      n: the number of particles, the given one included.

    Raises:
      ValueError: when n is less than 2, or more than one trajectory is given.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> program = po.recorded(walk(jnp.array([1.0, 2.0])))
    >>> path, _ = program.init(jax.random.key(0), 1)
    >>> for key in jax.random.split(jax.random.key(1), 2):
    ...     path, _ = program.step(key, path)
    >>> path = po.conditional_smc(jax.random.key(2), program, path, n=10)
    >>> path.states.carry[0].shape  # one trajectory of the initial state and two steps
    (1, 3)
    """
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be at least 2 particles (one keeps the path), got {n!r}")
    if particles.steps.shape != (1,):
        raise ValueError(f"particles must be one trajectory, a batch of one, got {particles.steps.shape[0]}")
    init_key, loop_key, choice_key = jax.random.split(key, 3)
    kept, keeps = program.select(particles, jnp.zeros(n, jnp.int32)), jnp.arange(n) == 0

    def follow(fresh, log_weights, time):
        """Particle 0 on the given path: as it was after `time` steps. Where the path had ended, it stands still by itself."""
        given = keeps & (time <= kept.steps)
        return where(given, upto(kept, time, fresh), fresh), jnp.where(given, kept.log_potentials[:, time], log_weights)

    def step(state):
        time, cloud, log_weights = state
        ancestors_key, step_key = jax.random.split(jax.random.fold_in(loop_key, time))
        others = draw(ancestors_key, "ancestors", _by_weight(log_weights, (n - 1,)))
        cloud = program.select(cloud, jnp.concatenate([jnp.zeros(1, others.dtype), others]))
        return time + 1, *follow(*program.step(step_key, cloud), time + 1)

    state = (jnp.zeros((), jnp.int32), *follow(*program.init(init_key, n), 0))
    if program.length:
        state = loop(lambda state: state[0] < program.length, step, state, limit=program.length)
    chosen = draw(choice_key, "chosen", _by_weight(state[2], ()))
    return program.select(state[1], chosen[None])


def _by_weight(log_weights: Array, shape: tuple[int, ...]) -> dist.Distribution:
    """Indices drawn independently by the weights; uniform when all are zero, as they are when the given path is forbidden."""
    valid = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    logits = jnp.where(jnp.any(valid > -jnp.inf), valid, 0.0)
    return dist.CategoricalLogits(jnp.broadcast_to(logits, (*shape, logits.shape[0])), validate_args=False)
