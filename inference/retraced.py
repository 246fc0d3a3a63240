"""Programs whose particles tell the choices of their last step, so that the same step can be taken from elsewhere."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr
from numpyro import handlers

from posterity.ppl.program import FunctionProgram, Particles
from posterity.ppl.transform import Transformed, active, bound


class Told(NamedTuple):
    """Particles that tell what their last step chose."""

    now: Particles  # the inner program's
    drawn: dict[str, Any]  # the last step's choices by name, pytrees [n, ...]; zeros before the first step
    steps: Array  # [n] int32, how many steps the particle has made


@struct.dataclass
class Retraced(Transformed):
    """A program whose steps can be taken again; see `retraced`."""

    inner: FunctionProgram

    def __repr__(self) -> str:
        return f"<{self.inner} retraced>"

    def init(self, key: Array, n: int) -> tuple[Told, Array]:
        now, log_potential = self.inner.init(key, n)
        blank = {}
        if self.length:
            with handlers.block():  # shapes are asked for, nothing is drawn
                blank = jax.eval_shape(lambda now: self.inner.told(jax.random.key(0), now, {})[2], now)
        return Told(now, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank), jnp.zeros(n, jnp.int32)), log_potential

    def step(self, key: Array, particles: Told, *, where: Array | None = None) -> tuple[Told, Array]:
        moved = active(self, particles, where)
        now, log_potential, drawn, _ = self.inner.told(key, particles.now, {}, where=where)
        drawn = jax.tree.map(lambda new, old: jnp.where(moved.reshape(-1, *[1] * (new.ndim - 1)), new, old), drawn, particles.drawn)
        return Told(now, drawn, particles.steps + moved), log_potential


def retraced(program: Any) -> Retraced:
    """The program with particles that tell the choices of their last step: what `go_on` needs, and so smoothing and ancestor sampling.

    The meaning and the value are the program's. Transformations that wrap the protocol (`twist`, `chunk`, ...) hide the choices, so that
    only a program made of a function can be retraced: one by `@po.program`, also rewritten by `propose`, `adapt`, `marginalise`, `condition`, ...

    Raises:
      TypeError: when the program is another; from `lasting`, when its steps draw something that is no choice of theirs.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk():
    ...     return po.scan(lambda x, _: po.sample("x", dist.Normal(x, 1.0)), po.sample("x0", dist.Normal(0.0, 1.0)), length=2)
    >>> particles, _ = po.retraced(walk()).init(jax.random.key(0), 5)
    >>> particles, _ = po.retraced(walk()).step(jax.random.key(1), particles)
    >>> particles.drawn["x"].shape
    (5,)
    """
    inner = bound("retraced", program)
    if not isinstance(inner, FunctionProgram):
        raise TypeError(f"retraced: the program must be made of a function (by @po.program; rewritten by propose, adapt, ..., if at all), got {inner!r}")
    return Retraced(inner)


def go_on(program: Retraced, particles: Told, drawn: dict[str, Any]) -> tuple[Told, Array, Array]:
    """One step of every particle with the choices `drawn` [n, ...], their log density and the step's log potential, [n] nats.

    Law: what M_t(d drawn | particle) has for a density, times G_t. Particles that are done stand still, at 0 for both.
    """
    with handlers.block():  # all choices are given: nothing is drawn, and the key is idle
        now, log_potential, taken, log_prior = program.inner.told(jax.random.key(0), particles.now, drawn)
    if set(taken) != set(drawn):
        raise ValueError(f"{program}: drawn must hold the choices of a step, {', '.join(sorted(taken)) or 'of which there are none'}; got {sorted(drawn)}")
    return Told(now, drawn, particles.steps + ~program.done(particles)), log_prior, log_potential


def lasting(program: Retraced, particles: Told) -> list[bool]:
    """Of each leaf of `particles.now`, whether densities, potentials or endings of later steps can depend on it. The rest is only kept."""
    width = len(jax.tree.leaves(particles.now))
    if not program.length:
        return [False] * width
    with handlers.block():
        jaxpr = jax.make_jaxpr(lambda now, drawn, key: _told(program.inner, now, drawn, key))(particles.now, particles.drawn, jax.random.key(0)).jaxpr
    live, before = [False] * width, None
    while live != before:
        needed = dce_jaxpr(jaxpr, [*live, True, True, True])[1]
        if needed[-1]:
            raise TypeError(f"retraced: {program.inner} draws more in a step than its choices (an embedded inference, say): it has no density")
        live, before = [a or b for a, b in zip(live, needed, strict=False)], live
    return live


def _told(inner: FunctionProgram, now: Particles, drawn: dict[str, Any], key: Array) -> tuple:
    after, log_potential, _, log_prior = inner.told(key, now, drawn)
    return after, after.ended, log_prior, log_potential
