"""Particles moved together until they lie as a posterior does: Stein variational gradient descent and its relatives, by coin betting without a step size."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax import Array, lax
from jax.core import Tracer
from jax.scipy.ndimage import map_coordinates
from jax.tree_util import Partial
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc.parameters import function_program
from posterity.inference.vi.density import coordinates
from posterity.inference.vi.result import Approximation, equal
from posterity.inference.vi.train import check_optimizer
from posterity.ppl.program import FunctionProgram

GRID = {1: 128, 2: 32}  # points an axis


@functools.cache
def coins() -> optax.GradientTransformation:
    """Coin betting on every coordinate (Orabona and Tommasi 2017): an optimiser without a step size."""
    return optax.contrib.cocob(alpha=0.0)


def svgd(
    key: PRNGKeyArray, program: FunctionProgram, *, n: int = 100, steps: int = 1_000, optimizer: optax.GradientTransformation | None = None
) -> Approximation:
    """Stein variational gradient descent: n particles pulled to where the posterior is dense, and pushed apart by a kernel.

    Not properly weighted: for finite n the particles lie too close together, and they miss modes that none of them started near.

    Args:
      key: a `jax.random.key`, for where the particles start: draws from the law of the program's choices.
      program: one made by `@po.program`, whose choices are all continuous; they are moved in coordinates without constraints.
      n: the number of particles; a step costs n^2 kernel values.
      steps: how many steps they make.
      optimizer: any of optax, with its step size; by default coin betting, which has none (Sharrock and Nemeth 2023).

    Raises:
      TypeError: when `program` or `optimizer` is none.
      ValueError: on n < 2, steps < 1, discrete choices, named; particles that became NaN or infinite.

    Source: Liu and Wang (2016), the kernel exp(-r^2 / 2h^2) with h^2 = median(r^2) / (2 log(n + 1)).

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def mean(y):
    ...     mu = po.sample("mu", dist.Normal(0.0, 1.0))
    ...     po.observe("y", dist.Normal(mu, 1.0), y)
    ...     return mu
    >>> found = po.svgd(jax.random.key(0), mean(3.0), n=50, steps=500)
    >>> bool(abs(found.expect() - 1.5) < 0.01)
    True
    """
    return _flow("svgd", key, program, Partial(_stein), n, steps, optimizer)


def ksdd(
    key: PRNGKeyArray, program: FunctionProgram, *, n: int = 100, steps: int = 1_000, optimizer: optax.GradientTransformation | None = None
) -> Approximation:
    """Kernel Stein discrepancy descent: n particles go down the gradient of their own squared discrepancy to the posterior.

    Not properly weighted. Unlike `svgd` it has a loss; but it takes some times the steps, and particles may settle between modes (Korba et al. 2021).
    Arguments and errors are those of `svgd`; a step also needs the density's second derivatives.
    """
    return _flow("ksdd", key, program, Partial(_discrepancy), n, steps, optimizer)


def lawgd(
    key: PRNGKeyArray,
    program: FunctionProgram,
    *,
    box: tuple[Any, Any],
    n: int = 100,
    steps: int = 1_000,
    modes: int = 30,
    optimizer: optax.GradientTransformation | None = None,
) -> Approximation:
    """Laplacian adjusted Wasserstein gradient descent: `svgd` with the kernel that inverts the posterior's own Langevin generator. One or two dimensions.

    Not properly weighted. The generator's eigenfunctions are found on a grid over `box`, in coordinates without constraints; outside of it, and
    where the density is less than 1e-16 of its largest on the grid, particles do not move.

    Args:
      box: its lower and upper ends, numbers or [d] each.
      modes: how many eigenfunctions make the kernel.
      key, program, n, steps, optimizer: as in `svgd`.

    Raises:
      ValueError: as `svgd`; for more than two dimensions, a box that is none, or modes that the grid does not have.

    Source: Chewi, Le Gouic, Lu, Maunu and Rigollet (2020).
    """
    check_key(key)
    check_counts(n=(n, 2), steps=(steps, 1), modes=(modes, 1))
    program = function_program("lawgd", program)
    d = jax.eval_shape(lambda key: coordinates("lawgd", key, program, 1).start, key).shape[1]
    if d not in GRID:
        raise ValueError(f"lawgd: {program} has {d} dimensions; its grid is for one or two")
    lower, upper = (np.broadcast_to(np.asarray(end, float), (d,)) for end in box)
    if not (np.isfinite(lower) & np.isfinite(upper) & (lower < upper)).all():
        raise ValueError(f"lawgd: box must be finite lower and upper ends, one below the other, got {lower} and {upper}")
    if modes >= GRID[d] ** d:
        raise ValueError(f"lawgd: modes must be below the grid's {GRID[d] ** d} points, got {modes}")
    axes = [np.linspace(a, b, GRID[d]) for a, b in zip(lower, upper, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    log_density = np.asarray(_on_grid(key, program, jnp.asarray(points.reshape(-1, d))), float).reshape(points.shape[:-1])
    return _flow("lawgd", key, program, Partial(_generator, spectrum(log_density, lower, upper, modes)), n, steps, optimizer)


def _flow(
    method: str, key: PRNGKeyArray, program: FunctionProgram, direction: Partial, n: int, steps: int, optimizer: optax.GradientTransformation | None
) -> Approximation:
    check_key(key)
    check_counts(n=(n, 2), steps=(steps, 1))
    program = function_program(method, program)
    x, choices, values = _moved(key, program, direction, method, n, check_optimizer(method, optimizer) or coins(), steps)
    if not isinstance(x, Tracer) and not (finite := np.isfinite(np.asarray(x)).all(axis=1)).all():
        raise ValueError(
            f"{method}: {int((~finite).sum())} of {n} particles became NaN or infinite; a smaller step size (optimizer), or a density that is finite wherever "
            "the choices can start, may help"
        )
    return Approximation(values=values, choices=choices, method=method, **equal(n))


@functools.partial(jax.jit, static_argnames=("method", "n", "optimizer", "steps"))
def _moved(
    key: Array, program: FunctionProgram, direction: Partial, method: str, n: int, optimizer: optax.GradientTransformation, steps: int
) -> tuple[Float[Array, "n d"], dict[str, Any], Any]:
    """Particles after `steps` steps against `direction(log_density, particles)`, their choices and the program's values."""
    start, log_density, read = coordinates(method, key, program, n)

    def step(carry, _):
        x, state = carry
        update, state = optimizer.update(direction(log_density, x), state, x)
        return (x + jnp.asarray(update), state), None

    (x, _), _ = lax.scan(step, (start, optimizer.init(start)), length=steps)
    return x, *jax.vmap(read)(x)


