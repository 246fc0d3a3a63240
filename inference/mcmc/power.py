"""Programs whose choices count by a power of their density: power posteriors of whole sequences."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from posterity.ppl.errors import log_density
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Region, Rewriting, chosen, rewritten
from posterity.ppl.transform import known


class Power(Rewriting):
    """Weighs each named choice by its density to the power of its exponent less one."""

    def __init__(self, options: Any, region: Region):
        super().__init__(options, region)
        self.site: Any = None

    def choice(self, msg: Any) -> None:
        self.site = {**msg}  # with the law that it has here, whatever it is drawn from further out

    def chose(self, name: str, value: Any) -> None:
        log_prob = log_density({**self.site, "value": value, "intermediates": []})
        self.weigh(f"{name}/power", jnp.where(jnp.isneginf(log_prob), -jnp.inf, (self.options[name] - 1.0) * log_prob))


def power(program: Any, exponent: Array | float, *names: str) -> FunctionProgram:
    """The program with the densities of the named choices raised to a power: for a text of tokens x, the law p(x)^exponent.

    Law: the measure with density p(x)^exponent in the place of p(x), potentials as they are; the evidence is its mass. The choices are still drawn
    from p and weigh p^(exponent - 1); `adapt` them, and each is drawn from p^exponent normalised, and weighs the sum that this divides by. That sum is what
    a temperature of 1/exponent forgets, token by token: so sampling at a temperature has another law than the power of whole texts.

    Args:
      program: one made by `@po.program`.
      exponent: 1 changes nothing, more sharpens, between 0 and 1 flattens; another number compiles nothing anew.
      names: choices with a density, of the scan's step or the initial law; every step's choice of a name counts.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: without names, for an exponent below 0; from the inference: on a name that is no choice of the program.

    Source: Karan and Du (2025), "Reasoning with sampling", for language models.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def die():
    ...     return po.sample("die", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    >>> {value: round(estimate.value, 3) for value, estimate in po.exact(po.power(die(), 2.0, "die")).answers().items()}
    {0: 0.658, 1: 0.237, 2: 0.105}
    """
    if not known(exponent, lambda x: x.shape == () and x >= 0):
        raise ValueError(f"power: exponent must be a number from 0 on, got {exponent!r}")
    return rewritten(Power, program, dict.fromkeys(chosen("power", names), jnp.asarray(exponent, float)))
