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
    counted = False

    def __init__(self, options: Any, region: Region):
        super().__init__(options, region)
        self.now: dict[str, Any] = {}
        self.setter = self.handler(data=self.now)

    def choice(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.now[msg["name"]] = self._value(msg["name"], msg["fn"].shape(msg["kwargs"].get("sample_shape", ())))
            self.setter.process_message(msg)

    def _value(self, name: str, shape: tuple[int, ...]) -> Array:
        for value in self.options[name]:
            if value.shape == shape:
                return value
        given = self.options[name][0].shape
        raise ValueError(f"the value of {name!r} has shape {given}; the choice has {shape}, and one value for each step has the scan's length before that")

    def scan(self, scan: Scan) -> Scan:
        self.counted = any(name not in self.met and value.shape[:1] == (scan.length,) for name, (value,) in self.options.items())
        if not self.counted:
            return super().scan(scan)

        def step(carry, x):
            inner, time = carry
            options = {name: (value, value[time]) if value.shape[:1] == (scan.length,) else (value,) for name, (value,) in self.options.items()}
            return self.step(scan.step, inner, x, options), time + 1

        until = scan.until
        return scan._replace(init=(scan.init, jnp.zeros((), jnp.int32)), step=step, until=until and (lambda carry: until(carry[0])))

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == SCAN and self.counted:
            msg["value"] = msg["value"][0]  # the step counter goes as it came
        super().postprocess_message(msg)


class Condition(Setting):
    """Observes choices."""

    handler = handlers.condition


class Do(Setting):
    """Intervenes on choices."""

    handler = handlers.do


class Lift(Rewriting):
    """Draws parameters before everything else, by NumPyro's handler, and hands them out wherever they are asked for."""

    kind = "parameter"

    def __enter__(self) -> None:
        priors = {name: prior for name, prior in self.options.items() if isinstance(prior, dist.Distribution)}
        with handlers.lift(prior=priors):
            self.values = {name: numpyro.param(name) if name in priors else value for name, value in self.options.items()}
        super().__enter__()

    def step(self, step: Any, carry: Any, x: Any, options: Any = None) -> Any:
        return super().step(step, carry, x, self.values)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "param" and not self.over:
            self.met.add(msg["name"])
            if msg["name"] in self.values:
                msg["value"], msg["stop"] = self.values[msg["name"]], True
        elif msg["type"] == SCAN:
            super().process_message(msg)


def condition(program: Any, values: Mapping[str, Any]) -> FunctionProgram:
    """The program with choices observed at these values.

    Law: the program's measure restricted to where the choices have these values, with their density there.

    Args:
      program: one made by `@po.program`.
      values: for each name the value. For a choice of the scan's step it holds at every step; with a leading axis of the
        scan's length there is one for each step.

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
