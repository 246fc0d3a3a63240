"""The most probable answer of a posterior, and how sure it is that it is the most probable."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

from posterity.inference.queries import Estimate, Weighted
from posterity.ppl.answer import plain


class Mode(NamedTuple):
    """The most probable answer; nothing here says that it is true."""

    answer: Hashable
    probability: Estimate  # and its Monte Carlo error
    margin: Estimate  # over the next answer's probability: more than two errors away from zero, the order is hardly an accident of the particles


def mode(posterior: Weighted, extract: Callable[[Any], Hashable] | None = None) -> Mode:
    """The mode of the answers' posterior, with Monte Carlo errors (zero where the weights are exact).

    Args:
      posterior: of any inference.
      extract: from one value (NumPy leaves) to a hashable answer, as in `Posterior.answers`.

    Raises:
      ValueError: when the evidence is zero.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin():
    ...     return po.sample("heads", dist.Bernoulli(0.8))
    >>> mode(po.importance(jax.random.key(0), coin(), n=1_000)).answer
    1
    """
    found = posterior.answers(extract)
    (first, probability), *rest = found.items()
    if not rest:
        return Mode(first, probability, Estimate(1.0, 0.0))
    second, next_probability = rest[0]
    read, rows = plain if extract is None else extract, jax.device_get(posterior.values)
    weights = posterior._host_weights()
    which = [read(jax.tree.map(lambda x, i=i: x[i], rows)) if weights[i] > 0 else None for i in range(len(posterior))]
    sign = np.array([(answer == first) - float(answer == second) for answer in which])
    margin = probability.value - next_probability.value
    return Mode(first, probability, Estimate(margin, posterior._error(sign, margin)))
