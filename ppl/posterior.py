"""A posterior and the questions one asks of it."""

import abc
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer

from posterity.ppl.lineage import Lineage
from posterity.ppl.population import effective_sample_size


class Estimate(NamedTuple):
    """A probability or mean with its Monte Carlo standard error."""

    value: float
    error: float


@struct.dataclass
class Posterior:
    """Weighted values approximating a posterior, with its evidence. A pytree: it may be returned from jit.

    Errors come from one run: the larger of the importance-sampling error sqrt(sum W_i^2 (f_i - mean)^2) and the same sum
    over families that share an ancestor at time 0 (Chan and Lai 2013; Lee and Whiteley 2018), which counts what
    resampling correlates. When few families are left both are too small; repeat with other keys then.
    """

    values: Any  # the program's results, a pytree with leading axis n
    log_weights: Array  # [n] normalised, nats; all -inf when the evidence is zero
    log_evidence: Array  # [] nats; -inf when no particle survived
    eves: Array  # [n] each particle's ancestor at time 0
    invalid: Array  # [] how many potentials of the last step were NaN or +inf; then the run stopped there and log_evidence is -inf
    steps: Array  # [] steps made; fewer than the program's when all particles were done, or none had any weight left
    ess_history: Array  # [length] effective sample size when each step began; NaN for steps not made
    resampled: Array  # [length] bool
    ancestors: Array | None  # [length, n] int32, or None when the run kept no history

    def __len__(self) -> int:
        return self.log_weights.shape[0]

    def __repr__(self) -> str:
        return f"Posterior(n={len(self)}, log_evidence={float(self.log_evidence):.4g}, ess={float(self.ess):.1f}, steps={int(self.steps)})"

    @property
    def weights(self) -> Array:
        """Normalised weights [n]."""
        return jnp.exp(self.log_weights)

    @property
    def ess(self) -> Array:
        """Effective sample size of the final weights, between 1 and n; 0 when the evidence is zero."""
        return effective_sample_size(self.log_weights)

    @property
    def lineage(self) -> Lineage:
        """The genealogy of the steps made.

        Raises:
          ValueError: when the run was told to keep none (`history=False`).
        """
        if self.ancestors is None:
            raise ValueError("this run kept no ancestors; call the inference with history=True")
        steps = int(self.steps)
        return Lineage(self.ancestors[:steps], self.resampled[:steps])

    def expect(self, f: Callable[[Any], Any] = lambda value: value) -> Any:
        """The posterior mean of `f(value)`, f of a single value (vmapped over the particles); a pytree like f's result.

        Raises:
          ValueError: when the evidence is zero, so that there is no posterior.
        """
        self._check_alive()
        return jax.tree.map(lambda y: jnp.tensordot(self.weights, _zero_where(self.weights == 0, jnp.asarray(y, float)), axes=1), jax.vmap(f)(self.values))

    def prob(self, event: Callable[[Any], Any]) -> Array:
        """The posterior probability that `event(value)` holds."""
        return jnp.clip(self.expect(lambda value: jnp.asarray(event(value), bool)), 0.0, 1.0)  # rounding of the weights may leave a hair over 1

    def estimate(self, f: Callable[[Any], Any]) -> Estimate:
        """The posterior mean of a scalar `f(value)` with its Monte Carlo standard error."""
        mean = self.expect(f)
        if jnp.ndim(mean):
            raise ValueError(f"estimate: f must return a scalar, it returned shape {jnp.shape(mean)}")
        return Estimate(float(mean), self._error(np.asarray(jax.vmap(f)(self.values), float), float(mean)))

    def quantile(self, q: float | Array, f: Callable[[Any], Any] = lambda value: value) -> Array:
        """Weighted quantiles of the scalar `f(value)` at `q` in [0, 1]: the smallest y with P(f <= y) >= q."""
        self._check_alive()
        if not np.all((np.asarray(q) >= 0) & (np.asarray(q) <= 1)):
            raise ValueError(f"quantile: q must lie in [0, 1], got {q}")
        y = jax.vmap(f)(self.values)
        if jnp.ndim(y) != 1:
            raise ValueError(f"quantile: f must return a scalar, it returned shape {jnp.shape(y)[1:]}")
        weights = self._host_weights()
        alive = np.flatnonzero(weights > 0)
        order = alive[np.argsort(np.asarray(y)[alive], kind="stable")]
        cumulative = np.cumsum(weights[order])
        index = np.searchsorted(cumulative, np.asarray(q) * cumulative[-1], side="left")
        return y[order[np.minimum(index, len(order) - 1)]]

    def sample(self, key: Array, n: int | None = None) -> Any:
        """`n` equally weighted draws with replacement (one draw without leading axis when n is None)."""
        self._check_alive()
        chosen = jax.random.categorical(key, self.log_weights, shape=() if n is None else (n,))
        return jax.tree.map(lambda x: x[chosen], self.values)

    def answers(self, extract: Callable[[Any], Hashable] | None = None) -> dict[Any, Estimate]:
        """The posterior of the answer: {answer: (probability, Monte Carlo error)}, most probable first.

        Args:
          extract: from one value (NumPy leaves) to a hashable answer. By default a text is its own answer, an array the
            number or tuple of numbers it holds.
        """
        self._check_alive()
        weights, rows = self._host_weights(), jax.device_get(self.values)
        alive = np.flatnonzero(weights > 0)
        read = plain if extract is None else extract
        ids: dict[Any, int] = {}
        which = np.array([ids.setdefault(read(jax.tree.map(lambda x, i=i: x[i], rows)), len(ids)) for i in alive])
        probability, error = _shares(weights[alive], which, np.asarray(self.eves)[alive])
        return {answer: Estimate(float(probability[k]), float(error[k])) for answer, k in sorted(ids.items(), key=lambda item: -probability[item[1]])}

    def entropy(self, extract: Callable[[Any], Hashable] | None = None) -> float:
        """The entropy of the answer's posterior, nats (plug-in estimate, biased low when answers are many)."""
        return -math.fsum(e.value * math.log(e.value) for e in self.answers(extract).values())

    def _host_weights(self) -> np.ndarray:
        """The weights [n] in double precision, so that probabilities sum to one in print."""
        weights = np.exp(np.asarray(self.log_weights, float))
        return weights / weights.sum()

    def _error(self, y: np.ndarray, mean: float) -> float:
        weights = self._host_weights()
        deviations = weights * (np.where(weights > 0, y, mean) - mean)
        families = np.bincount(np.asarray(self.eves), weights=deviations, minlength=len(self))
        return math.sqrt(max(float(deviations @ deviations), float(families @ families)))

    def _check_alive(self) -> None:
        if not isinstance(self.log_evidence, Tracer) and not np.isfinite(self.log_evidence):
            raise ValueError(
                f"the evidence is zero: no particle of {len(self)} survived the potentials of step {int(self.steps)}, so there is no posterior to query"
            )


