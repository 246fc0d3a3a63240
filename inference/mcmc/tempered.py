"""Parallel tempering (Geyer 1991): copies of a chain at powers of the likelihood, which exchange their states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.blocks import Kernel, Moved
from posterity.inference.mcmc.exchanging import Exchanging
from posterity.inference.mcmc.on_runs import moves_runs
from posterity.inference.mcmc.particle_gibbs import exchanged
from posterity.inference.mcmc.paths import Path, Tempered
from posterity.ppl.effects import particle_map
from posterity.ppl.program import FunctionProgram
from posterity.ppl.transform import known


def parallel_tempering(kernel: Kernel, *, exponents: Any = (1.0, 0.6, 0.35, 0.2, 0.1, 0.04, 0.0)) -> Kernel:
    """Every chain with copies of itself, moved by the kernel each for its power of the likelihood; then every second pair of neighbours may exchange states.

    Where the posterior has modes that the kernel does not cross, copies near the prior do. Leaves the product of prior * likelihood^exponent
    invariant when the kernel does. What it learns it learns for every exponent. For `po.mcmc` alone: `po.tempering` has its own way between the powers.

    Args:
      kernel: one of `po.kernels` that moves particles (not one of NumPyro's), or whole runs, of texts say; then the powers are those of the potentials.
      exponents: [copies], falling from 1, the chain that is kept; 0 is the prior.

    Raises:
      ValueError: on exponents that do not fall from 1, or go below 0.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def square(y):
    ...     x = po.sample("x", dist.Normal(0.0, 2.0))
    ...     po.observe("y", dist.Normal(x**2, 0.2), y)
    ...     return x
    >>> chain = po.mcmc(jax.random.key(0), square(4.0), kernel=po.kernels.parallel_tempering(po.kernels.random_walk()))  # x is 2 or -2
    >>> bool(abs(chain.prob(lambda x: x > 0) - 0.5) < 0.1)
    True
    """
    if not (np.ndim(exponents) == 1 and known(exponents, lambda row: row[:1].tolist() == [1.0] and (np.diff(row) < 0).all() and row[-1] >= 0)):
        raise ValueError(f"parallel_tempering: exponents must fall from 1 and not below 0, got {exponents!r}")
    if moves_runs(kernel):
        return Exchanging(kernel, jnp.asarray(exponents, float))
    return Partial(_exchanging, kernel=kernel if isinstance(kernel, Partial) else Partial(kernel), exponents=jnp.asarray(exponents, float))


def copies_of(kernel: Any) -> Array | None:
    """The exponents, if the kernel is parallel tempering."""
    return kernel.keywords["exponents"] if isinstance(kernel, Partial) and getattr(kernel.func, "fun", kernel.func) is _exchanging else None


@struct.dataclass
class Copies:
    """The product of prior * likelihood^exponent of a static program: its particles are as many of the program's as there are exponents, one after another."""

    inner: FunctionProgram
    exponents: Float[Array, " copies"]

    def __repr__(self) -> str:
        return f"<{self.exponents.shape[0]} copies of {self.inner}>"

    length = 0

    @property
    def path(self) -> Path:
        """What each copy is a particle of."""
        return Path(self.inner, 1)

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Tempered, Array]:
        copies = self.exponents.shape[0]
        particles, _ = self.path.init(key, n * copies)
        particles = particles._replace(exponent=jnp.tile(self.exponents.astype(particles.exponent.dtype), n))
        return particles, jnp.sum(self.path.log_likelihood(particles).reshape(n, copies), axis=1)

    def step(self, key: PRNGKeyArray, particles: Tempered, *, where: Array | None = None) -> tuple[Tempered, Array]:
        n = particles.exponent.shape[0] // self.exponents.shape[0]
        return particles, jnp.zeros(n)

    def select(self, particles: Tempered, ancestors: Array) -> Tempered:
        copies = self.exponents.shape[0]
        return self.path.select(particles, (ancestors[:, None] * copies + jnp.arange(copies)).reshape(-1))

    def done(self, particles: Tempered) -> Array:
        return jnp.ones(particles.exponent.shape[0] // self.exponents.shape[0], bool)

    def value(self, particles: Tempered) -> Any:
        """Of every copy, [n, copies, ...]."""
        return self._apart(self.path.value(particles))

    def choices(self, particles: Tempered) -> dict[str, Any]:
        """Of every copy, [n, copies, ...]."""
        return self._apart(self.path.choices(particles))

    def _apart(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, self.exponents.shape[0], *x.shape[1:]), tree)


def _exchanging(key: Array, program: Copies, particles: Tempered, *, time: Any = None, kernel: Kernel, exponents: Array) -> tuple[Tempered, Moved]:
    if not isinstance(program, Copies):
        raise ValueError(f"parallel_tempering is for po.mcmc, not for particles of {program}: po.tempering goes from power to power by itself")
    move_key, swap_key = jax.random.split(key)
    particles, moved = kernel(move_key, program.path, particles)
    copies = exponents.shape[0]
    n = particles.exponent.shape[0] // copies
    one = lambda key, log_likelihood: exchanged(key, log_likelihood, program.exponents)  # noqa: E731
    order = particle_map(one, (0, 0))(jax.random.split(swap_key, n), particles.log_likelihood.reshape(n, copies))
    came_from = (jnp.arange(n)[:, None] * copies + order).reshape(-1)
    after = program.path.select(particles, came_from)._replace(exponent=particles.exponent)
    accepted = (moved.accepted[came_from] | (order.reshape(-1) != jnp.tile(jnp.arange(copies), n))).reshape(n, copies)
    return after, Moved(accepted[:, 0], jnp.any(moved.invalid.reshape(n, copies), axis=1))
