"""Softer resampling: ancestors drawn by a power of the weights, whose copies keep the rest of their weight, or, biased, do not."""

import functools
import numbers

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from posterity.inference.population import effective_sample_size
from posterity.inference.smc.resampling.schemes import Ancestors, Systematic

HALVINGS = 20


class Softened(Ancestors):
    """Ancestors by `scheme`, of the weights to the power `exponent`; what `entropic` and `biased_entropic` make classes of."""

    scheme: type[Ancestors] = Systematic
    ess: float | None = None
    power: float = 1.0
    corrected = True

    @property
    def exponent(self) -> Float[Array, ""]:
        return jnp.asarray(self.power, self.log_weights.dtype) if self.ess is None else _exponent(self.log_weights, self.ess)

    @property
    def softened(self) -> Float[Array, " n"]:
        """The log weights by which ancestors are drawn, nats."""
        return jnp.where(self.log_weights > -jnp.inf, self.exponent * self.log_weights, -jnp.inf)

    def _draw(self, key):
        return self.scheme(self.softened)._draw(key)

    def _atoms(self):
        return self.scheme(self.softened)._atoms()

    @property
    def log_left(self):
        if not self.corrected:
            return None
        left = jax.nn.log_softmax(self.log_weights) - jax.nn.log_softmax(self.softened)
        return jnp.where(self.log_weights > -jnp.inf, left, 0.0)


def entropic(ess: float | None = None, *, exponent: float | None = None, resampling: type[Ancestors] = Systematic) -> type[Ancestors]:
    """A resampling scheme that selects more gently: ancestors are drawn by w^exponent, and a copy of i keeps the weight w_i^(1 - exponent), scaled.

    Properly weighted, like every scheme: each particle's copies have on average its weight, whether the exponent is given or found from the
    weights. What is not kept is that copies weigh the same: with exponent 1 it is plain resampling, the nearer to 0 the more stays as it was. The
    published entropic particle filter forgets the weight that is left: that is `biased_entropic`.

    Args:
      ess: in (0, 1]. The exponent is the largest, up to 1, at which the effective sample size of w^exponent is `ess` times the number of particles
        of any weight (to 1e-6); 0.5 if neither is given.
      exponent: in (0, 1], instead.
      resampling: the scheme by which ancestors are drawn.

    Returns:
      What `po.smc` and others take as `resampling`.

    Raises:
      ValueError: on numbers out of range, or both.

    Source: a temperature on the weights is the idea of entropic particle filtering (Giannone et al. 2026); the weight that is left is that of Liu, Chen
    and Logvinenko (2001), "A theoretical framework for sequential importance sampling with resampling", who draw ancestors by any scores.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> posterior = po.smc(jax.random.key(0), walk(jnp.array([1.0, 2.0, 3.0])), n=1_000, resampling=po.entropic(0.8))
    >>> bool(abs(posterior.expect() - 2.78) < 0.1)
    True
    """
    return _class("Entropic", *_checked(ess, exponent), resampling, True)


def biased_entropic(ess: float | None = None, *, exponent: float | None = None, resampling: type[Ancestors] = Systematic) -> type[Ancestors]:
    """`entropic` without the correction: ancestors are drawn by w^exponent, and all copies weigh the same. Biased on purpose.

    What is estimated is no longer the program's measure, for any number of particles: each resampling replaces the weights by their power, so that early
    potentials count for less than they should. The evidence is nobody's. This is how the entropic particle filter of Giannone et al. (2026) selects.

    Args:
      ess, exponent, resampling: as for `entropic`.

    Raises:
      ValueError: as `entropic`.

    >>> import posterity as po
    >>> po.biased_entropic(0.5).__name__
    'BiasedEntropic'
    """
    return _class("BiasedEntropic", *_checked(ess, exponent), resampling, False)


def _checked(ess: float | None, exponent: float | None) -> tuple[float | None, float]:
    given = {name: x for name, x in (("ess", ess), ("exponent", exponent)) if x is not None}
    if len(given) > 1:
        raise ValueError(f"entropic: give ess or exponent, got both, {ess!r} and {exponent!r}")
    for name, x in given.items():
        if not isinstance(x, numbers.Real) or not 0 < x <= 1:
            raise ValueError(f"entropic: {name} must lie in (0, 1], got {x!r}")
    return (None, float(exponent)) if exponent is not None else (0.5 if ess is None else float(ess), 1.0)


@functools.cache
def _class(name: str, ess: float | None, power: float, scheme: type[Ancestors], corrected: bool) -> type[Ancestors]:
    """One class for each set of options: jit knows compiled code again by it."""
    return type(name, (Softened,), {"scheme": scheme, "ess": ess, "power": power, "corrected": corrected})


def _exponent(log_weights: Float[Array, " n"], ess: float) -> Float[Array, ""]:
    alive = log_weights > -jnp.inf
    finite = jnp.where(alive, log_weights - jnp.max(log_weights), 0.0)

    def enough(exponent):
        return effective_sample_size(jnp.where(alive, exponent * finite, -jnp.inf)) >= ess * jnp.sum(alive)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        more = enough(middle)
        return jnp.where(more, middle, low), jnp.where(more, high, middle)

    one = jnp.ones((), log_weights.dtype)
    with jax.disable_jit(False):  # nothing is drawn: enumeration, which goes without jit, need not unroll this
        _, high = lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(one), one))
    return jnp.where(enough(one), one, high)