class Answer(abc.ABC):
    """A value that knows its own answer, such as a text."""

    @abc.abstractmethod
    def answer(self) -> Hashable:
        """What `Posterior.answers` counts this value as."""


def plain(value: Any) -> Hashable:
    """A value as a hashable Python object: its own answer if it has one, else numbers and tuples of numbers."""
    if isinstance(value, Answer):
        return value.answer()
    if isinstance(value, dict):
        return tuple((name, plain(x)) for name, x in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(plain(x) for x in value)
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else tuple(plain(row) for row in array)


def _shares(weights: np.ndarray, which: np.ndarray, eves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each answer's weight and the standard error of it (as `Posterior._error` of its indicator), for all answers at once."""
    share = np.bincount(which, weights=weights)
    squares = np.bincount(which, weights=weights**2)
    independent = squares * (1 - 2 * share) + share**2 * squares.sum()
    pairs, pair = np.unique(np.stack([which, eves]), axis=1, return_inverse=True)
    in_family = np.bincount(pair.reshape(-1), weights=weights)
    family = np.bincount(eves, weights=weights)
    cross = np.bincount(pairs[0], weights=in_family * (in_family - 2 * share[pairs[0]] * family[pairs[1]]))
    grouped = cross + share**2 * (family**2).sum()
    return share, np.sqrt(np.maximum(np.maximum(independent, grouped), 0.0))


def _zero_where(condition: Array, y: Array) -> Array:
    """Zero weights make no NaN of an infinite value: rows where `condition` holds count as zero."""
    return jnp.where(condition.reshape(condition.shape + (1,) * (y.ndim - 1)), 0.0, y)
