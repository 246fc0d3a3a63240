"""Kernels on whole runs of a program, texts of language models included: redraw a suffix, a span, one choice, or all of it by a conditional filter.

Each is a small struct of its options and moves all chains in one batch: `kernel(key, program, runs, time=...)` to the runs and a `Moved`, as
`blocks.Kernel` has it. `program` is a `Kept`; what is tried stands in rows beside the chains' own, and shares with them what comes before the change.
"""

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import struct
from jax import Array
from jaxtyping import Bool

from posterity.inference.blocks import Moved
from posterity.inference.mcmc.runs import Kept, Runs
from posterity.inference.mcmc.tries import (
    are_tried,
    as_long,
    back,
    by_group,
    choose,
    end,
    log_positions,
    logits,
    of_chain,
    on,
    place,
    priors,
    spread,
    support,
    take,
)
from posterity.ppl.effects import draw, loop
from posterity.ppl.transform import times, whole


class RunKernel(Protocol):
    """A kernel on runs."""

    scored: ClassVar[bool]  # whether it needs the densities of choices

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        """The runs moved; `time` is how many steps they were run for, None to the end."""
        ...


def moves_runs(kernel: Any) -> bool:
    """Whether a kernel, or one of those that it cycles through, is one on whole runs."""
    return any(hasattr(part, "scored") for part in _parts(kernel))


def needs_scores(kernel: Any) -> bool:
    """Whether a kernel, or one of those that it cycles through, asks for the densities of choices."""
    return any(getattr(part, "scored", False) for part in _parts(kernel))


def _parts(kernel: Any) -> list[Any]:
    return jax.tree.leaves(kernel, is_leaf=lambda x: hasattr(x, "scored"))


@struct.dataclass
class Suffix:
    """Redraws all from a position on; see `suffix`."""

    tries: int = struct.field(pytree_node=False, default=1)
    scored: ClassVar[bool] = False

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        position_key, back_key, on_key, choose_key = jax.random.split(key, 4)
        runs = spread(program, particles, self.tries)
        position = place(position_key, runs, least=0)
        runs = back(back_key, program, runs, position, self.tries, begun=True)
        runs = on(on_key, program, runs, end(runs, time), are_tried(runs, self.tries))
        return choose(choose_key, program, runs, program.log_target(runs) - log_positions(runs), self.tries)


def suffix(*, tries: int = 1) -> Suffix:
    """Redraws a run from a random position on by the program's own law, and accepts or stays; leaves the program's posterior invariant.

    A run x of n(x) positions (its initial law and its steps) gets one of them uniformly; what is drawn from there on, x', is accepted with probability
    min(1, G(x') n(x) / (G(x) n(x'))), G the product of all potentials. Runs may end early: without n(x) / n(x') short ones would come up too seldom.
    What proposes is part of the program: `po.adapt`, `po.propose`, a temperature with its `correction`.

    Args:
      tries: how many continuations are drawn; of more than one, one of them or the present run is taken by its weight G / n (iterated sampling
        importance resampling, which leaves the same law invariant).

    Source: Faria et al. (2024), "QUEST", for texts; Wingate, Stuhlmueller and Goodman (2011) for runs that differ in length; Andrieu, Lee and Vihola
    (2018) for several tries.

    >>> import jax, jax.numpy as jnp, posterity as po
    >>> lm = po.tabular.ngram(["ab", "abab", "b"], order=2)
    >>> @po.program
    ... def texts(lm, prompt):
    ...     def step(text, _):
    ...         token = po.sample("token", text.next())
    ...         po.factor("b", jnp.where(lm.tokens_containing("b")[token], 1.0, 0.0))
    ...         return text.push(token)
    ...     return po.scan(step, lm.start(prompt), length=4)
    >>> program = texts(lm, lm.prompt("a"))
    >>> long = lambda text: text.generated == 4
    >>> chains = po.mcmc_sequences(jax.random.key(0), program, suffix(), chains=8, draws=200)
    >>> bool(abs(chains.prob(long) - po.exact(program).prob(long)) < 0.1)
    True
    """
    return Suffix(whole("suffix", "tries", tries))


