"""Every way that a computation can go, one by one: for code that goes on in Python with what it drew.

The law that an inference must keep, E[exp(log_evidence) * sum_i W_i f(x_i)] = ⟦p⟧(f) (proper weighting; Ścibior et al.
2018, "Denotational validation of higher-order Bayesian inference"), is a finite sum when all choices are finite. Here
that sum is taken over what the inference's own code does, so that it can be compared to the program's meaning.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from posterity.ppl.effects import Decider
from posterity.ppl.support import atoms


class Outcome(NamedTuple):
    """One way that a computation can go."""

    probability: float
    result: Any


class _Branch(NamedTuple):
    """A draw met on the way, and what it has yet to be; the last option is the one taken."""

    name: str
    options: list[tuple[float, Any]]  # log probability (nats) and value


def outcomes(run: Callable[[], Any]) -> Iterator[Outcome]:
    """Every outcome of `run()`, by the law of all its draws: the programs' choices and the algorithms' (ancestors, say).

    `run` is called once an outcome, without compilation; outcomes of probability zero are left out. Probabilities are as
    exact as the precision: use float64 (`jax.enable_x64()`).

    Raises:
      ValueError: when a draw has no finite support, or differs between two runs that drew the same before it.

    >>> import numpyro.distributions as dist, posterity as po
    >>> [round(o.probability, 6) for o in outcomes(lambda: po.sample("a", dist.Bernoulli(0.5)) + po.sample("b", dist.Bernoulli(0.5)))]
    [0.25, 0.25, 0.25, 0.25]
    """
    path: list[_Branch] = []
    while True:
        with jax.disable_jit(), _Follow(path):
            result = run()
        yield Outcome(math.exp(math.fsum(branch.options[-1][0] for branch in path)), result)
        while path and len(path[-1].options) == 1:
            path.pop()
        if not path:
            return
        path[-1].options.pop()


class _Follow(Decider):
    """Decides draws along `path`, and beyond its end takes one option of each new draw, adding a branch."""

    def __init__(self, path: list[_Branch]):
        super().__init__()
        self.path, self.met = path, 0

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["value"] is not None:
            return
        if self.met == len(self.path):
            self.path.append(_Branch(msg["name"], _options(msg)))
        branch = self.path[self.met]
        if branch.name != msg["name"]:
            raise ValueError(f"enumeration: after the same draws, one run went on with {branch.name!r} and another with {msg['name']!r}")
        msg["value"] = branch.options[-1][1]
        self.met += 1


def _options(msg: Any) -> list[tuple[float, Any]]:
    """The values of positive probability, with their log probabilities; a batch of draws is one draw of their product."""
    values, log_probs = atoms(msg)
    if isinstance(log_probs, Tracer):
        raise ValueError(f"enumeration: site {msg['name']!r} is drawn in compiled code, where its branches cannot be followed")
    size, draws = log_probs.shape
    digits = [np.array(choice, int) for choice in itertools.product(range(size), repeat=draws)]
    options = [(float(log_probs[digit, np.arange(draws)].sum()), values(digit)) for digit in digits]
    return [option for option in options if option[0] > -math.inf]
