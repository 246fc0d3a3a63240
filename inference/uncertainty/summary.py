"""A posterior's numbers in one table: where they lie, how far the Monte Carlo estimates may be off, and whether the chains agree."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from posterity.inference.mcmc.chain import Chain
from posterity.inference.population import effective_sample_size
from posterity.inference.queries import Weighted
from posterity.inference.uncertainty.diagnostics import ess_bulk, ess_tail, rank_rhat
from posterity.ppl.describe import table


class Row(NamedTuple):
    """What is known of one number."""

    mean: float
    error: float  # Monte Carlo standard error of the mean
    sd: float
    low: float  # 5% quantile
    high: float  # 95% quantile
    ess_bulk: float  # of weighted particles the effective sample size of the weights, in both places
    ess_tail: float
    rhat: float  # rank R-hat; NaN where there are no chains


class Summary(dict[str, Row]):
    """Rows by name; it prints as a table."""

    def __repr__(self) -> str:
        rows = [[name, *(f"{x:.4g}" for x in row)] for name, row in self.items()]
        return table(["", "mean", "error", "sd", "5%", "95%", "ess bulk", "ess tail", "R-hat"], rows, right=8)


def summary(posterior: Weighted, f: Callable[[Any], Any] = lambda value: value) -> Summary:
    """Means with Monte Carlo errors, deviations, quantiles, effective sample sizes and R-hat of every number that `f` gives of a value.

    Args:
      posterior: a `Chain` of one chain or several (their halves are compared when there is one), a `Posterior`, or any other weighted values.
      f: from one value to a pytree of numbers.

    Raises:
      ValueError: when there is no posterior.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(heads):
    ...     p = po.sample("p", dist.Beta(2.0, 2.0))
    ...     po.observe("heads", dist.Binomial(10, p), heads)
    ...     return {"p": p}
    >>> row = summary(po.importance(jax.random.key(0), coin(8), n=2_000))["p"]
    >>> round(row.mean, 1), row.ess_bulk > 500
    (0.7, True)
    """
    estimates = posterior.estimate(f)
    drawn = posterior._each(f)
    found = Summary()
    is_leaf = lambda x: hasattr(x, "error")  # noqa: E731
    for (path, estimate), column in zip(jax.tree_util.tree_leaves_with_path(estimates, is_leaf=is_leaf), jax.tree.leaves(drawn), strict=True):
        name, y = jax.tree_util.keystr(path, simple=True, separator=".") or "value", np.asarray(column, float)
        for index in np.ndindex(y.shape[1:]):
            whole = f"{name}[{', '.join(map(str, index))}]" if index else name
            found[whole] = _row(posterior, y[:, *index], float(np.asarray(estimate.value)[index]), float(np.asarray(estimate.error)[index]))
    return found


def _row(posterior: Weighted, y: np.ndarray, mean: float, error: float) -> Row:
    weights = np.exp(np.asarray(posterior.log_weights, float))
    alive = weights > 0
    sd = math.sqrt(float(weights[alive] @ (y[alive] - mean) ** 2 / weights.sum()))
    order = np.flatnonzero(alive)[np.argsort(y[alive], kind="stable")]
    reached = np.cumsum(weights[order])
    low, high = (float(y[order[np.searchsorted(reached, q * reached[-1])]]) for q in (0.05, 0.95))
    if not isinstance(posterior, Chain) or sd == 0:
        effective = float(effective_sample_size(jax.numpy.asarray(posterior.log_weights)))
        return Row(mean, error, sd, low, high, effective, effective, math.nan)
    chains = y.reshape(posterior.chains, -1)
    return Row(mean, error, sd, low, high, ess_bulk(chains), ess_tail(chains), rank_rhat(chains))
