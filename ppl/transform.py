"""What transformations of programs share: programs made of a program."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer

from posterity.ppl.program import Program, as_program, choices_of
from posterity.ppl.rewind import mark, rewind


@struct.dataclass
class Transformed:
    """A program made of another; what it does not say itself is as the other says.

    Its particles are a named tuple: `now` holds the inner program's, every other field arrays with leading axis n.
    """

    inner: Program

    @property
    def length(self) -> int:
        return self.inner.length

    def select(self, particles: Any, ancestors: Array) -> Any:
        beside = {name: jax.tree.map(lambda x: x[ancestors], field) for name, field in particles._asdict().items() if name != "now"}
        return particles._replace(now=self.inner.select(particles.now, ancestors), **beside)

    def done(self, particles: Any) -> Array:
        return self.inner.done(particles.now)

    def value(self, particles: Any) -> Any:
        return self.inner.value(particles.now)

    def choices(self, particles: Any) -> dict[str, Any]:
        return choices_of(self.inner, particles.now)

    def mark(self, particles: Any) -> Any:
        return particles._replace(now=mark(self.inner, particles.now))

    def rewind(self, particles: Any, marks: Any) -> Any:
        return marks._replace(now=rewind(self.inner, particles.now, marks.now))


def bound(name: str, program: Any) -> Program:
    """The program that the transformation `name` was given, as `as_program` has it.

    Raises:
      TypeError: when it is none.
    """
    try:
        return as_program(program)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def whole(transformation: str, name: str, number: int) -> int:
    """A whole number, at least 1."""
    try:
        if operator.index(number) >= 1:
            return operator.index(number)
    except TypeError:
        pass
    raise ValueError(f"{transformation}: {name} must be a whole number, 1 or more, got {number!r}")


def known(x: Any, holds: Callable[[np.ndarray], Any]) -> bool:
    """Whether `holds(x)`, as far as that is known: the value of what is being traced is not."""
    return isinstance(x, Tracer) or bool(holds(np.asarray(x)))


def active(program: Any, particles: Any, where: Array | None) -> Array:
    """Which particles a step moves, bool [n]."""
    return ~program.done(particles) if where is None else ~program.done(particles) & where


def times(log_a: Array, log_b: Array) -> Array:
    """log(a b). What is forbidden already stays so, whatever its later potentials are: its state may be anything."""
    return jnp.where(jnp.isneginf(log_a), log_a, log_a + log_b)
