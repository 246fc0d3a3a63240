"""Programs in larger steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from posterity.ppl.effects import loop, particle_map
from posterity.ppl.program import Program, choices_of
from posterity.ppl.rewind import mark, rewind
from posterity.ppl.transform import Transformed, active, bound, times


@struct.dataclass
class Chunked(Transformed):
    """A program whose step is many steps of another, on the other's own particles; see `chunk`."""

    until: Callable[[Any], Array] = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<{self.inner} in chunks until {getattr(self.until, '__name__', 'a boundary')}>"

    def init(self, key: Array, n: int) -> tuple[Any, Array]:
        return self.inner.init(key, n)

    def step(self, key: Array, particles: Any, *, where: Array | None = None) -> tuple[Any, Array]:
        """Steps every particle to its next boundary. Those that reach it early, or are forbidden on the way, wait; the log potentials add up."""

        def move(state):
            t, going, particles, log_potential = state
            particles, more = self.inner.step(jax.random.fold_in(key, t), particles, where=going)
            log_potential = times(log_potential, more)
            going = active(self, particles, going) & ~particle_map(self.until, (0,))(self.value(particles)) & ~jnp.isneginf(log_potential)
            return t + 1, going, particles, log_potential

        going = active(self, particles, where)
        start = (jnp.zeros((), jnp.int32), going, particles, jnp.zeros(going.shape))
        return loop(lambda state: jnp.any(state[1]), move, start, limit=self.length)[2:]

    def select(self, particles: Any, ancestors: Array) -> Any:
        return self.inner.select(particles, ancestors)

    def done(self, particles: Any) -> Array:
        return self.inner.done(particles)

    def value(self, particles: Any) -> Any:
        return self.inner.value(particles)

    def choices(self, particles: Any) -> dict[str, Any]:
        return choices_of(self.inner, particles)

    def mark(self, particles: Any) -> Any:
        return mark(self.inner, particles)

    def rewind(self, particles: Any, marks: Any) -> Any:
        return rewind(self.inner, particles, marks)


def chunk(program: Program, until: Callable[[Any], Array]) -> Chunked:
    """The program in larger steps: each runs the steps of `program` until `until(value)` holds, or the particle is done.

    Particles may take different numbers of inner steps to a boundary. The meaning is the same; what changes is where an
    algorithm may resample: after a line of text, say, instead of after every token.

    Args:
      program: one whose particles may stand still one by one (a scan without per-step inputs).
      until: of a single particle's value, bool; a plain function (part of the compiled code), e.g. `at_line_end`.

    Raises:
      TypeError: when `program` is no program.
      ValueError: from its step, when the program's particles move together (a scan with per-step inputs).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def climb():
    ...     return po.scan(lambda x, _: x + po.sample("up", dist.Bernoulli(0.5)), 0, length=6)
    >>> program = po.chunk(climb(), lambda x: x % 2 == 0)
    >>> particles, _ = program.init(jax.random.key(0), 4)
    >>> particles, _ = program.step(jax.random.key(1), particles)
    >>> bool(jnp.all((program.value(particles) % 2 == 0) | program.done(particles)))
    True
    """
    return Chunked(bound("chunk", program), until)
