"""Weighted values and the questions one asks of them: what an estimated posterior and an exact one share."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import ArrayLike, Float, PRNGKeyArray, Shaped

from posterity.ppl.answer import plain


class Estimate(NamedTuple):
    """A probability or mean with its Monte Carlo standard error (zero where weights are exact)."""

    value: float
    error: float


class Weighted:
    """The measure exp(log_evidence) sum_i exp(log_weights_i) delta(values_i), and queries of the posterior that it normalises to.

    Subclasses are dataclasses and pytrees with these fields. Arrays may be JAX's or NumPy's; NumPy's are summed in their own precision.
    """

    values: Any  # a pytree with leading axis n
    log_weights: Float[Array | np.ndarray, " n"]  # normalised, nats; all -inf when the evidence is zero
    log_evidence: Float[Array, ""] | float  # nats
    choices: Mapping[str, Any]  # [n, ...] named parts beside `values`: the choices of a program's initial law

    def __len__(self) -> int:
        return self.log_weights.shape[0]

    __iter__: ClassVar[Any] = None  # names are looked up, positions are not: no iteration by 0, 1, ..

    def __getitem__(self, name: str) -> Self:
        """The marginal of a named part: an entry (or field) of the values, else a choice of the program's initial law.

        Raises:
          KeyError: when nothing has that name.
        """
        parts = {**self.choices, **_entries(self.values)}
        if name not in parts:
            raise _NoSuchName(f"nothing here is called {name!r}; there is {', '.join(map(repr, parts)) or 'no named part'}. {_KEPT}")
        return dataclasses.replace(self, values=parts[name])  # pyright: ignore[reportArgumentType] - a subclass is a dataclass

    @property
    def weights(self) -> Float[Array | np.ndarray, " n"]:
        """Normalised weights."""
        return np.exp(self.log_weights) if isinstance(self.log_weights, np.ndarray) else jnp.exp(self.log_weights)

    def expect(self, f: Callable[[Any], Any] = lambda value: value) -> Any:
        """The posterior mean of `f(value)`, f of a single value (vmapped over the values); a pytree like f's result.

        Raises:
          ValueError: when the evidence is zero, so that there is no posterior.
        """
        self._check_alive()
        return jax.tree.map(lambda y: _mean(self.weights, y), self._each(f))

    def prob(self, event: Callable[[Any], Any]) -> Float[Array | np.ndarray, ""]:
        """The posterior probability that `event(value)` holds."""
        return self.expect(lambda value: jnp.asarray(event(value), bool)).clip(0.0, 1.0)  # rounding of the weights may leave a hair over 1

    def estimate(self, f: Callable[[Any], Any] = lambda value: value) -> Any:
        """The posterior mean of `f(value)` with its Monte Carlo standard error: an `Estimate` of floats for a scalar, a pytree of them with arrays for more.

        Of an event, it is the event's probability.
        """
        self._check_alive()
        return jax.tree.map(lambda y: self._estimated(np.asarray(y, float)), self._each(f))

    def quantile(self, q: Float[ArrayLike, "*q"], f: Callable[[Any], Any] = lambda value: value) -> Shaped[Array | np.ndarray, "*q"]:
        """Weighted quantiles of the scalar `f(value)` at `q` in [0, 1]: the smallest y with P(f <= y) >= q."""
        if not np.all((np.asarray(q) >= 0) & (np.asarray(q) <= 1)):
            raise ValueError(f"quantile: q must lie in [0, 1], got {q}")
        y = self._scalars("quantile", f)
        weights = self._host_weights()
        alive = np.flatnonzero(weights > 0)
        order = alive[np.argsort(np.asarray(y)[alive], kind="stable")]
        cumulative = np.cumsum(weights[order])
        index = np.searchsorted(cumulative, np.asarray(q) * cumulative[-1], side="left")
        return y[order[np.minimum(index, len(order) - 1)]]

    def quantile_estimate(self, q: float, f: Callable[[Any], Any] = lambda value: value) -> Estimate:
        """The quantile of the scalar `f(value)` at q in [0, 1] with its Monte Carlo standard error.

        The error is half the way between the quantiles at which the probability of lying below is one error of that probability away (Woodruff 1952).
        """
        value = float(self.quantile(q, f))
        error = self.estimate(lambda x: f(x) <= value).error
        low, high = np.asarray(self.quantile(np.clip([q - error, q + error], 0.0, 1.0), f), float)
        return Estimate(value, float(high - low) / 2)

    def sample(self, key: PRNGKeyArray, n: int | None = None) -> Any:
        """`n` equally weighted draws with replacement (one draw without leading axis when n is None)."""
        self._check_alive()
        chosen = jax.random.categorical(key, jnp.asarray(self.log_weights), shape=() if n is None else (n,))
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
        probability = np.bincount(which, weights=weights[alive])
        error = self._share_errors(weights[alive], which, alive)
        return {answer: Estimate(float(probability[k]), float(error[k])) for answer, k in sorted(ids.items(), key=lambda item: -probability[item[1]])}

    def entropy(self, extract: Callable[[Any], Hashable] | None = None) -> float:
        """The entropy of the answer's posterior, nats (from particles a plug-in estimate, biased low when answers are many)."""
        return -math.fsum(e.value * math.log(e.value) for e in self.answers(extract).values())

    # -- what a subclass may say of itself -----------------------------------------------------------------------------

    def _each(self, f: Callable[[Any], Any]) -> Any:
        """`f` of every value, with leading axis n."""
        return jax.vmap(f)(self.values)

    def _error(self, y: np.ndarray, mean: float) -> float:
        """The standard error of the weighted mean of `y` [n]; zero unless the weights are an estimate."""
        return 0.0

    def _share_errors(self, weights: np.ndarray, which: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """`_error` of the indicator of each answer, [answers]: the values `alive` [m] have `weights` [m] and answers `which` [m]."""
        return np.zeros(which.max() + 1)

    def _no_posterior(self) -> str:
        """Why there is nothing to query when the evidence is zero."""
        return f"the evidence is zero: none of {len(self)} values has any weight, so there is no posterior to query"

    # -------------------------------------------------------------------------------------------------------------------

    def _estimated(self, y: np.ndarray) -> Estimate:
        """The weighted mean of `y` [n, ...] and its error, entry by entry."""
        mean = np.asarray(_mean(self._host_weights(), y))
        errors = [self._error(column, float(m)) for column, m in zip(y.reshape(len(y), -1).T, mean.reshape(-1), strict=True)]
        return Estimate(float(mean), errors[0]) if y.ndim == 1 else Estimate(mean, np.reshape(errors, mean.shape))  # pyright: ignore[reportArgumentType] - arrays

    def _scalars(self, query: str, f: Callable[[Any], Any]) -> Any:
        self._check_alive()
        y = self._each(f)
        if jnp.ndim(y) != 1:
            raise ValueError(f"{query}: f must return a scalar, it returned shape {jnp.shape(y)[1:]}")
        return y

    def _host_weights(self) -> Float[np.ndarray, " n"]:
        """The weights in double precision, so that probabilities sum to one in print."""
        weights = np.exp(np.asarray(self.log_weights, float))
        return weights / weights.sum()

    def _check_alive(self) -> None:
        if not isinstance(self.log_evidence, Tracer) and not np.isfinite(self.log_evidence):
            raise ValueError(self._no_posterior())


def query(posterior: Weighted, f: Callable[[Any], Any]) -> Any:
    """The push-forward of a posterior under `f`, f of a single value (vmapped): the same weights on the values f(value), of the same class.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def dice():
    ...     return po.sample("dice", dist.DiscreteUniform(1, 6).expand([2]).to_event(1))
    >>> total = po.query(po.importance(jax.random.key(0), dice(), n=10_000), lambda dice: dice.sum())
    >>> bool(abs(total.answers()[7].value - 1 / 6) < 0.02)
    True
    """
    return dataclasses.replace(posterior, values=posterior._each(f))  # pyright: ignore[reportArgumentType] - a subclass is a dataclass


_KEPT = "A program's choices before its scan have names here, and the entries of the dict that it returns; what its step chooses is kept only if returned."


class _NoSuchName(KeyError):
    """A KeyError whose message prints as it is written."""

    def __str__(self) -> str:
        return str(self.args[0])


def _entries(values: Any) -> dict[str, Any]:
    """The named entries of a dict, a named tuple or a dataclass."""
    if isinstance(values, dict):
        return {name: x for name, x in values.items() if isinstance(name, str)}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return values._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    fields = dataclasses.fields(values) if dataclasses.is_dataclass(values) else ()
    return {field.name: getattr(values, field.name) for field in fields if field.metadata.get("pytree_node", True)}


def _mean(weights: Any, y: Any) -> Any:
    """The weighted mean of `y` [n, ...]; zero weights make no NaN of an infinite value."""
    xp = np if isinstance(weights, np.ndarray) else jnp
    y = xp.asarray(y, float)
    mean = xp.tensordot(weights, xp.where((weights == 0).reshape(weights.shape + (1,) * (y.ndim - 1)), 0.0, y), axes=1)
    return mean[()] if xp is np else mean  # a NumPy number, not an array without axes