@struct.dataclass
class Span:
    """Redraws a few steps and keeps the rest; see `span`."""

    size: int = struct.field(pytree_node=False)
    tries: int = struct.field(pytree_node=False, default=1)
    scored: ClassVar[bool] = True

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        position_key, back_key, fresh_key, rest_key, choose_key = jax.random.split(key, 5)
        runs = spread(program, particles, self.tries)
        tried, own, rest = are_tried(runs, self.tries), of_chain(runs, runs.steps), of_chain(runs, runs.choices)
        position = place(position_key, runs, least=1)
        runs = back(back_key, program, runs, position, self.tries)
        runs = on(fresh_key, program, runs, jnp.minimum(position - 1 + self.size, own), tried)
        runs = on(rest_key, program, runs, own, tried, rest)
        log_weights = times(program.log_target(runs), priors(runs, position + self.size))
        return choose(choose_key, program, runs, jnp.where(as_long(program, runs, own, time), log_weights, -jnp.inf), self.tries)


def span(size: int = 1, *, tries: int = 1) -> Span:
    """Redraws a few steps of a run by the program's own law and keeps the rest; accepts or stays. Leaves the program's posterior invariant.

    The steps begin at a random one of the run's. The rest keeps its choices and is judged anew: with G the product of all potentials and p(rest) the density
    of its choices, x' is accepted with probability min(1, G(x') p'(rest) / (G(x) p(rest))). The number of steps stays as it is, and so does what the
    initial law chose: `cycle` it with `suffix`, which changes both.

    Args:
      size: how many steps, fewer where the run has no more.
      tries: as for `suffix`: with 8, say, one of 8 fresh spans or the present one is taken by its weight, a Gibbs step over a short list of values
        that the program proposes, with the exact correction.

    Source: Andrieu, Lee and Vihola (2018) for several tries.

    >>> import posterity as po
    >>> kernel = po.kernels.cycle(po.kernels.suffix(), po.kernels.span(2, tries=4))
    """
    return Span(whole("span", "size", size), whole("span", "tries", tries))


