"""Programs as paths of targets, from their prior to what they mean."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from posterity.inference.blocks import run_weighed
from posterity.ppl.program import Program
from posterity.ppl.transform import Transformed, active, bound, known


class Rung(NamedTuple):
    """Particles that have run to the end, on their way up the ladder of exponents."""

    now: Any  # the inner program's particles, done
    log_likelihood: Array  # [n], nats: all their potentials
    height: Array  # [n] int32, how many exponents have been reached


@struct.dataclass
class Tempered(Transformed):
    """A program whose steps raise its potentials' exponent; see `temper`."""

    exponents: Array  # [length]

    def __repr__(self) -> str:
        return f"<{self.inner} tempered in {self.length} steps>"

    @property
    def length(self) -> int:
        return self.exponents.shape[0]

    def init(self, key: Array, n: int) -> tuple[Rung, Array]:
        init_key, run_key = jax.random.split(key)
        now, log_potential = self.inner.init(init_key, n)
        now, log_likelihood = run_weighed(run_key, self.inner, now, log_potential, steps=self.inner.length)
        return Rung(now, log_likelihood, jnp.zeros(n, jnp.int32)), jnp.zeros_like(log_likelihood)

    def step(self, key: Array, particles: Rung, *, where: Array | None = None) -> tuple[Rung, Array]:
        moved = active(self, particles, where)
        rise = jnp.diff(self.exponents, prepend=0.0)[particles.height]
        log_potential = jnp.where(moved & (rise != 0), rise * particles.log_likelihood, 0.0)  # 0 times -inf is no potential
        return particles._replace(height=particles.height + moved), log_potential

    def done(self, particles: Rung) -> Array:
        return particles.height >= self.length


def temper(program: Program, exponents: Array) -> Tempered:
    """The program in other steps: it runs to its end at once, then each step raises the exponent beta of all its potentials.

    After step k the particles are weighed for prior x G^beta_k, G being the product of the program's potentials over the whole run.
    Ending at 1 the meaning is the program's; ending elsewhere, it is the tempered measure prior x G^beta at the last exponent.
    With moves that leave each target invariant it is annealed importance sampling, and with selection an SMC sampler.

    Args:
      program: any program.
      exponents: [steps], increasing, the first above 0: where the path goes after the prior. A leaf of the program.

    Raises:
      TypeError: when `program` is no program.
      ValueError: when exponents are not a row of finite, positive, increasing numbers.

    Source: Neal (2001), "Annealed importance sampling"; Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers".

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin():
    ...     heads = po.sample("heads", dist.Bernoulli(0.5))
    ...     po.factor("odds", jnp.log(9.0) * heads)
    ...     return heads
    >>> [round(float(po.exact(po.temper(coin(), jnp.array(path))).expect()), 6) for path in ([0.25, 1.0], [0.25, 0.5])]
    [0.9, 0.75]
    """
    program = bound("temper", program)
    rising = lambda row: np.isfinite(row).all() and (np.diff(row, prepend=0.0) > 0).all()  # noqa: E731
    if not (np.ndim(exponents) == 1 and np.size(exponents) and known(exponents, rising)):
        raise ValueError(f"temper: exponents must be a row of increasing finite numbers, the first above 0, got {exponents}")
    return Tempered(program, jnp.asarray(exponents, float))
