"""Programs whose particles look ahead: twisted by what pilots meet that run on from where they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from posterity.inference.blocks import run_weighed
from posterity.ppl.program import Program
from posterity.ppl.transform import bound, known, whole
from posterity.ppl.twist import Twisted


@struct.dataclass
class Pilots:
    """A potential-to-go estimated by copies of a particle that run ahead."""

    floor: Array | float
    steps: int = struct.field(pytree_node=False)
    number: int = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"looking {self.steps} steps ahead with {self.number} pilots"

    def __call__(self, key: Array, program: Program, particles: Any, last: Array) -> Array:
        n = last.shape[0]
        copies = program.select(particles, jnp.repeat(jnp.arange(n), self.number))
        none = jnp.zeros(n * self.number, last.dtype)
        log_potentials = run_weighed(key, program, copies, none, steps=min(self.steps, program.length))[1]
        estimate = jax.scipy.special.logsumexp(log_potentials.reshape(n, self.number), axis=1) - jnp.log(self.number)
        return jnp.where(jnp.isneginf(estimate), last + self.floor, estimate)


def lookahead(program: Program, *, steps: int, pilots: int = 1, floor: Array | float | None = None) -> Twisted:
    """The program twisted by what `pilots` copies of each particle meet in the next `steps` steps.

    psi(x_t) is the mean over the pilots of the product of their potentials, which run by the program's own law. It is a random twist
    that telescopes as `twist` does: the meaning is the same for any numbers of steps and pilots. A step costs 1 + steps * pilots
    steps of the program.

    Args:
      program: any program; where per-step inputs drive it, the pilots run on at the later ones.
      steps: how far the pilots run, 1 or more; a particle's end stops them.
      pilots: how many a particle, 1 or more.
      floor: nats, finite and at most 0, for particles none of whose pilots comes through: an estimate of zero would kill mass that
        the pilots only did not find, so psi is then what it was a step ago (1 before the first) times exp(floor). By default
        -log(2 * pilots): as if half a pilot had come as far as was expected.

    Raises:
      TypeError: when `program` is no program.
      ValueError: on steps or pilots below 1, or another floor.

    Source: Lin, Chen and Liu (2013), "Lookahead strategies for sequential Monte Carlo" (pilot lookahead).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def heads(n):
    ...     last = po.scan(lambda total, _: total + po.sample("heads", dist.Bernoulli(0.5)), 0, length=n)
    ...     po.factor("all", jnp.where(last == n, 0.0, -jnp.inf))
    ...     return last
    >>> round(float(po.exact(po.lookahead(heads(3), steps=2)).log_evidence / jnp.log(2.0)), 6)
    -3.0
    """
    program = bound("lookahead", program)
    steps, pilots = whole("lookahead", "steps", steps), whole("lookahead", "pilots", pilots)
    if floor is None:
        floor = -float(np.log(2 * pilots))
    elif not (np.shape(floor) == () and known(floor, lambda floor: np.isfinite(floor) and floor <= 0)):
        raise ValueError(f"lookahead: floor must be one finite number of nats, 0 at most, got {floor!r}")
    return Twisted(program, Pilots(floor, steps, pilots))
