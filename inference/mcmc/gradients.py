"""Kernels that follow the gradient: MALA, and Hamiltonian trajectories of a fixed number of steps, for any sampler that moves particles.

(NumPyro's NUTS and HMC, `po.kernels.nuts`, adapt themselves over a chain of their own: those are for `po.mcmc` alone.)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float

from posterity.inference.blocks import Kernel, Moved
from posterity.inference.mcmc.parameters import Parametric
from posterity.inference.mcmc.space import Fit, Space, scaled, shaped, space
from posterity.ppl.effects import draw

STANDARD = dist.Normal(0.0, 1.0)


def mala(*names: str, step: float | None = None, covariance: Array | None = None) -> Kernel:
    """The Metropolis-adjusted Langevin algorithm on real choices: a step up the gradient, with noise, accepted or not.

    x' = x + step^2/2 C grad + step sqrt(C) noise, in coordinates without constraints. Leaves the target invariant when `covariance` is given; learned,
    with the consequence that `random_walk` tells.

    Args:
      names: the choices to move, together; all if none are named.
      step: the size of a step in units of C; by default 1.65 d^(-1/6), which is best where the target is a product of many parts.
      covariance: [d, d], C, the choices flattened in the order of their names; by default what is known of the target's own.

    Raises (from the sampler):
      ValueError: as `random_walk`.

    Source: Roberts and Tweedie (1996); for the step, Roberts and Rosenthal (1998).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def rate(counts):
    ...     rate = po.sample("rate", dist.Gamma(2.0, 1.0))
    ...     po.observe("counts", dist.Poisson(rate), counts)
    ...     return rate
    >>> chain = po.mcmc(jax.random.key(0), rate(jnp.array([4, 7, 5])), kernel=po.kernels.mala(), draws=500)  # Gamma(18, 4)
    >>> bool(abs(chain.expect() - 4.5) < 0.2)
    True
    """
    return _made("mala", names, 1, step, covariance)


def hamiltonian(*names: str, steps: int = 10, step: float | None = None, covariance: Array | None = None) -> Kernel:
    """Hamiltonian Monte Carlo on real choices: a trajectory of `steps` leapfrog steps, whose end is accepted or not. With one step it is `mala`.

    Args:
      names, covariance: as in `mala`.
      steps: of a trajectory; each takes a gradient.
      step: the size of one, in units of the covariance; by default 1.65 d^(-1/6) for one, and min(1, 1.3 d^(-1/4)) for more.

    Raises:
      ValueError: for less than one step; from the sampler, as `random_walk`.

    Source: Duane et al. (1987); Neal (2011); for the step, Beskos et al. (2013).
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"hamiltonian: steps must be a whole number of at least 1, got {steps!r}")
    return _made("hamiltonian", names, steps, step, covariance)


def _made(kernel: str, names: tuple[str, ...], steps: int, step: float | None, covariance: Array | None) -> Kernel:
    given = {"fit": None} if covariance is None else {"covariance": covariance}
    return Partial(_moving(kernel, names, steps), step=step, **given)


@functools.cache
def _moving(kernel: str, names: tuple[str, ...], steps: int) -> Any:
    """One object for these options: jit knows compiled code again by it."""
    return functools.partial(_trajectory, kernel=kernel, names=names, steps=steps)


def _trajectory(
    key: Array,
    program: Parametric,
    particles: Any,
    *,
    time: Any = None,
    kernel: str,
    names: tuple[str, ...],
    steps: int,
    step: Any = None,
    covariance: Array | None = None,
    fit: Fit | None = None,
) -> tuple[Any, Moved]:
    noise_key, *keys = jax.random.split(key, 3)
    at = space(kernel, program, particles, names)
    d = at.x.shape[1]
    learned = lambda: (at.fit(kernel) if fit is None else fit).covariance  # noqa: E731
    covariance = learned() if covariance is None else shaped(kernel, "covariance", covariance, (d, d))
    size = step if step is not None else 1.65 * d ** (-1 / 6) if steps == 1 else min(1.0, 1.3 * d ** (-1 / 4))
    root = jnp.linalg.cholesky(covariance)
    force = lambda x: scaled(jnp.swapaxes(root, -1, -2), _gradient(at, keys[0], program, particles, x, time))  # noqa: E731

    # In units of the root, where the covariance is one: positions move by root v, and the force on v is root' gradient.
    def leapfrog(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, v = state
        v = v + 0.5 * size * force(x)
        x = x + size * scaled(root, v)
        return x, v + 0.5 * size * force(x)

    v = draw(noise_key, "noise", STANDARD.expand(at.x.shape))
    x, after = jax.lax.fori_loop(0, steps, leapfrog, (at.x, v))
    lost = ~jnp.all(jnp.isfinite(x) & jnp.isfinite(after), axis=1)  # a trajectory that runs away is not taken
    x, after = (jnp.where(lost[:, None], kept, new) for kept, new in ((at.x, x), (v, after)))
    log_factor = jnp.where(lost, -jnp.inf, 0.5 * jnp.sum(v**2 - after**2, axis=1))
    return at.judge(keys, program, particles, x, time, log_factor)


def _gradient(at: Space, key: Array, program: Parametric, particles: Any, x: Float[Array, "n d"], time: Any) -> Float[Array, "n d"]:
    """Of the log target at x; 0 where it is not finite: any field that depends on x alone leaves the target invariant."""

    def log_target(x):
        return at.at(key, program, particles, x, time)[1]

    if program.inner.length:  # steps are a loop, which has no backward pass
        forward = lambda direction: jax.jvp(log_target, (x,), (jnp.broadcast_to(direction, x.shape),))[1]  # noqa: E731
        gradient = jax.vmap(forward, out_axes=1)(jnp.eye(x.shape[1], dtype=x.dtype))
    else:
        gradient = jax.grad(lambda x: jnp.sum(log_target(x)))(x)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)
