"""Runs of a program as states of chains: with all that is needed to go back to any of their steps and on from there.

A run that is tried instead of a chain's shares its past up to where they part: in a language model's cache nothing before that is computed again.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int
from numpyro import handlers

from posterity.inference.mcmc.metropolis import log_potential
from posterity.ppl.program import FunctionProgram, Program
from posterity.ppl.rewind import mark, rewind
from posterity.ppl.transform import Transformed, active, bound


@struct.dataclass
class Runs:
    """Runs, row by row: first those that are the chains' states, then groups of as many that kernels try out (row g * chains + i for chain i)."""

    now: Any  # the inner program's particles
    marks: Any  # leaves [rows, length + 1, ...]: where each was after 0, 1, .. steps of its own (`ppl.rewind`)
    choices: dict[str, Any]  # of the steps by name, [rows, length, ...]; none when they are not scored
    log_priors: Float[Array, "rows length"]  # log densities of the steps' choices, nats; zeros when they are not scored
    log_potentials: Float[Array, "rows times"]  # nats: of the initial law, the first step, ..
    steps: Int[Array, " rows"]  # how many each has made; later entries of its past mean nothing
    chains: int = struct.field(pytree_node=False)

    @property
    def groups(self) -> int:
        return self.steps.shape[0] // self.chains


@struct.dataclass
class Kept(Transformed):
    """A program whose particles are `Runs`; see `kept`."""

    inner: Any
    exponent: Float[Array, "*chains"] | float = 1.0  # of the potentials in the law that kernels leave invariant; one, or each chain's own
    scored: bool = struct.field(pytree_node=False, default=False)

    def __repr__(self) -> str:
        return f"<runs of {self.inner}>"

    def init(self, key: Array, n: int) -> tuple[Runs, Float[Array, " n"]]:
        now, log_potential = self.inner.init(key, n)
        marks = mark(self.inner, now)
        now, length, blank = rewind(self.inner, now, marks), self.length, {}  # which gives each a time of its own
        if self.scored and length:
            with handlers.block():  # shapes are asked for, nothing is drawn
                blank = jax.eval_shape(lambda now: self.inner.told(jax.random.key(0), now, {})[2], now)
        marks = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (n, length + 1, *x.shape[1:])), marks)
        choices = jax.tree.map(lambda x: jnp.zeros((n, length, *x.shape[1:]), x.dtype), blank)
        none = jnp.zeros((n, length), log_potential.dtype)
        return Runs(now, marks, choices, none, jnp.pad(none, ((0, 0), (0, 1))).at[:, 0].set(log_potential), jnp.zeros(n, jnp.int32), n), log_potential

    def step(
        self, key: Array, particles: Runs, *, where: Array | None = None, given: dict[str, Any] | None = None, which: Array | None = None
    ) -> tuple[Runs, Float[Array, " rows"]]:
        """A step, written down; with the choices `given` [rows, ...], or of those rows alone that `which` says."""
        runs, moved = particles, active(self.inner, particles.now, where)
        if self.scored:
            fresh = jnp.zeros(moved.shape, bool) if given is None else which
            now, log_potential, drawn, log_prior = self.inner.told(key, runs.now, given or {}, which=fresh, where=where)
        else:
            now, log_potential = self.inner.step(key, runs.now, where=where)
            drawn, log_prior = {}, jnp.zeros_like(log_potential)
        rows, steps, length = jnp.arange(moved.shape[0]), runs.steps + moved, runs.log_priors.shape[1]
        after, made = jnp.where(moved, steps, length + 1), jnp.where(moved, runs.steps, length)  # what stands still would write beyond the end

        def write(place: Array):
            return lambda history, x: history.at[rows, place].set(jnp.asarray(x, history.dtype), mode="drop")

        marks = jax.tree.map(write(after), runs.marks, mark(self.inner, now))
        choices, log_priors = jax.tree.map(write(made), (runs.choices, runs.log_priors), (drawn, log_prior))
        return Runs(now, marks, choices, log_priors, write(after)(runs.log_potentials, log_potential), steps, runs.chains), log_potential

    def select(self, particles: Runs, ancestors: Int[Array, " m"]) -> Runs:
        return replace(self.rows(particles, ancestors), chains=ancestors.shape[0])

    def rows(self, runs: Runs, ancestors: Int[Array, " rows"]) -> Runs:
        """The runs whose row i is a copy of row `ancestors[i]`, for as many chains."""
        past = jax.tree.map(lambda x: x[ancestors], replace(runs, now=()))
        return replace(past, now=self.inner.select(runs.now, ancestors))

    def done(self, particles: Runs) -> Bool[Array, " rows"]:
        return self.inner.done(particles.now)

    def value(self, particles: Runs) -> Any:
        """What queries see of the chains' own runs."""
        now = particles.now if particles.groups == 1 else self.inner.select(particles.now, jnp.arange(particles.chains))
        return self.inner.value(now)

    def choices(self, particles: Runs) -> dict[str, Any]:
        return {}

    def log_target(self, runs: Runs) -> Float[Array, " rows"]:
        """The potentials of each run, raised to the exponent, [rows] nats; NaN where one is invalid."""
        return self.tempered(log_potential(runs))  # pyright: ignore[reportArgumentType] - it has what that asks for

    def tempered(self, log_potential: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Log potentials raised to the exponent; what is forbidden stays so."""
        exponent = jnp.asarray(self.exponent)
        if exponent.ndim:  # the rows of a group are the chains
            exponent = jnp.tile(exponent, log_potential.shape[0] // exponent.shape[0])
        return jnp.where(jnp.isneginf(log_potential), -jnp.inf, exponent * log_potential)


def kept(program: Program, *, scored: bool = False, exponent: Float[Array, "*chains"] | float = 1.0) -> Kept:
    """The program with its runs' past kept in its particles, language models' texts included: what kernels on runs move.

    The meaning and the value are the program's. As `recorded`, for programs whose particles share a past (`ppl.rewind.Rewindable`).

    Args:
      program: any program; with `scored` one made of a function.
      scored: whether the choices of steps and their densities are kept too, which some kernels need.
      exponent: of the potentials, in the law that kernels leave invariant: one, or one for each chain, [chains].

    Raises:
      TypeError: when the program is none, or is not made of a function though its choices are to be scored.

    >>> import jax, posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> program = kept(generate(po.tabular.ngram(["ab", "b"]), "a", max_tokens=2), scored=True)
    >>> runs, _ = program.init(jax.random.key(0), 3)
    >>> runs, _ = program.step(jax.random.key(1), runs)
    >>> runs.choices["token"].shape, runs.log_priors.shape
    ((3, 2), (3, 2))
    """
    inner = bound("kept", program)
    if scored and not isinstance(inner, FunctionProgram):
        raise TypeError(
            f"kept: only of a program made of a function (by @po.program, rewritten by propose, adapt, ... if at all) are choices known; got {inner!r}"
        )
    return Kept(inner, jnp.asarray(exponent, float), scored)
