"""A linear-Gaussian part of a program's state, carried as a belief and never drawn (Rao-Blackwell)."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from posterity.ppl import effects


class Gaussian(NamedTuple):
    """What a particle knows of its linear part z: N(mean, covariance), given all that was chosen and observed so far.

    Two numbers stand for a vector and a matrix of size one. To be carried through `po.scan`, and returned; a population of these is a mixture.
    """

    mean: Any  # [n]
    covariance: Any  # [n, n], positive semidefinite


def predict(belief: Gaussian, F: ArrayLike, Q: ArrayLike, b: ArrayLike = 0.0) -> Gaussian:
    """The belief in z' = F z + b + noise of covariance Q. Nothing is weighed.

    Args:
      belief: in z, [n].
      F, Q: [n, n]; they may depend on what the particle chose. Q may be singular.
      b: [n], or a number for all.

    Raises:
      ValueError: on other shapes, or where a matrix that is known before tracing is no covariance.
    """
    mean, covariance = _parts("predict", belief)
    n = mean.size
    F, b = _matrix("predict", "F", F, n, n), _vector("predict", "b", b, n)
    return _like(belief, _dot(F, mean) + b, _dot(F, covariance, F.T) + _covariance("predict", "Q", Q, n))


def observe(name: str, belief: Gaussian, y: ArrayLike, H: ArrayLike, R: ArrayLike, d: ArrayLike = 0.0, *, where: ArrayLike = True) -> Gaussian:
    """Observes y = H z + d + noise of covariance R: weighs by the density of y with z integrated out, and returns the belief given y.

    The weight is N(y; H m + d, H P H' + R) for a belief N(m, P), exactly; so a program means what it would mean if it drew z and observed y given
    z, with z summed out (Doucet, de Freitas, Murphy and Russell 2000; Chen and Liu 2000, "Mixture Kalman filters"). Particles are then needed
    for the rest of the state only, and every inference of the library may run. It is for Gaussians what `po.marginalise` is for finite choices,
    but across steps. The locally optimal filter of Chen and Liu for a finite choice "regime" is `po.smc` on `po.adapt(p, "regime")`.

    Args:
      name: of the observation.
      belief: in z, [n].
      y: [m], or a number where m is 1; m may be 0, and then nothing happens.
      H: [m, n], or [n] where m is 1.
      R: [m, m], or a number where m is 1; H P H' + R must be positive definite, else the potential is NaN, an error of every inference.
      d: [m], or a number for all.
      where: bool [m], or one for all: which numbers of y were observed. The others weigh nothing and tell nothing, and may be NaN.

    Raises:
      ValueError: on other shapes, or where a matrix that is known before tracing is no covariance.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def target(ys):                                # moves straight on, or about, as it likes; z is its place and speed
    ...     belief = po.kalman.Gaussian(jnp.zeros(2), jnp.eye(2))
    ...     move = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    ...     def step(state, y):
    ...         agile, belief = state
    ...         agile = po.sample("agile", dist.Bernoulli(jnp.where(agile, 0.7, 0.2)))
    ...         belief = po.kalman.predict(belief, move, jnp.where(agile, 1.0, 0.01) * jnp.eye(2))
    ...         return agile, po.kalman.observe("y", belief, y, jnp.array([1.0, 0.0]), 0.1)
    ...     return po.scan(step, (0, belief), ys)
    >>> program = target(jnp.array([1.0, 2.1, 2.9, 1.5]))
    >>> posterior, place = po.smc(jax.random.key(0), program, n=200), lambda state: state[1].mean[0]
    >>> bool(abs(posterior.expect(place) - po.exact(program).expect(place)) < 0.1)             # exact: there are 16 ways to move
    True
    """
    given = _parts("observe", belief)
    where = jnp.asarray(where, bool)
    y = jnp.asarray(y, float)
    y, H, R, d = _seen("observe", given[0].size, y.size, y, H, R, d)
    if not y.size:
        return belief
    if where.shape not in ((), y.shape):
        raise ValueError(f"kalman.observe: where must have shape () or {y.shape}, got {where.shape}")
    where = jnp.broadcast_to(where, y.shape)
    H, d = jnp.where(where[:, None], H, 0.0), jnp.where(where, d, 0.0)
    # What was not observed is "seen" at its mean, with a variance at which the density there is one.
    y, R = jnp.where(where, y, d), jnp.where(where[:, None] & where, R, jnp.diag(jnp.where(where, 0.0, 0.5 / math.pi)))
    law = _law(given, H, R, d)
    effects.observe(name, law, y)
    return _updated(belief, given, law, y, H, R)


def sample(name: str, belief: Gaussian, H: ArrayLike, R: ArrayLike, d: ArrayLike = 0.0) -> tuple[Array, Gaussian]:
    """Draws u = H z + d + noise of covariance R, with z integrated out, and returns it with the belief given u.

    For models whose other state moves by what z is (mixed linear and nonlinear ones; Schön, Gustafsson and Nordlund 2005): the particle chooses u as a
    choice called `name`, and so learns about z.

    Args:
      name: of the choice.
      belief: in z, [n].
      H: [m, n], or [n] where m is 1.
      R: [m, m], or a number where m is 1; H P H' + R must be positive definite.
      d: [m], or a number for all.

    Raises:
      ValueError: on other shapes, or where a matrix that is known before tracing is no covariance.

    >>> import jax, jax.numpy as jnp, posterity as po
    >>> @po.program
    ... def drift():                                                # u drifts by an unknown z at every step
    ...     def step(state, _):
    ...         u, belief = state
    ...         return po.kalman.sample("u", belief, jnp.ones(1), 0.1, u)
    ...     return po.scan(step, (jnp.zeros(1), po.kalman.Gaussian(jnp.zeros(1), jnp.eye(1))), length=3)
    >>> posterior = po.smc(jax.random.key(0), drift(), n=5)
    >>> posterior.values[1].covariance[0].round(3)                  # 1 / (1 + 3 / 0.1)
    Array([[0.032]], dtype=float32)
    """
    given = _parts("sample", belief)
    m = jnp.atleast_2d(jnp.asarray(H)).shape[0]
    if not m:
        raise ValueError("kalman.sample: H has no rows, so there is nothing to draw")
    _, H, R, d = _seen("sample", given[0].size, m, jnp.zeros(m), H, R, d)
    law = _law(given, H, R, d)
    u = effects.sample(name, law)
    return u, _updated(belief, given, law, u, H, R)


def smooth(beliefs: Gaussian, F: ArrayLike, Q: ArrayLike, b: ArrayLike = 0.0) -> Gaussian:
    """The beliefs along one path of a particle, each given all that was observed and not only what came before it (Rauch, Tung and Striebel 1965).

    With `posterior["path"]` of `po.ffbsi` or `po.particle_gibbs`, which draw the rest of the state given everything, this is Rao-Blackwellised
    smoothing: the law of z at any time is the mixture of the beliefs there.

    Args:
      beliefs: in z at times 0..T, as the program had them after each observation: mean [T + 1, n], covariance [T + 1, n, n].
      F, Q: [T, n, n] the moves between them, as given to `predict`, or [n, n] where all are the same.
      b: [T, n], [n], or a number.

    Raises:
      ValueError: on other shapes.

    >>> import jax.numpy as jnp, posterity as po
    >>> beliefs = po.kalman.Gaussian(jnp.array([[0.0], [2.0]]), jnp.array([[[1.0]], [[0.0]]]))           # z_1 turned out to be 2,
    >>> po.kalman.smooth(beliefs, jnp.eye(1), jnp.eye(1)).mean[0]                                       # so z_0 was about 1
    Array([1.], dtype=float32)
    """
    mean, covariance = jnp.asarray(beliefs.mean, float), jnp.asarray(beliefs.covariance, float)
    if mean.ndim != 2 or not len(mean) or covariance.shape != (*mean.shape, mean.shape[1]):
        raise ValueError(f"kalman.smooth: beliefs must have mean [T + 1, n] and covariance [T + 1, n, n], got shapes {mean.shape} and {covariance.shape}")
    steps, n = len(mean) - 1, mean.shape[1]
    moves = {"F": (F, (steps, n, n)), "Q": (Q, (steps, n, n)), "b": (b, (steps, n))}
    for name, (x, shape) in moves.items():
        if jnp.shape(x) not in (shape, shape[1:]) and not (name == "b" and jnp.shape(x) == ()):
            raise ValueError(f"kalman.smooth: {name} must have shape {shape} or {shape[1:]}, got {jnp.shape(x)}")

    def back(later: Gaussian, now: tuple) -> tuple[Gaussian, Gaussian]:
        belief, F, Q, b = now
        ahead = predict(belief, F, Q, b)
        # The pseudo-inverse: in directions in which z is known for certain there is nothing to learn.
        gain = _dot(belief.covariance, F.T, jnp.linalg.pinv(ahead.covariance, hermitian=True))
        left = jnp.eye(n, dtype=gain.dtype) - _dot(gain, F)
        spread = _dot(left, belief.covariance, left.T) + _dot(gain, Q + later.covariance, gain.T)
        smoothed = _like(belief, belief.mean + _dot(gain, later.mean - ahead.mean), spread)
        return smoothed, smoothed

    given = [jnp.broadcast_to(jnp.asarray(x, float), shape) for x, shape in moves.values()]
    last = Gaussian(mean[-1], covariance[-1])
    _, before = jax.lax.scan(back, last, (Gaussian(mean[:-1], covariance[:-1]), *given), reverse=True)
    return jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]]), before, last)


def _law(given: tuple[Array, Array], H: Array, R: Array, d: Array) -> dist.MultivariateNormal:
    """Of H z + d + noise."""
    mean, covariance = given
    return dist.MultivariateNormal(_dot(H, mean) + d, covariance_matrix=_symmetric(_dot(H, covariance, H.T) + R))


def _updated(belief: Gaussian, given: tuple[Array, Array], law: dist.MultivariateNormal, y: Array, H: Array, R: Array) -> Gaussian:
    """By Joseph's form, a sum of squares: it stays a covariance in float32, where the short form P - K H P may not."""
    mean, covariance = given
    gain = jax.scipy.linalg.cho_solve((jnp.asarray(law.scale_tril), True), _dot(H, covariance)).T
    left = jnp.eye(mean.size, dtype=covariance.dtype) - _dot(gain, H)
    return _like(belief, mean + _dot(gain, y - law.loc), _dot(left, covariance, left.T) + _dot(gain, R, gain.T))


def _dot(*factors: Array) -> Array:
    """The product of matrices, or of a matrix and a vector, in full precision: by default accelerators round what they multiply to ten bits."""

    def product(A: Array, B: Array) -> Array:
        if 4 <= max(*A.shape, *B.shape) <= 7:  # many such small ones take XLA's product longer, on a CPU
            return jnp.sum(A[..., None] * B, axis=1) if B.ndim == 2 else jnp.sum(A * B, axis=1)
        return jnp.matmul(A, B, precision="highest")

    return functools.reduce(product, factors)


def _parts(function: str, belief: Gaussian) -> tuple[Array, Array]:
    """The mean [n] and covariance [n, n], checked."""
    mean = jnp.atleast_1d(jnp.asarray(belief.mean, float))
    if mean.ndim != 1:
        raise ValueError(f"kalman.{function}: the belief's mean must be a vector or a number, got shape {mean.shape}")
    return mean, _covariance(function, "the belief's covariance", belief.covariance, mean.size)


def _seen(function: str, n: int, m: int, y: ArrayLike, H: ArrayLike, R: ArrayLike, d: ArrayLike) -> tuple[Array, Array, Array, Array]:
    H, R = _matrix(function, "H", H, m, n), _covariance(function, "R", R, m)
    return _vector(function, "y", y, m), H, R, _vector(function, "d", d, m)


def _vector(function: str, name: str, x: ArrayLike, size: int) -> Array:
    x = jnp.asarray(x, float)
    if x.shape not in ((), (size,)):
        raise ValueError(f"kalman.{function}: {name} must have shape ({size},) or be a number, got shape {x.shape}")
    return jnp.broadcast_to(x, (size,))


def _matrix(function: str, name: str, x: ArrayLike, rows: int, columns: int) -> Array:
    x = jnp.asarray(x, float)
    if x.shape != (rows, columns) and not (rows == 1 and x.shape == (columns,)) and not (rows == columns == 1 and x.shape == ()):
        raise ValueError(f"kalman.{function}: {name} must have shape ({rows}, {columns}), got {x.shape}")
    return x.reshape(rows, columns)


def _covariance(function: str, name: str, x: ArrayLike, size: int) -> Array:
    matrix = _matrix(function, name, x, size, size)
    if size and not isinstance(x, Tracer):
        known = np.asarray(x, float).reshape(size, size)
        slack = 1e-5 * np.abs(known).max()  # float32 that was computed
        if not (np.isfinite(slack) and np.abs(known - known.T).max() <= slack and np.linalg.eigvalsh(known).min() >= -slack):
            raise ValueError(f"kalman.{function}: {name} must be a covariance, symmetric without negative eigenvalues, got {known.tolist()}")
    return matrix


def _symmetric(x: Array) -> Array:
    return 0.5 * (x + x.T)


def _like(belief: Gaussian, mean: Array, covariance: Array) -> Gaussian:
    """In the shapes that the belief had."""
    return Gaussian(mean.reshape(jnp.shape(belief.mean)), _symmetric(covariance).reshape(jnp.shape(belief.covariance)))
