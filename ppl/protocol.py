"""The protocol at which every algorithm meets every program: a batch of particles that can be begun, stepped and selected.

A state-space program is a Feynman-Kac model: an initial law M_0, transitions M_t, potentials G_t >= 0 and a rule for
when it is done. It denotes the unnormalised measure M_0(dx_0) G_0(x_0) prod_t M_t(dx_t | x_{t-1}) G_t(x_t).
"""

import inspect
from typing import Any, Protocol, runtime_checkable

import jax
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray


@runtime_checkable
class Program(Protocol):
    """The batched protocol at which every algorithm meets every program.

    A program is a pytree: its data and weights are leaves, never constants. `Particles` is any pytree; only the program
    looks inside.
    """

    @property
    def length(self) -> int:
        """The largest number of steps."""
        ...

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Any, Float[Array, " n"]]:
        """n draws from M_0 and their log potentials log G_0, nats."""
        ...

    def step(self, key: PRNGKeyArray, particles: Any, *, where: Bool[Array, " n"] | None = None) -> tuple[Any, Float[Array, " n"]]:
        """One step of every particle, and its log potential in nats.

        Particles that are done, or where `where` is False, stand still at log potential 0.
        """
        ...

    def select(self, particles: Any, ancestors: Int[Array, " m"]) -> Any:
        """The m particles whose i-th is a copy of number `ancestors[i]`."""
        ...

    def done(self, particles: Any) -> Bool[Array, " n"]:
        """Which particles have ended."""
        ...

    def value(self, particles: Any) -> Any:
        """What queries are about: the program's result for every particle, a pytree with leading axis n."""
        ...


@runtime_checkable
class Named(Protocol):
    """A program that can say what its initial law chose: a capability, which a program need not have."""

    def choices(self, particles: Any) -> dict[str, Any]:
        """The choices of the initial law by name, each a pytree with leading axis n."""
        ...


@runtime_checkable
class Hosted(Protocol):
    """A program whose steps run in Python, outside JAX: a capability, which a program need not have.

    Its particles are arrays all the same (numbers of states that it holds, say), so that algorithms copy and weigh them as they do any others.
    """

    hosted: bool


def runs_on_host(program: Any) -> bool:
    """Whether a program, or one that it was made from, is `Hosted`: then nothing is compiled around its steps."""
    return any(isinstance(x, Hosted) for x in jax.tree.leaves(program, is_leaf=lambda x: isinstance(x, Hosted)))


def choices_of(program: Program, particles: Any) -> dict[str, Any]:
    """The named choices of the initial law, if the program is `Named`; else none."""
    return program.choices(particles) if isinstance(program, Named) else {}


def is_program(x: object) -> bool:
    """Whether x meets the protocol. Nothing of x runs (before Python 3.12, `isinstance` would evaluate `length`)."""
    return all(inspect.getattr_static(x, name, None) is not None for name in ("length", "init", "step", "select", "done", "value"))
