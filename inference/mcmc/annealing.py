"""Simulated annealing (Kirkpatrick, Gelatt and Vecchi 1983): chains whose target is raised to higher and higher powers, to find where it is highest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.blocks import Kernel
from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc import kernels
from posterity.inference.mcmc.metropolis import where
from posterity.inference.mcmc.parameters import Choices, begin, function_program, log_prior
from posterity.ppl.effects import isolated
from posterity.ppl.program import FunctionProgram
from posterity.ppl.transform import Transformed, known, times

EXPONENTS = np.geomspace(0.01, 1_000.0, 60)


class Cooled(NamedTuple):
    """Particles of a static program under a power of its whole density."""

    now: Any  # the program's particles
    log_prior: Float[Array, " n"]  # of the choices, nats
    log_likelihood: Float[Array, " n"]
    exponent: Float[Array, " n"]  # the same for all

    @property
    def log_density(self) -> Float[Array, " n"]:
        """Of what was chosen and what is observed, nats: what annealing makes large. -inf where it is not defined."""
        log_density = times(self.log_prior, self.log_likelihood)
        return jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)


@struct.dataclass
class Cooling(Transformed):
    """The targets (prior * likelihood)^exponent of a static program: `mcmc.parameters.Parametric`."""

    inner: FunctionProgram

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Cooled, Array]:
        now, log_likelihood = self.inner.init(key, n)
        none = jnp.zeros_like(log_likelihood)
        return Cooled(now, log_prior(self.inner, now.choices), log_likelihood, none), none

    def at(self, key: Array, choices: Choices | None, particles: Cooled, time: Any) -> Cooled:
        now, log_likelihood = self.inner.init(key, particles.exponent.shape[0]) if choices is None else begin(self.inner, choices)
        return Cooled(now, log_prior(self.inner, now.choices), log_likelihood, particles.exponent)

    def log_likelihood(self, particles: Cooled) -> Array:
        """What the law of the choices is multiplied by."""
        return times(particles.exponent * particles.log_likelihood, (particles.exponent - 1) * particles.log_prior)


class Peak(NamedTuple):
    """The highest point that was found; nothing here says that there is no higher one."""

    value: Any  # what the program returns there
    choices: Choices
    log_density: Array  # [] nats: of the choices and of all that is observed, in the program's own variables
    found_by: Array  # [] how many of the chains ended within a tenth of a nat of it


def simulated_annealing(key: PRNGKeyArray, program: Any, *, n: int = 64, exponents: Any = None, kernel: Kernel | None = None, moves: int = 5) -> Peak:
    """The most probable choices of a program without scan, by simulated annealing over any kernel.

    All chains start from the prior and move for (prior * likelihood)^exponent, the exponent rising: below 1 they find their way about, far above it they climb.
    (Weighted for exponents up to 1 the same is annealed importance sampling: `po.tempering` with a ladder and `threshold=0`.)

    Args:
      key: a `jax.random.key`.
      program: a static program.
      n: how many chains; what a kernel learns it learns from all of them.
      exponents: [stages], rising and above 0; by default 60 from 0.01 to 1,000, each as many times the one before.
      kernel: one of `po.kernels` that moves particles; by default as in `po.tempering`.
      moves: how many at each exponent.

    Raises:
      TypeError: when `program` is not made by `@po.program`.
      ValueError: when it has a scan, on exponents that do not rise above 0, numbers out of range, or when no chain found a point of finite density.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def square(y):
    ...     x = po.sample("x", dist.Normal(1.0, 2.0))
    ...     po.observe("y", dist.Normal(x**2, 0.2), y)
    ...     return x
    >>> peak = po.simulated_annealing(jax.random.key(0), square(4.0))  # 2 is more probable than -2
    >>> bool(abs(peak.value - 2.0) < 0.01)
    True
    """
    program = function_program("simulated_annealing", program)
    check_key(key)
    check_counts(n=(n, 1), moves=(moves, 1))
    exponents = EXPONENTS if exponents is None else exponents
    if not (np.ndim(exponents) == 1 and np.size(exponents) and known(exponents, lambda row: (np.diff(row, prepend=0.0) > 0).all())):
        raise ValueError(f"simulated_annealing: exponents must rise and stay above 0, got {exponents!r}")
    peak = _climbed(key, program, kernels.given(kernel), jnp.asarray(exponents, float), n, moves)
    if not isinstance(peak.log_density, Tracer) and not np.isfinite(peak.log_density):
        raise ValueError(f"simulated_annealing: {program}: none of {n} chains found a point of finite density (the best has {float(peak.log_density)})")
    return peak


def _climb(key: Array, program: FunctionProgram, kernel: Partial, exponents: Array, n: int, moves: int) -> Peak:
    if program.length:
        raise ValueError(f"simulated_annealing: program must be static, but {program} has a scan of {program.length} steps")
    cooling = Cooling(program)
    init_key, move_key = jax.random.split(key)
    with isolated():
        start = cooling.init(init_key, n)[0]

        def once(carry: tuple[Cooled, Cooled], at: tuple[Array, Array]) -> tuple[tuple[Cooled, Cooled], None]:
            particles, best = carry
            exponent, time = at
            particles = particles._replace(exponent=jnp.full_like(particles.exponent, exponent))
            particles, _ = kernel(jax.random.fold_in(move_key, time), cooling, particles, time=None)
            best = best._replace(exponent=particles.exponent)
            return (particles, where(particles.log_density > best.log_density, particles, best)), None

        stages = jnp.repeat(exponents, moves)
        (particles, best), _ = jax.lax.scan(once, (start, start), (stages, jnp.arange(stages.shape[0])))
        top = jnp.argmax(best.log_density)
        log_density = best.log_density[top]
        found_by = jnp.sum(particles.log_density > log_density - 0.1)
        value, choices = (jax.tree.map(lambda x: x[top], of) for of in (cooling.value(best), best.now.choices))
        return Peak(value, choices, log_density, found_by)


_climbed = jax.jit(_climb, static_argnames=("n", "moves"))
