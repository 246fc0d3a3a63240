"""Going back in a particle's own past, without running it again: what kernels on whole runs ask of programs."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from posterity.ppl import component


@runtime_checkable
class Rewindable(Protocol):
    """A program whose particles can be taken back to where they were: a capability, for programs whose particles share or do not show their past."""

    def mark(self, particles: Any) -> Any:
        """Where the particles are now, a pytree of arrays [n, ...], small enough to be kept at every step."""
        ...

    def rewind(self, particles: Any, marks: Any) -> Any:
        """The particles where each was at its own of the `marks` [n, ...]: of now (it stays), of its past, or of its ancestors' past."""
        ...


def mark(program: Any, particles: Any) -> Any:
    """Where the particles are now: what `rewind` takes them back by. Arrays [n, ...].

    For a program that is not `Rewindable` these are the particles themselves, if all they hold are arrays of their own.

    Raises:
      TypeError: when they hold more than that.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk():
    ...     return po.scan(lambda x, _: x + po.sample("up", dist.Bernoulli(0.5)), 0, length=3)
    >>> particles, _ = walk().init(jax.random.key(0), 2)
    >>> marks = mark(walk(), particles)
    >>> particles, _ = walk().step(jax.random.key(1), particles)
    >>> walk().value(rewind(walk(), particles, marks)).tolist()
    [0, 0]
    """
    if isinstance(program, Rewindable):
        return program.mark(particles)
    n = program.done(particles).shape[0]
    for leaf in jax.tree.leaves(particles, is_leaf=lambda x: isinstance(x, component.State)):
        if isinstance(leaf, component.State) or jnp.shape(leaf)[:1] != (n,):
            what = f"a {type(leaf).__name__}" if isinstance(leaf, component.State) else f"an array of shape {jnp.shape(leaf)}"
            raise TypeError(f"{program} cannot be rewound: {what} in its {n} particles, which is not theirs one by one")
    return particles


def rewind(program: Any, particles: Any, marks: Any) -> Any:
    """The particles where each was at its own of the `marks`, as `mark` made them.

    Particles of a program that rewinds its own texts may not be there again: then `mark` of the result differs from `marks`.
    """
    return program.rewind(particles, marks) if isinstance(program, Rewindable) else marks
