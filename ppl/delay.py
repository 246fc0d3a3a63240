"""Programs whose potentials come later."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array

from posterity.ppl.program import Program
from posterity.ppl.transform import Transformed, active, bound, whole


class Owing(NamedTuple):
    """Particles with the potentials that they have yet to be weighed by."""

    now: Any  # the inner program's particles
    owed: Array  # [n, steps], nats, the next to come first; 0 once a particle is done


@struct.dataclass
class Delayed(Transformed):
    """A program whose potentials take effect later; see `delay`."""

    steps: int = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<{self.inner} delayed by {self.steps} steps>"

    def init(self, key: Array, n: int) -> tuple[Owing, Array]:
        now, log_potential = self.inner.init(key, n)
        return self._pay(now, jnp.zeros((n, self.steps), log_potential.dtype), log_potential)

    def step(self, key: Array, particles: Owing, *, where: Array | None = None) -> tuple[Owing, Array]:
        moved = active(self, particles, where)
        now, log_potential = self.inner.step(key, particles.now, where=where)
        after, paid = self._pay(now, particles.owed, log_potential)
        return Owing(now, jnp.where(moved[:, None], after.owed, particles.owed)), jnp.where(moved, paid, 0.0)

    def _pay(self, now: Any, owed: Array, log_potential: Array) -> tuple[Owing, Array]:
        """What is due now [n], and what is still owed."""
        forbidden = jnp.any(jnp.isneginf(owed), axis=1)  # and its later potentials may be anything
        bills = jnp.concatenate([owed, jnp.where(forbidden, -jnp.inf, log_potential)[:, None]], axis=1)
        done = self.inner.done(now)
        return Owing(now, jnp.where(done[:, None], 0.0, bills[:, 1:])), jnp.where(done, jnp.sum(bills, axis=1), bills[:, 0])


def delay(program: Program, *, steps: int) -> Delayed:
    """The program with every potential, G_0 included, taking effect `steps` steps later; all that is withheld does when a particle is done.

    The product over a run is the program's own, so the meaning is the same; what changes is what an algorithm resamples by: at time t,
    the potentials up to t - steps. Zero potentials wait as well.

    Args:
      program: any program.
      steps: by how many, 1 or more.

    Raises:
      TypeError: when `program` is no program.
      ValueError: on steps below 1.

    Source: Lin, Chen and Liu (2013), "Lookahead strategies for sequential Monte Carlo" (delayed weighting).

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def rewarded():
    ...     def step(total, _):
    ...         x = po.sample("x", dist.Bernoulli(0.5))
    ...         po.factor("reward", jnp.log(3.0) * x)
    ...         return total + x
    ...     return po.scan(step, 0, length=3)
    >>> round(float(po.exact(po.delay(rewarded(), steps=2)).log_evidence / jnp.log(2.0)), 6)
    3.0
    """
    return Delayed(bound("delay", program), whole("delay", "steps", steps))