# -- directions: what an optimiser descends -------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """exp(-|x_i - x_j|^2 / 2h^2) between all particles."""

    k: Float[Array, "n n"]
    difference: Float[Array, "n n d"]  # (x_i - x_j) / h^2
    squared: Float[Array, ""]  # h^2


def _kernel(x: Float[Array, "n d"]) -> Kernel:
    difference = x[:, None] - x[None]
    squares = jnp.sum(difference**2, axis=-1)
    width = lax.stop_gradient(jnp.maximum(0.5 * jnp.median(squares) / jnp.log(len(x) + 1.0), jnp.finfo(x.dtype).tiny))
    return Kernel(jnp.exp(-0.5 * squares / width), difference / width, width)


def _stein(log_density: Callable, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Minus the kernelised gradient: sum_j k_ij score_j + grad_j k_ij, over n."""
    kernel, score = _kernel(x), jax.vmap(jax.grad(log_density))(x)
    return -(kernel.k @ score + jnp.einsum("ij,ijd->id", kernel.k, kernel.difference)) / len(x)


def _discrepancy(log_density: Callable, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The gradient of the mean Stein kernel, with the kernel's width as it is."""

    def squared(x: Array) -> Array:
        kernel, score = _kernel(x), jax.vmap(jax.grad(log_density))(x)
        across = jnp.sum((score[:, None] - score[None]) * kernel.difference, axis=-1)
        curvature = x.shape[1] / kernel.squared - jnp.sum(kernel.difference**2, axis=-1)
        return jnp.mean(kernel.k * (score @ score.T + across + curvature))

    return jax.grad(squared)(x)


class Spectrum(NamedTuple):
    """The slowest eigenfunctions of the Langevin generator -laplace(f) - <grad log p, grad f>, orthonormal under p, on a grid."""

    eigenvalues: Float[Array, " modes"]
    functions: Float[Array, "modes ..."]
    gradients: Float[Array, "d modes ..."]
    lower: Float[Array, " d"]
    spacing: Float[Array, " d"]


@jax.jit
def _on_grid(key: Array, program: FunctionProgram, points: Array) -> Array:
    return jax.vmap(coordinates("lawgd", key, program, 1).log_density)(points)


def spectrum(log_density: Float[np.ndarray, "*grid"], lower: Float[np.ndarray, " d"], upper: Float[np.ndarray, " d"], modes: int) -> Spectrum:
    """The eigenfunctions of a density given on a grid, that of eigenvalue 0 left out.

    Conjugated by the root r of the density, the generator is a symmetric matrix with -1/spacing^2 between neighbours and on the diagonal the sum of
    r_neighbour / (r spacing^2), so that r itself has eigenvalue 0 exactly. In double precision: eigenfunctions are ratios, and r is tiny in tails.
    """
    shape, d = log_density.shape, log_density.ndim
    spacing = (upper - lower) / (np.array(shape) - 1)
    half = np.clip(0.5 * (log_density - log_density.max()), -300.0, 0.0)
    number, matrix = np.arange(half.size).reshape(shape), np.zeros((half.size, half.size))
    for axis in range(d):
        a, b = (np.take(number, np.arange(i, shape[axis] - 1 + i), axis=axis).ravel() for i in (0, 1))
        step = np.take(half.ravel(), b) - np.take(half.ravel(), a)
        matrix[a, b] = matrix[b, a] = -1 / spacing[axis] ** 2
        np.add.at(matrix, (a, a), np.exp(step) / spacing[axis] ** 2)
        np.add.at(matrix, (b, b), np.exp(-step) / spacing[axis] ** 2)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    root = np.exp(half).ravel()
    norm = np.sqrt(np.sum(root**2))
    known = root > 1e-8
    functions = np.where(known[:, None], vectors[:, 1 : modes + 1] * norm / np.where(known, root, 1.0)[:, None], 0.0).T.reshape(modes, *shape)
    slopes = np.stack([np.asarray(np.gradient(functions, spacing[axis], axis=axis + 1)) for axis in range(d)])
    inner = known.reshape(shape)
    for axis in range(d):  # beside what is not known a difference is none
        inner = inner & np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
    slopes = np.where(inner, slopes, 0.0)
    return Spectrum(*map(jnp.asarray, (eigenvalues[1 : modes + 1], functions, slopes, lower, spacing)))


def _generator(found: Spectrum, log_density: Callable, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The mean over j of grad_1 K(x_i, x_j), K the sum of f_l(x) f_l(y) / eigenvalue_l; the density is in the eigenfunctions."""
    place = list(((x - found.lower) / found.spacing).T)
    at = lambda table: map_coordinates(table, place, order=1, mode="nearest")  # noqa: E731
    functions = jax.vmap(at)(found.functions)  # [modes, n]
    gradients = jax.vmap(jax.vmap(at))(found.gradients)  # [d, modes, n]
    inside = jnp.all((x >= found.lower) & (x <= found.lower + found.spacing * (jnp.array(found.functions.shape[1:]) - 1)), axis=1)
    pull = jnp.einsum("dmn,m->nd", gradients, jnp.mean(functions, axis=1) / found.eigenvalues)
    return jnp.where(inside[:, None], pull, 0.0)
