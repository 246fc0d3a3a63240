"""Programs weighed ahead of time by what is still to come."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from posterity.ppl.effects import particle_map
from posterity.ppl.program import Program
from posterity.ppl.transform import Transformed, active, bound, times


class Twist(NamedTuple):
    """Particles with the potential-to-go that they have been weighed by in advance."""

    now: Any  # the inner program's particles
    log_psi: Array  # [n], nats; 0 once a particle is done


@struct.dataclass
class Twisted(Transformed):
    """A program weighed by psi(x_t) / psi(x_{t-1}) beside its potentials; see `twist`."""

    log_psi: Any  # `log_psi(key, program, particles, last)` to [n], where `last` [n] is what it was a step ago

    def __repr__(self) -> str:
        return f"<{self.inner} {self.log_psi}>"

    def init(self, key: Array, n: int) -> tuple[Twist, Array]:
        init_key, twist_key = jax.random.split(key)
        now, log_potential = self.inner.init(init_key, n)
        log_psi = self._to_go(twist_key, now, jnp.zeros_like(log_potential))
        return Twist(now, log_psi), times(log_potential, log_psi)

    def step(self, key: Array, particles: Twist, *, where: Array | None = None) -> tuple[Twist, Array]:
        step_key, twist_key = jax.random.split(key)
        moved, last = active(self, particles, where), particles.log_psi
        now, log_potential = self.inner.step(step_key, particles.now, where=where)
        log_psi = jnp.where(moved, self._to_go(twist_key, now, last), last)
        paid = jnp.where(jnp.isneginf(last), 0.0, last)  # a particle that psi forbade has no weight to give back
        return Twist(now, log_psi), jnp.where(moved, times(log_potential, log_psi) - paid, 0.0)

    def _to_go(self, key: Array, particles: Any, last: Array) -> Array:
        return jnp.where(self.inner.done(particles), 0.0, self.log_psi(key, self.inner, particles, last))


@struct.dataclass
class Given:
    """A potential-to-go that is a function of a particle's value."""

    function: Callable[[Any], Array]

    def __repr__(self) -> str:
        function = getattr(self.function, "func", self.function)
        return f"twisted by {getattr(function, '__name__', type(function).__name__)}"

    def __call__(self, key: Array, program: Program, particles: Any, last: Array) -> Array:
        log_psi = jnp.asarray(particle_map(self.function, (0,))(program.value(particles)), last.dtype)
        if log_psi.shape != last.shape:
            raise ValueError(f"twist: potential_to_go must return one number, it returned shape {log_psi.shape[1:]}")
        return log_psi


def twist(program: Program, potential_to_go: Callable[[Any], Array]) -> Twisted:
    """The program with psi(x_t), a guess of what the potentials after time t will come to, multiplied in as soon as x_t is there.

    G_0 psi(x_0) and then G_t psi(x_t) / psi(x_{t-1}) are its potentials, and psi is 1 when a particle is done: the product
    over a run is the program's own, so the meaning is the same whenever psi > 0 where mass is still to come (-inf says that
    there is none). With psi(x) = E[prod of the later potentials | x], no step changes the weights but by chance of its own.

    Args:
      program: any program.
      potential_to_go: of one particle's value, log psi in nats: one number, finite or -inf. Arrays in it (a learned psi: a flax
        module, a `jax.tree_util.Partial` with parameters) are leaves of the program; a plain function is compiled code.

    Raises:
      TypeError: when `program` is no program or `potential_to_go` cannot be called.
      ValueError: from `init`, when `potential_to_go` does not return one number.

    Source: Whiteley and Lee (2014); Naesseth, Lindsten and Schön (2019); for language models, Zhao et al. (2024).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def heads(n):
    ...     last = po.scan(lambda total, _: total + po.sample("heads", dist.Bernoulli(0.5)), 0, length=n)
    ...     po.factor("all", jnp.where(last == n, 0.0, -jnp.inf))
    ...     return last
    >>> twisted = po.twist(heads(3), lambda total: jnp.log(4.0) * total)
    >>> round(float(po.exact(twisted).log_evidence / jnp.log(2.0)), 6)
    -3.0
    """
    if not callable(potential_to_go):
        raise TypeError(f"twist: potential_to_go must be a function of a particle's value, got {potential_to_go!r}")
    plain = jax.tree_util.all_leaves([potential_to_go])
    return Twisted(bound("twist", program), Given(jax.tree_util.Partial(potential_to_go) if plain else potential_to_go))