@struct.dataclass
class Gibbs:
    """Redraws a choice, or that of some steps together, from its full conditional; see `gibbs`."""

    name: str = struct.field(pytree_node=False)
    size: int = struct.field(pytree_node=False, default=1)
    scored: ClassVar[bool] = True

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        position_key, back_key, rest_key, choose_key = jax.random.split(key, 4)
        values = support(program, particles, self.name)
        each, tries = values.shape[0], values.shape[0] ** self.size
        runs = spread(program, particles, tries)
        rows, tried, own, rest = jnp.arange(runs.steps.shape[0]), are_tried(runs, tries), of_chain(runs, runs.steps), of_chain(runs, runs.choices)
        position = place(position_key, runs, least=1)
        steps = position[:, None] - 1 + jnp.arange(self.size)  # of the block, from 0; those beyond the run's end change nothing, in all tries alike
        digits = jnp.clip(rows // runs.chains - 1, 0, tries - 1)[:, None] // each ** jnp.arange(self.size) % each
        before = rest[self.name]
        rest = rest | {self.name: before.at[rows[:, None], steps].set(jnp.asarray(values[digits], before.dtype), mode="drop")}
        runs = on(rest_key, program, back(back_key, program, runs, position, tries), own, tried, rest)
        log_weights = times(program.log_target(runs), priors(runs, position))
        log_weights = jnp.where(tried & as_long(program, runs, own, time), log_weights, -jnp.inf)  # the present values are among those tried
        runs, moved = choose(choose_key, program, runs, log_weights, tries)
        differs = (runs.choices[self.name] != before).reshape(*before.shape[:2], -1).any(axis=2) & (jnp.arange(before.shape[1]) < own[:, None])
        return runs, moved._replace(accepted=jnp.any(differs, axis=1)[: runs.chains])


def gibbs(name: str, *, size: int = 1) -> Gibbs:
    """Draws one choice of a random step from its full conditional, all other choices kept: a Gibbs step. Leaves the program's posterior invariant.

    All values of the choice are tried side by side, each with the rest of the run after it: as many rows a chain as it has values, in one batch. For large
    vocabularies `span(1, tries=...)` tries a few. The number of steps stays as it is, and what the initial law chose: `cycle` it with `suffix`.

    Args:
      name: a choice of the scan's step, of finite support that is the same in every step.
      size: of so many steps in a row, fewer at the run's end, the choice is drawn together (block Gibbs): from all values to the power `size`.

    Raises:
      ValueError: for a size below 1; from the chain, when no step makes a choice of that name, or it has no finite support that is known while tracing.

    Source: Geman and Geman (1984).

    >>> import posterity as po
    >>> kernel = po.kernels.cycle(po.kernels.suffix(), po.kernels.gibbs("token"))
    """
    return Gibbs(name, whole("gibbs", "size", size))


@struct.dataclass
class ConditionalFilter:
    """A conditional SMC for every chain; see `conditional_filter`."""

    n: int = struct.field(pytree_node=False)
    scored: ClassVar[bool] = True

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        back_key, filter_key, last_key = jax.random.split(key, 3)
        runs = spread(program, particles, self.n)
        rows, chains, tried, until, length = jnp.arange(runs.steps.shape[0]), runs.chains, are_tried(runs, self.n), end(runs, time), runs.log_priors.shape[1]
        own, path, follows = of_chain(runs, runs.steps), of_chain(runs, runs.choices), rows // chains == 1
        runs = back(back_key, program, runs, jnp.where(follows, 1, 0), self.n, begun=True)

        def going(runs: Runs) -> Bool[Array, " rows"]:
            return tried & ~program.done(runs) & (runs.steps < until)

        def turn(state: tuple) -> tuple:
            t, runs, log_weights, invalid = state
            ancestors_key, step_key = jax.random.split(jax.random.fold_in(filter_key, t))
            over = ~jnp.any(by_group(runs, going(runs)), axis=0)
            law = jnp.broadcast_to(logits(by_group(runs, log_weights)[1 : 1 + self.n]), (self.n - 1, chains, self.n))
            ancestors = draw(ancestors_key, "ancestors", dist.CategoricalLogits(law, validate_args=False))
            parents = rows.at[2 * chains : (1 + self.n) * chains].set(((1 + ancestors) * chains + jnp.arange(chains)).reshape(-1))
            runs = program.rows(runs, jnp.where(of_chain(runs, over), rows, parents))
            moving, now = going(runs), jax.tree.map(lambda x: x[:, jnp.minimum(t, length - 1)], path)
            runs, log_potential = program.step(step_key, runs, where=moving, given=now, which=follows & (t < own))
            log_weights = jnp.where(of_chain(runs, over), log_weights, program.tempered(log_potential))
            return t + 1, runs, log_weights, invalid | jnp.any(by_group(runs, ~(log_potential < jnp.inf)), axis=0)

        state = jnp.zeros((), jnp.int32), runs, program.tempered(runs.log_potentials[:, 0]), jnp.zeros(chains, bool)
        if length:
            state = loop(lambda state: jnp.any(going(state[1])), turn, state, limit=length)
        _, runs, log_weights, invalid = state
        group = draw(last_key, "taken", dist.CategoricalLogits(logits(by_group(runs, log_weights)[1 : 1 + self.n]), validate_args=False))
        return take(program, runs, 1 + group), Moved(group > 0, invalid)


def conditional_filter(n: int) -> ConditionalFilter:
    """Particle Gibbs: a particle filter for every chain, in which one particle follows the chain's run, and of which one run is taken.

    Leaves the program's posterior invariant. The filter resamples at every step. The run that is followed makes its choices again beside the others, so
    that a text is copied with the cache as far as it has come. All chains' filters are one batch, of n rows a chain.

    Args:
      n: particles of each filter, 2 or more.

    Raises:
      ValueError: for n < 2.

    Source: Andrieu, Doucet and Holenstein (2010).

    >>> import posterity as po
    >>> po.kernels.conditional_filter(8)
    ConditionalFilter(n=8)
    """
    if whole("conditional_filter", "n", n) < 2:
        raise ValueError("conditional_filter: n must be at least 2, one particle that follows the chain's run and one that is free; got 1")
    return ConditionalFilter(n)
