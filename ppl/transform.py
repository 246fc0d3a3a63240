"""Programs from programs, with the same meaning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from posterity.ppl.effects import loop, particle_map
from posterity.ppl.program import Program


@struct.dataclass
class Chunked:
    """A program whose step is many steps of another; see `chunk`."""

    inner: Program
    until: Callable[[Any], Array] = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<{self.inner} in chunks until {getattr(self.until, '__name__', 'a boundary')}>"

    @property
    def length(self) -> int:
        return self.inner.length

    def init(self, key: Array, n: int) -> tuple[Any, Array]:
        return self.inner.init(key, n)

    def step(self, key: Array, particles: Any, *, where: Array | None = None) -> tuple[Any, Array]:
        """Steps every particle to its next boundary. Those that reach it early wait there; the log potentials add up."""
        going = ~self.inner.done(particles) if where is None else ~self.inner.done(particles) & where
        n = going.shape[0]

        def move(state):
            t, going, particles, log_potential = state
            particles, more = self.inner.step(jax.random.fold_in(key, t), particles, where=going)
            going = going & ~self.inner.done(particles) & ~particle_map(self.until, (0,))(self.inner.value(particles))
            return t + 1, going, particles, log_potential + more

        start = (jnp.zeros((), jnp.int32), going, particles, jnp.zeros(n))
        _, _, particles, log_potential = loop(lambda state: jnp.any(state[1]), move, start, limit=self.length)
        return particles, log_potential

    def select(self, particles: Any, ancestors: Array) -> Any:
        return self.inner.select(particles, ancestors)

    def done(self, particles: Any) -> Array:
        return self.inner.done(particles)

    def value(self, particles: Any) -> Any:
        return self.inner.value(particles)


def chunk(program: Program, until: Callable[[Any], Array]) -> Program:
    """The program in larger steps: each runs the steps of `program` until `until(value)` holds, or the particle is done.

    Particles may take different numbers of inner steps to a boundary. The meaning is the same; what changes is where an
    algorithm may resample: after a line of text, say, instead of after every token.

    Args:
      program: one whose particles may stand still one by one (a scan without per-step inputs).
      until: of a single particle's value, bool; a plain function (part of the compiled code), e.g. `at_line_end`.
    """
    return Chunked(program, until)
