"""Is an inference right? Parameters and data are simulated together, and the truth must look like one more draw of the posterior."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from posterity.inference.drive import check_counts, check_key
from posterity.inference.validation.forward import observing, simulate
from posterity.inference.validation.uniformity import band, counted, grid_of, uniformity
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import of_function

COVERAGE = "coverage (TARP)"
REFERENCES = 1_000  # simulations without inference, from which references learn how data tell of the truth


class Ranks(NamedTuple):
    """How many posterior draws lie below the truth, and how many are equal to it."""

    less: Array
    equal: Array


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration found. True when no departure from exactness was seen: an exact method is refused with probability at most 1 - level.

    Every column of `ranks`, and `coverage`, are independent uniform numbers when the method draws from the exact posterior.
    """

    names: tuple[str, ...]  # of the quantities, [d]
    ranks: Float[np.ndarray, "simulations d"]  # of the truth among posterior draws, in [0, 1], ties broken at random
    coverage: Float[np.ndarray, " simulations"]  # the mass of the posterior nearer to a reference, which depends on the data, than the truth is
    p_values: dict[str, float]  # of each quantity's ranks, and of the coverage
    level: float

    @property
    def p_value(self) -> float:
        """The smallest p-value times their number (Bonferroni), at most 1."""
        return min(1.0, min(self.p_values.values()) * len(self.p_values))

    def __bool__(self) -> bool:
        return self.p_value > 1 - self.level

    def __str__(self) -> str:
        name, p_value = min(self.p_values.items(), key=lambda item: item[1])
        found = "no fault seen" if self else f"REFUSED, first by {name}"
        tests = f"p = {self.p_value:.2g}, the smallest of {len(self.p_values)} p-values ({p_value:.2g}, {name}) times their number"
        return f"calibration over {len(self.coverage)} simulations: {found} ({tests}; an exact method is refused in at most {1 - self.level:.2g} of cases)"

    __repr__ = __str__

    def expected_coverage(self, levels: Float[ArrayLike, " k"]) -> Float[np.ndarray, " k"]:
        """How often the truth lay in the region that holds `levels` of the posterior and is nearest to the reference: equal to `levels` when exact."""
        return np.searchsorted(np.sort(self.coverage), np.asarray(levels, float), side="right") / len(self.coverage)

    def coverage_band(
        self, levels: Float[ArrayLike, " k"], *, level: float = 0.95, resamples: int = 1_000, seed: int = 0
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Bounds of `expected_coverage` at each level by itself, by drawing simulations again (percentile bootstrap)."""
        drawn = np.random.default_rng(seed).choice(self.coverage, (resamples, len(self.coverage)))
        found = (drawn[:, :, None] <= np.asarray(levels, float)).mean(axis=1)
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def plot(self, figure: Any = None) -> Any:
        """A matplotlib figure: how far the distributions of ranks lie above uniform, and expected coverage, each with the band that exact methods stay in.

        The bands of the picture hold at each test's own share of the level, so that a line leaves its band where the report refuses. Behind the
        coverage is its bootstrap interval of 95%. Drawn into `figure` (a part of another, say), if one is given. Needs the extra `plot`.
        """
        return _drawn(self, figure)


def calibration(
    program: Any,
    method: Callable[[Array, Any], Any],
    *,
    key: PRNGKeyArray,
    simulations: int = 200,
    draws: int = 100,
    f: Callable[[Any], Any] = lambda value: value,
    reference: Callable[[Array, dict[str, Array]], Any] | None = None,
    bind: Callable[[dict[str, Array]], Any] | None = None,
    level: float = 0.99,
    batch: int = 50,
) -> Calibration:
    """Simulation-based calibration and TARP: whether a method draws from the posteriors of a program, on data that the program makes up itself.

    Every simulation draws a result and data from the program (`po.simulate`), and gives the method the program with those data. An exact posterior
    cannot tell the result from its own draws: its rank among them is uniform, quantity by quantity (SBC), and so is that of its
    distance from a reference point, all quantities together (TARP). References depend on the data: with others the prior would pass
    for a posterior. Both are tested by `uniformity`; ties are broken at random, and weights are followed by drawing anew, so that any posterior will do.

    The method must be worth many more than `draws` independent draws: what it errs at a finite size is found too, with enough simulations.

    Args:
      program: one made by `@po.program`; of the data it has only the shapes count. Its result is what is judged: of a state-space program say the
        last state, or what it returns of the path.
      method: `method(key, program)` to a posterior of the program's values: a `Posterior`, `Chain`, `Measure`. If JAX can trace it, all simulations run
        in one compiled program, else one by one. The same function object compiles once; what a `jax.tree_util.Partial` binds is data.
      key: a `jax.random.key`.
      simulations: how many; the distribution function is known to about 1 / sqrt(simulations).
      draws: how many draws of each posterior the truth is ranked among.
      f: what of a single value is judged, a pytree of numbers; all by default.
      reference: `reference(key, data)`, like f's result: the reference point of TARP. By default a linear regression on the data and their
        squares, learned from 1,000 further simulations, with noise of the size of its errors.
      bind: `bind(data)` makes the program of simulated data, by name; by default `po.observing(program, data)`. For methods that look
        at data elsewhere (a proposal that is told the next observation, say).
      level: an exact method passes with this probability at least.
      batch: how many simulations run side by side in compiled code.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: when it weighs by factors, on counts below 1, f that gives nothing, or when the method finds no posterior for some data.

    Source: Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration"; Säilynoja, Bürkner and Vehtari (2022); Lemos,
    Coogan, Hezaveh and Perreault-Levasseur (2023), "Sampling-based accuracy testing of posterior estimators for general inference" (TARP).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def mean(ys):
    ...     x = po.sample("x", dist.Normal(0.0, 1.0))
    ...     po.observe("ys", dist.Normal(x, 1.0), ys)
    ...     return x
    >>> method = lambda key, program: po.importance(key, program, n=1_000)
    >>> bool(po.check.calibration(mean(jnp.zeros(3)), method, key=jax.random.key(0)))
    True
    >>> prior = lambda key, program: po.importance(key, program, n=1_000).replace(log_weights=jnp.full(1_000, -jnp.log(1_000)))
    >>> bool(po.check.calibration(mean(jnp.zeros(3)), prior, key=jax.random.key(0)))
    False
    """
    check_key(key)
    check_counts(simulations=(simulations, 1), draws=(draws, 1), batch=(batch, 1))
    if not 0 < level < 1:
        raise ValueError(f"calibration: level must lie between 0 and 1, such as 0.99, got {level}")
    program = of_function("calibration", program)
    simulate_key, reference_key, tie_key, run_key = jax.random.split(key, 4)
    simulated = simulate(simulate_key, program, simulations + REFERENCES)
    found, names = _vectors(f, simulated.values)
    truths, learned = found[:simulations], np.asarray(found[simulations:], float)
    data, scale = jax.tree.map(lambda x: x[:simulations], simulated.data), _spread(learned)
    if reference is None:
        references = _regressed(reference_key, learned, simulated.data, simulations, scale)
    else:
        points, _ = _vectors(lambda x: x, jax.vmap(reference)(jax.random.split(reference_key, simulations), data))
        references = jnp.broadcast_to(points, truths.shape)
    rows = (jax.random.split(run_key, simulations), data, truths, references)
    method, options = method if isinstance(method, Partial) else Partial(method), {"f": f, "draws": draws, "bind": bind}
    try:
        below, nearer, alive = _compiled(rows, method, program, jnp.asarray(scale), batch=min(batch, simulations), **options)
    except (TypeError, ValueError):  # what cannot be traced runs as it is, and what is wrong with it says so there
        ranked = [_ranked(jax.tree.map(lambda x, i=i: x[i], rows), method, program, scale, **options) for i in range(simulations)]
        below, nearer, alive = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(ranked))
    if lost := int(np.sum(~np.asarray(alive))):
        raise ValueError(f"calibration: in {lost} of {simulations} simulations the method found no posterior: evidence zero, or potentials that are no numbers")
    ranks, coverage = _uniform(tie_key, below, draws), _uniform(jax.random.fold_in(tie_key, 1), nearer, draws)
    p_values = {name: uniformity(column) for name, column in zip(names, ranks.T, strict=True)} | {COVERAGE: uniformity(coverage)}
    return Calibration(names, ranks, coverage, p_values, level)


def nearness(draws: Float[Array, "draws d"], truth: Float[Array, " d"], reference: Float[Array, " d"], scale: Float[Array, " d"] | float = 1.0) -> Ranks:
    """How many draws lie nearer to the reference than the truth does, and how many as near; distances in units of `scale`."""
    distances = jnp.sum(((jnp.concatenate([truth[None], draws]) - reference) / scale) ** 2, axis=1)
    return Ranks(jnp.sum(distances[1:] < distances[0]), jnp.sum(distances[1:] == distances[0]))


def _ranked(row: tuple, method: Partial, program: FunctionProgram, scale: Any, *, f: Callable, draws: int, bind: Callable | None) -> tuple[Ranks, Ranks, Array]:
    """One simulation: ranks of the truth [d], of its distance from the reference [], and whether there is a posterior at all."""
    key, data, truth, reference = row
    method_key, draw_key = jax.random.split(key)
    posterior = method(method_key, observing(program, data) if bind is None else bind(data))
    reached = jnp.cumsum(jnp.exp(jnp.asarray(posterior.log_weights)))
    index = jnp.searchsorted(reached, reached[-1] * jax.random.uniform(draw_key, (draws,)), side="right").clip(0, len(reached) - 1)
    drawn = jax.vmap(lambda value: ravel_pytree(_numbers(f(value)))[0])(jax.tree.map(lambda x: jnp.asarray(x)[index], posterior.values))
    found = jnp.asarray(posterior.log_evidence != -jnp.inf)  # NaN is a chain's: not estimated
    return Ranks(jnp.sum(drawn < truth, axis=0), jnp.sum(drawn == truth, axis=0)), nearness(drawn, truth, reference, scale), found


@functools.partial(jax.jit, static_argnames=("f", "draws", "bind", "batch"))
def _compiled(rows: tuple, method: Partial, program: FunctionProgram, scale: Array, *, batch: int, **options: Any) -> tuple[Ranks, Ranks, Array]:
    return lax.map(lambda row: _ranked(row, method, program, scale, **options), rows, batch_size=batch)


def _uniform(key: Array, ranks: Ranks, draws: int) -> np.ndarray:
    """Ranks among the draws as numbers that are uniform when the truth is one more of them."""
    between = jax.random.uniform(key, np.shape(ranks.less))
    return np.clip((np.asarray(ranks.less) + np.asarray(between, float) * (np.asarray(ranks.equal) + 1)) / (draws + 1), 0.0, 1.0)


def _numbers(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def _vectors(f: Callable, values: Any) -> tuple[Float[Array, "n d"], tuple[str, ...]]:
    """`f` of every value as a row of numbers, and what they are called."""
    found = jax.vmap(lambda value: _numbers(f(value)))(values)
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        name, shape = jax.tree_util.keystr(path, simple=True, separator=".") or "value", leaf.shape[1:]
        names += [name] if shape == () else [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)]
    if not names:
        raise ValueError("calibration: f must return at least one number of a value")
    return jax.vmap(lambda row: ravel_pytree(row)[0])(found), tuple(names)


def _spread(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """The width of the middle nine tenths of each column; its standard deviation where that is zero, or 1."""
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    spread = np.where(high > low, high - low, x.std(axis=0))
    return np.where(spread > 0, spread, 1.0)


def _regressed(key: Array, learned: Float[np.ndarray, "k d"], data: dict[str, Array], n: int, scale: Float[np.ndarray, " d"]) -> Float[Array, "n d"]:
    """Reference points for the first n data sets: what a ridge regression learned from the other k says, plus noise as large as its errors.

    Any function of the data would do.
    """
    centre, features = np.median(learned, axis=0), _features(data, n)
    targets = np.clip((learned - centre) / scale, -5, 5)  # priors may have no variance
    before = features[n:]
    weights = np.linalg.solve(before.T @ before + np.eye(before.shape[1]), before.T @ targets)
    errors = np.std(targets - before @ weights, axis=0)
    noise = np.asarray(jax.random.normal(key, (n, targets.shape[1])), float)
    return jnp.asarray(centre + scale * (features[:n] @ weights + errors * noise), float)


def _features(data: dict[str, Array], n: int) -> Float[np.ndarray, "rows features"]:
    """One; each number observed, by how far it lies from its median beyond the first n rows, on a scale that bends for the far ones; and these squared."""
    numbers = np.concatenate([np.reshape(np.asarray(leaf, float), (len(leaf), -1)) for leaf in jax.tree.leaves(data)], axis=1)
    usual = numbers[n:]
    bent = np.arcsinh((numbers - np.median(usual, axis=0)) / _spread(usual))
    return np.concatenate([np.ones((len(bent), 1)), bent, bent**2], axis=1)


def _drawn(report: Calibration, figure: Any) -> Any:
    if figure is None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("pictures need matplotlib: pip install 'posterity[plot]'") from error
        figure = Figure(figsize=(10, 4), layout="constrained")
    n, grid = len(report.coverage), grid_of(len(report.coverage))
    low, high = band(n, 1 - (1 - report.level) / len(report.p_values))
    by_rank, by_level = figure.subplots(1, 2)
    by_rank.fill_between(grid, low - grid, high - grid, color="0.9", linewidth=0, label="exact methods")
    for name, column in zip(report.names, report.ranks.T, strict=True):
        by_rank.step(grid, counted(column) / n - grid, where="mid", linewidth=1.2, label=name if len(report.names) <= 8 else None)
    by_rank.set(xlabel="rank of the truth among posterior draws", ylabel="share below it, above uniform", title="each quantity (SBC)")
    by_level.fill_between(grid, low, high, color="0.9", linewidth=0, label="exact methods")
    by_level.fill_between(grid, *report.coverage_band(grid), color="#0072B2", alpha=0.2, linewidth=0, label="bootstrap, 95%")
    by_level.plot(grid, report.expected_coverage(grid), color="#0072B2", linewidth=1.6, label="expected coverage")
    by_level.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    by_level.set(xlabel="credibility level", ylabel="share of truths inside", title="all together (TARP)")
    for axes, corner in ((by_rank, "upper right"), (by_level, "upper left")):
        axes.legend(fontsize=8, loc=corner, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(str(report).split(" (")[0])
    return figure
