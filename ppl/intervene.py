"""NumPyro's handlers as transformations: choices conditioned or intervened on, parameters made random."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

from posterity.ppl.effects import SCAN, Scan
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Region, Rewriting, rewritten


class Setting(Rewriting):
    """Gives choices their values through NumPyro's handler. Each name has candidates, of which the one of the choice's shape is meant."""

    handler: type[handlers.condition | handlers.do]

    def __init__(self, options: Any, region: Region):
        super().__init__(options, region)
        self.now: dict[str, Any] = {}
        self.setter = self.handler(data=self.now)  # one, since `do` sends a message again, and knows it by this handler

    def choice(self, msg: Any) -> None:
        name, shape = msg["name"], msg["fn"].shape(msg["kwargs"].get("sample_shape", ()))
        fitting = [value for value in self.options[name] if value.shape == shape]
        if not fitting:
            given = self.options[name][0].shape
            raise ValueError(f"the value of {name!r} has shape {given}; the choice has {shape}, and one value for each step has the scan's length before that")
        self.now[name] = fitting[0]
        self.setter.process_message(msg)

    def scan(self, scan: Scan) -> Scan:
        rows = {name: value for name, (value,) in self.options.items() if name not in self.met and value.shape[:1] == (scan.length,)}
        if not rows:
            return super().scan(scan)

        def step(carry, x):
            x, now = x
            options = {name: (*values, now[name]) if name in now else values for name, values in self.options.items()}
            return self.step(scan.step, carry, x, options)

        return scan._replace(step=step, xs=(scan.xs, rows))


class Condition(Setting):
    """Observes choices."""

    handler = handlers.condition


class Do(Setting):
    """Intervenes on choices."""

    handler = handlers.do


class Lift(Rewriting):
    """Draws parameters before everything else, and hands them out wherever they are asked for."""

    kind = "parameter"

    def __enter__(self) -> None:
        self.values = {name: numpyro.sample(name, x) if isinstance(x, dist.Distribution) else x for name, x in self.options.items()}
        super().__enter__()

    def step(self, step: Any, carry: Any, x: Any, options: Any = None) -> Any:
        return super().step(step, carry, x, self.values)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == SCAN:
            super().process_message(msg)
        elif msg["type"] == "param" and not self.over:
            self.met.add(msg["name"])
            if msg["name"] in self.names:
                msg["value"], msg["stop"] = self.values[msg["name"]], True


def condition(program: Any, values: Mapping[str, Any]) -> FunctionProgram:
    """The program with choices observed at these values.

    Law: the program's measure restricted to where the choices have these values, with their density there.

    Args:
      program: one made by `@po.program`.
      values: for each name the value. For a choice of the scan's step it holds at every step; with a leading axis of the
        scan's length there is one for each step (they drive the scan, as its `xs` do).

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: from the inference: on a name that is no choice of the program, or a value of another shape.

    >>> import numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coins():
    ...     fair = po.sample("fair", dist.Bernoulli(0.5))
    ...     heads = po.sample("heads", dist.Bernoulli(1.0 - 0.5 * fair))
    ...     return fair
    >>> round(float(po.exact(po.condition(coins(), {"heads": 1})).expect()), 4)
    0.3333
    """
    return rewritten(Condition, program, _arrays(values))


def do(program: Any, values: Mapping[str, Any]) -> FunctionProgram:
    """The program with choices set to these values, whatever their law.

    Law: what the program means with the value written in each choice's place. As NumPyro has it, the choice itself is drawn
    still, by its law, and nobody hears of it: `condition` it, and the result is a counterfactual (Richardson and Robins 2013).

    Args:
      program: one made by `@po.program`.
      values: as for `condition`.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: from the inference: on a name that is no choice of the program, or a value of another shape.

    >>> import numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coins():
    ...     fair = po.sample("fair", dist.Bernoulli(0.5))
    ...     heads = po.sample("heads", dist.Bernoulli(1.0 - 0.5 * fair))
    ...     return fair
    >>> round(float(po.exact(po.do(coins(), {"heads": 1})).expect()), 4)
    0.5
    """
    return rewritten(Do, program, _arrays(values))


def lift(program: Any, priors: Mapping[str, dist.Distribution]) -> FunctionProgram:
    """The program with parameters (`numpyro.param`) drawn from priors, once, before everything else.

    Law: ∫ prior(dθ) ⟦program at θ⟧. The parameters become choices of the initial law, under their names.

    Args:
      program: one made by `@po.program`.
      priors: for each parameter its prior.

    Raises:
      TypeError: when the program is not made of a function, or a prior is no distribution.
      ValueError: from the inference: on a name that is no parameter of the program.

    >>> import jax, numpyro, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin():
    ...     heads = po.sample("heads", dist.Bernoulli(numpyro.param("p", 0.5)))
    ...     return heads
    >>> program = po.lift(coin(), {"p": dist.Beta(9.0, 1.0)})
    >>> bool(abs(po.smc(jax.random.key(0), program, n=1_000).expect() - 0.9) < 0.05)
    True
    """
    for name, prior in priors.items():
        if not isinstance(prior, dist.Distribution):
            raise TypeError(f"lift: the prior of {name!r} must be a distribution, got {type(prior).__name__}")
    return rewritten(Lift, program, dict(priors))


def _arrays(values: Mapping[str, Any]) -> dict[str, tuple[Array]]:
    return {name: (jnp.asarray(value),) for name, value in values.items()}
