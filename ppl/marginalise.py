"""Choices summed out instead of drawn (Rao-Blackwell)."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from posterity.ppl.effects import Scan
from posterity.ppl.errors import same_for_all
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Region, Rewriting, atoms, chosen, joint, rewritten


class Marginalise(Rewriting):
    """Gives the named choices their first value, on which nothing may depend but potentials, and sums those over all values."""

    def __init__(self, options: Any, region: Region):
        super().__init__(options, region)
        self.summed: list[str] = []

    def choice(self, msg: Any) -> None:
        msg["value"], msg["stop"] = jax.tree.map(lambda x: x[0], atoms(msg)[0]), True
        self.summed.append(msg["name"])

    def potential(self, msg: Any) -> None:
        msg["stop"] = bool(self.summed)

    def finish(self) -> None:
        if self.summed:
            log_weights = self._joint(lambda given, result: (given.laws, result))
            self.weigh(f"{self.summed[0]}/evidence", jax.scipy.special.logsumexp(log_weights))

    def step(self, step: Callable, carry: Any, x: Any) -> Any:
        if self.summed:  # in the initial law: neither a step nor what follows may hear of it, not even past the carry
            jax.eval_shape(lambda: self._joint(lambda given, result: (given.laws, given.log_potential, result), lambda scan: scan.step(carry, x)))
        return super().step(step, carry, x)

    def _joint(self, rest: Callable, at_scan: Callable[[Scan], Any] | None = None) -> Array:
        wrong = f"marginalise: the carry, the result, or the law of a later choice depends on {', '.join(map(repr, self.summed))}"
        with same_for_all(f"{wrong}; only potentials of the same region may (of the initial law, or of the same step)"):
            return joint(self.region, self.choices, frozenset(self.summed), rest, at_scan)


def marginalise(program: Any, *names: str) -> FunctionProgram:
    """The program with the named choices summed out: where they were drawn, the potentials are log sum_z p(z) exp(potentials).

    Law: the meaning is the program's (its value must not depend on these choices), and every weight has less variance
    (Rao-Blackwell).

    Args:
      program: one made by `@po.program`.
      names: choices of finite support on which only potentials of the same region (the scan's step, or the initial law)
        depend; several in one region are summed jointly.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: without names; from the inference: on a name that is no choice of the program, one of infinite support, or
        one on which the carry, the result, or the law of a later choice depends.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def outlier(y):
    ...     bad = po.sample("bad", dist.Bernoulli(0.1))
    ...     x = po.sample("x", dist.Normal(0.0, 1.0))
    ...     po.observe("y", dist.Normal(x, jnp.where(bad, 10.0, 0.1)), y)
    ...     return x
    >>> exact = po.marginalise(outlier(1.0), "bad")
    >>> posterior = po.importance(jax.random.key(0), exact, n=1_000)
    >>> 0.8 < float(posterior.expect()) < 1.0
    True
    """
    return rewritten(Marginalise, program, chosen("marginalise", names))
