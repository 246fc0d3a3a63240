"""Programs run forwards: their observations drawn instead of observed, and other data put in the place of those they have."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from posterity.ppl.effects import Scan
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Rewriting, of_function, rewritten


class Simulated(NamedTuple):
    """Draws from the joint law of what a program chooses and what it observes."""

    values: Any  # the program's results, a pytree with leading axis n
    data: dict[str, Any]  # what it would have observed, by name: [n, ...] before its scan, [n, steps, ...] in its step
    choices: dict[str, Any]  # of the initial law, [n, ...]
    drawn: dict[str, Any]  # of the steps, [n, steps, ...]; those after a particle's end mean nothing


class Simulate(Rewriting):
    """Makes choices of observations."""

    def potential(self, msg: Any) -> None:
        name, law, shape = msg["name"], msg["fn"], jnp.shape(msg["value"])
        if isinstance(law, dist.Unit) or msg["scale"] is not None:
            what = "weighs by the factor" if isinstance(law, dist.Unit) else "scales the density of"
            raise ValueError(f"simulate: the program {what} {name!r}; only what it observes from a distribution can be drawn")
        batch = jnp.broadcast_shapes(law.batch_shape, shape[: len(shape) - law.event_dim])
        msg["fn"] = law if batch == law.batch_shape else law.expand(batch)  # one law for many data: each is drawn
        msg["value"], msg["is_observed"] = None, False


class Observing(Rewriting):
    """Observes other data."""

    kind = "observation"

    def potential(self, msg: Any) -> None:
        if (name := msg["name"]) in self.names:
            self.met.add(name)
            msg["value"] = self.options[name]

    def scan(self, scan: Scan) -> Scan:
        rows = {name: rows for name, rows in self.options.items() if name not in self.met}
        if not rows:
            return super().scan(scan)
        wrong = {name: jnp.shape(x) for name, x in rows.items() if jnp.shape(x)[:1] != (scan.length,)}
        if wrong:
            raise ValueError(f"observing: data of the scan's step, or of no observation at all, must have one row for each of {scan.length} steps; got {wrong}")
        return scan._replace(step=lambda carry, x: self.step(scan.step, carry, x[0], x[1]), xs=(scan.xs, rows))


def simulate(key: PRNGKeyArray, program: Any, n: int) -> Simulated:
    """n data sets that a program may come to observe, each with the result that it comes from: draws of the prior predictive law.

    Law: (values, data) have the joint density prior * likelihood. Given its data, a result is a draw of the exact posterior of
    `observing(program, data)`. Of the data that the program has only the shapes count.

    Args:
      key: a `jax.random.key`.
      program: one made by `@po.program`, whose potentials are observations all.
      n: how many.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: when it weighs by a factor, which is no data, or observes after its scan.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(flips):
    ...     p = po.sample("p", dist.Beta(1.0, 1.0))
    ...     po.observe("flips", dist.Bernoulli(p), flips)
    ...     return p
    >>> simulated = po.simulate(jax.random.key(0), coin(jnp.zeros(3)), 5)
    >>> simulated.values.shape, simulated.data["flips"].shape
    ((5,), (5, 3))
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"simulate: n must be at least 1, got {n!r}")
    return _simulated(key, of_function("simulate", program), n)


def observing(program: Any, data: Mapping[str, Any]) -> FunctionProgram:
    """The program with other data in the place of those that it observes; what it has of them in other places stays.

    Law: ⟦program⟧ with the density of every named observation taken at the value given. The values are leaves of the program.

    Args:
      program: one made by `@po.program`.
      data: by name, one value for an observation before the scan, one row for each step (leading axis) for those in its step.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: from the inference: on a name that is no observation of the program, or too few rows.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(heads):
    ...     fair = po.sample("fair", dist.Bernoulli(0.5))
    ...     po.observe("heads", dist.Bernoulli(1.0 - 0.5 * fair), heads)
    ...     return fair
    >>> round(float(po.exact(po.observing(coin(1), {"heads": 0})).expect()), 4)
    1.0
    """
    return rewritten(Observing, program, {name: jnp.asarray(value) for name, value in data.items()})


@functools.partial(jax.jit, static_argnames="n")
def _simulated(key: Array, program: FunctionProgram, n: int) -> Simulated:
    init_key, step_key = jax.random.split(key)
    opened = rewritten(Simulate, program, {})
    particles, _ = opened.init(init_key, n)
    steps, drawn = opened.length, {}

    def step(particles: Any, key: Array) -> tuple[Any, dict[str, Any]]:
        particles, _, drawn, _ = opened.told(key, particles, {})
        return particles, drawn

    choices = particles.choices
    if steps:
        particles, rows = lax.scan(step, particles, jax.random.split(step_key, steps))
        drawn = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
    own = _chosen(program)
    latent, seen = ([{name: x for name, x in of.items() if (name in own) == is_own} for of in (choices, drawn)] for is_own in (True, False))
    return Simulated(opened.value(particles), {**seen[0], **seen[1]}, *latent)


def _chosen(program: FunctionProgram) -> set[str]:
    """The names of what a program chooses."""

    def names(key: Array) -> tuple[dict, dict]:
        particles, _ = program.init(key, 1)
        return particles.choices, program.told(key, particles, {})[2] if program.length else {}

    with handlers.block():  # nothing is drawn
        return {name for found in jax.eval_shape(names, jax.random.key(0)) for name in found}
