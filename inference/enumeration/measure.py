"""The exact measure of a finite program, and questions asked of it without error."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from posterity.inference.queries import Weighted
from posterity.ppl.answer import plain


@dataclasses.dataclass(frozen=True)
class Measure(Weighted):
    """A finite measure: distinct values with their exact weights (NumPy, 64 bits). Answers the queries of a `Posterior`, with errors of zero."""

    values: Any  # distinct values (with their choices), a pytree with leading axis n
    log_weights: np.ndarray  # [n] normalised, nats
    log_evidence: float  # nats; -inf when the program forbids everything
    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # [n, ...] for programs without scan
    branches: int = 0  # how many branches were looked at

    def __repr__(self) -> str:
        return f"Measure({len(self)} values, log_evidence={self.log_evidence:.6g})"

    def outcomes(self) -> dict[Any, float]:
        """Every value as a plain Python object, with its unnormalised mass."""
        return {answer: float(np.exp(self.log_evidence)) * probability for answer, (probability, _) in self.answers().items()} if self else {}

    def given(self, event: Callable[[Any], Any]) -> "Measure":
        """The measure restricted to the values where `event(value)` holds; its evidence is what they weigh.

        >>> import numpyro.distributions as dist, posterity as po
        >>> @po.program
        ... def dice():
        ...     return po.sample("a", dist.DiscreteUniform(1, 6)), po.sample("b", dist.DiscreteUniform(1, 6))
        >>> po.exact(dice()).given(lambda ab: ab[0] + ab[1] == 11).answers()
        {(5, 6): Estimate(value=0.5, error=0.0), (6, 5): Estimate(value=0.5, error=0.0)}
        """
        holds = np.asarray(self._each(event), bool)
        if holds.shape != (len(self),):
            raise ValueError(f"given: event must return one truth value, it returned shape {holds.shape[1:]}")
        log_weights = self.log_weights[holds]
        log_mass = float(np.logaddexp.reduce(log_weights)) if len(log_weights) else -np.inf
        values, choices = jax.tree.map(lambda x: x[holds], (self.values, dict(self.choices)))
        return Measure(values, log_weights - log_mass, self.log_evidence + log_mass, choices, self.branches)

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        """Values as plain Python objects with their probabilities."""
        rows = (jax.tree.map(lambda x, i=i: x[i], self.values) for i in range(len(self)))
        return zip(map(plain, rows), map(float, self.weights), strict=True)

    def _each(self, f: Callable[[Any], Any]) -> Any:
        with jax.enable_x64():
            return jax.device_get(jax.vmap(f)(self.values))


def measure(values: Any, log_weights: np.ndarray, branches: int, choices: Mapping[str, Any] | None = None) -> Measure:
    """A measure from unnormalised log weights [n], its values in their order (unless they are very many)."""
    m = len(log_weights)
    columns = [column for x in jax.tree.leaves(values) for column in x.reshape(m, -1).T] if 0 < m < 100_000 else []
    if columns:
        order = np.lexsort(columns[::-1])
        values, choices, log_weights = jax.tree.map(lambda x: x[order], (values, choices, log_weights))
    log_evidence = float(np.logaddexp.reduce(log_weights)) if m else -np.inf
    return Measure(values, log_weights - log_evidence, log_evidence, choices or {}, branches)
