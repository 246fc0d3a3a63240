"""Slice sampling: one coordinate after another, or along an ellipse where the prior is Gaussian. Nothing to tune, and every move is taken."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Bool, Float

from posterity.inference.blocks import Kernel, Moved
from posterity.inference.mcmc.metropolis import where
from posterity.inference.mcmc.parameters import Choices, Parametric, initial_sites, log_prior
from posterity.inference.mcmc.space import Fit, checked, named, shaped, space
from posterity.ppl.effects import draw, loop, particle_map
from posterity.ppl.errors import log_density
from posterity.ppl.transform import times

OUT = 10  # how many widths a slice may be stepped out, both sides together
IN = 100  # how often it may be shrunk; then the particle stays, which leaves the target invariant as well


def slices(*names: str, width: Array | float | None = None) -> Kernel:
    """Slice sampling on real choices, coordinate by coordinate: an interval where the density lies above a random level, stepped out, then shrunk.

    In coordinates without constraints. Leaves the target invariant for every width; a wrong one costs evaluations, of which a coordinate takes five to ten.

    Args:
      names: the choices to move; all if none are named.
      width: of the first interval, one number or [d]; by default twice what is known of the target's standard deviations.

    Raises (from the sampler):
      ValueError: as `random_walk`; on widths of another shape.

    Source: Neal (2003), "Slice sampling", figures 3 and 5.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def rate(counts):
    ...     rate = po.sample("rate", dist.Gamma(2.0, 1.0))
    ...     po.observe("counts", dist.Poisson(rate), counts)
    ...     return rate
    >>> chain = po.mcmc(jax.random.key(0), rate(jnp.array([4, 7, 5])), kernel=po.kernels.slices(), draws=500)  # Gamma(18, 4)
    >>> bool(abs(chain.expect() - 4.5) < 0.2)
    True
    """
    return Partial(named(_slices, names), **({"fit": None} if width is None else {"width": width}))


def elliptical(*names: str) -> Kernel:
    """Elliptical slice sampling on choices whose law is normal, one after another: along an ellipse through the choice and a fresh draw of its law.

    The law may depend on other choices, of any kind, and they on it. Leaves the target invariant; nothing to tune.

    Args:
      names: the choices to move; all if none are named.

    Raises (from the sampler):
      ValueError: when the law of one is neither `Normal` nor `MultivariateNormal` (or many of these), or there is none of that name.

    Source: Murray, Adams and MacKay (2010), "Elliptical slice sampling".
    """
    return Partial(named(_elliptical, names))


def _slices(
    key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...], width: Any = None, fit: Fit | None = None
) -> tuple[Any, Moved]:
    at_key, *keys = jax.random.split(key, 3)
    at = space("slices", program, particles, names)
    n, d = at.x.shape
    if width is None:
        variances = jnp.diagonal((at.fit("slices") if fit is None else fit).covariance, axis1=-2, axis2=-1)
        widths = jnp.broadcast_to(2 * jnp.sqrt(variances), (n, d))
    else:
        widths = jnp.broadcast_to(shaped("slices", "width", width, (d,)) if jnp.ndim(width) else jnp.asarray(width, float), (n, d))
    log_target = lambda x: at.at(at_key, program, particles, x, time)[1]  # noqa: E731

    def one_coordinate(state):
        j, x, log_density, invalid = state
        axis = jnp.arange(d) == j
        along = lambda offset: log_target(x + jnp.where(axis, offset[:, None], 0.0))  # noqa: E731
        level_key, out_key, in_key = jax.random.split(jax.random.fold_in(keys[0], j), 3)
        level = log_density - draw(level_key, "level", dist.Exponential().expand([n]))
        low, high = _stepped_out(out_key, along, level, widths[:, j])
        offset, found, log_new, bad = _shrunk(in_key, along, level, low, high, at.usable)
        return j + 1, x + jnp.where(axis, offset[:, None], 0.0), jnp.where(found, log_new, log_density), invalid | bad

    start = (jnp.zeros((), jnp.int32), at.x, at.log_target(program, particles), jnp.zeros(n, bool))
    _, x, _, invalid = loop(lambda state: state[0] < d, one_coordinate, start, limit=d)
    moved = jnp.any(x != at.x, axis=1) & ~invalid
    return where(moved, at.at(at_key, program, particles, x, time)[0], particles), Moved(moved, invalid)


def _stepped_out(key: Array, along: Any, level: Float[Array, " n"], width: Float[Array, " n"]) -> tuple[Array, Array]:
    """An interval around 0 with ends below the level, or as wide as is allowed; how the steps are shared between its sides is random."""
    place_key, share_key = jax.random.split(key)
    low = draw(place_key, "place", dist.Uniform(-width, 0.0))
    left = draw(share_key, "share", dist.DiscreteUniform(0, OUT - 1).expand(width.shape))

    def further(state):
        count, low, high, lower, higher = state
        lower = lower & (count < left) & (along(low) > level)
        higher = higher & (count < OUT - 1 - left) & (along(high) > level)
        return count + 1, jnp.where(lower, low - width, low), jnp.where(higher, high + width, high), lower, higher

    start = (jnp.zeros((), left.dtype), low, low + width, jnp.ones(low.shape, bool), jnp.ones(low.shape, bool))
    _, low, high, *_ = loop(lambda state: (state[0] < OUT) & jnp.any(state[3] | state[4]), further, start, limit=OUT)
    return low, high


def _shrunk(
    key: Array, along: Any, level: Float[Array, " n"], low: Float[Array, " n"], high: Float[Array, " n"], usable: Bool[Array, " n"]
) -> tuple[Array, Array, Array, Array]:
    """A point above the level, by shrinking the interval towards 0; whether it was found; its log density; and where that was NaN or +inf on the way."""

    def again(state):
        turn, low, high, offset, found, log_found, invalid = state
        point = draw(jax.random.fold_in(key, turn), "point", dist.Uniform(low, high))
        log_new = along(point)
        wrong = jnp.isnan(log_new) | jnp.isposinf(log_new)
        taken = ~found & (log_new > level) & ~wrong
        open_ = ~found & ~taken
        low, high = jnp.where(open_ & (point < 0), point, low), jnp.where(open_ & (point >= 0), point, high)
        return (
            turn + 1,
            low,
            high,
            jnp.where(taken, point, offset),
            found | taken,
            jnp.where(taken, log_new, log_found),
            invalid | (wrong & ~found),
        )

    none = jnp.zeros_like(low)
    start = (jnp.zeros((), jnp.int32), low, high, none, ~usable, none, jnp.zeros(low.shape, bool))
    _, _, _, offset, found, log_found, invalid = loop(lambda state: (state[0] < IN) & ~jnp.all(state[4]), again, start, limit=IN)
    return offset, found & usable, log_found, invalid


def _elliptical(key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...]) -> tuple[Any, Moved]:
    names = checked("elliptical", program, names, program.choices(particles))
    moved = Moved(*jnp.zeros((2, jax.tree.leaves(program.choices(particles))[0].shape[0]), bool))
    for index, name in enumerate(names):
        particles, also = _around(jax.random.fold_in(key, index), program, particles, name, time)
        moved = Moved(moved.accepted | also.accepted, moved.invalid | also.invalid)
    return particles, moved


def _around(key: Array, program: Parametric, particles: Any, name: str, time: Any) -> tuple[Any, Moved]:
    """Moves one choice along an ellipse."""
    at_key, law_key, level_key, angle_key, in_key = jax.random.split(key, 5)
    choices = program.choices(particles)
    n = choices[name].shape[0]
    mean, other = particle_map(functools.partial(_ellipse, program, name), (0, 0), (0, 0))(jax.random.split(law_key, n), choices)

    def turned(angle):
        cosine, sine = (f(angle).reshape(-1, *[1] * (mean.ndim - 1)) for f in (jnp.cos, jnp.sin))
        new = {**choices, name: mean + (choices[name] - mean) * cosine + other * sine}
        fresh = program.at(at_key, new, particles, time)
        return fresh, times(log_prior(program.inner, new) - _log_law(program, name, new), program.log_likelihood(fresh))

    level = turned(jnp.zeros(n))[1] - draw(level_key, "level", dist.Exponential().expand([n]))
    first = draw(angle_key, "angle", dist.Uniform(0.0, 2 * jnp.pi).expand([n]))
    # An interval that goes once around, cut at a random place.
    angle, found, _, invalid = _shrunk(in_key, lambda angle: turned(angle)[1], level, first - 2 * jnp.pi, first, jnp.ones(n, bool))
    moved = found & ~invalid
    return where(moved, turned(angle)[0], particles), Moved(moved, invalid)


def _ellipse(program: Parametric, name: str, key: Array, choices: Choices) -> tuple[Array, Array]:
    """Of one particle: the mean of a choice's law, and a fresh draw of it less that."""
    law = initial_sites(program.inner, lambda site: choices.get(site["name"]))[name]["fn"]
    base = law
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    if not isinstance(base, (dist.Normal, dist.MultivariateNormal)):
        raise ValueError(f"elliptical moves choices of normal law; that of {name!r} in {program.inner} is {type(base).__name__}: see po.kernels.slices")
    mean = jnp.broadcast_to(law.mean, choices[name].shape)
    return mean, draw(key, "other", law) - mean


def _log_law(program: Parametric, name: str, choices: Choices) -> Float[Array, " n"]:
    """The log density of one choice given those before it, nats."""
    return jax.vmap(lambda choices: log_density(initial_sites(program.inner, lambda site: choices.get(site["name"]))[name]))(choices)
