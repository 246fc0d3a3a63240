"""Metropolis-Hastings whose proposals another program writes: a language model that edits the texts of another, say."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int
from numpyro import handlers

from posterity.inference.blocks import Moved
from posterity.inference.mcmc.parameters import function_program, log_prior
from posterity.inference.mcmc.runs import Kept, Runs
from posterity.inference.mcmc.tries import are_tried, as_long, back, choose, end, of_chain, on, priors, spread
from posterity.ppl.effects import isolated, loop, particle_map
from posterity.ppl.program import Definition, FunctionProgram
from posterity.ppl.transform import times

Choices = dict[str, Any]


@struct.dataclass
class Editor:
    """Lets another program write what is proposed; see `editor`."""

    program: Callable[[Any], Any]
    scored: ClassVar[bool] = True

    def __call__(self, key: Array, program: Kept, particles: Runs, *, time: Array | int | None = None) -> tuple[Runs, Moved]:
        write_key, back_key, rest_key, choose_key = jax.random.split(key, 4)
        runs = spread(program, particles, 1)
        n, rows = runs.chains, jnp.arange(runs.steps.shape[0])
        old, steps = jax.tree.map(lambda x: x[:n], runs.choices), runs.steps[:n]
        until, keys = end(runs, time), jax.random.split(write_key, n)
        edit, new_steps, new, log_there = particle_map(self._write, (0, 0, 0, None), (0, 0, 0, 0))(keys, program.value(runs), old, until)
        parts = jnp.minimum(jnp.minimum(steps, new_steps) + 1, first_difference(old, new))  # at which step they part: what is before stays
        runs = back(back_key, program, runs, of_chain(runs, parts), 1)
        asked = of_chain(runs, new_steps)
        runs = on(rest_key, program, runs, asked, are_tried(runs, 1), of_chain(runs, new))
        tried = program.value(program.rows(runs, jnp.roll(rows, -n)))  # of the new runs, in the chains' place
        log_back = particle_map(self._density, (0, 0, 0, 0, None))(tried, edit, old, steps, until)
        log_weights = times(program.log_target(runs), priors(runs))
        log_weights = jnp.where((rows < n) | as_long(program, runs, asked, time), log_weights, -jnp.inf)
        log_proposed = jnp.concatenate([log_there, log_back, jnp.zeros(rows.shape[0] - 2 * n)])  # of the other run, from this one
        return choose(choose_key, program, runs, times(log_weights, log_proposed), 1)

    def _write(self, key: Array, value: Any, like: Choices, until: Array | int) -> tuple[Choices, Int[Array, ""], Choices, Float[Array, ""]]:
        """What the editor decides of a value before its steps, how many steps it makes (to `until` at most), their choices, and the log density of all that."""
        begin_key, step_key = jax.random.split(key)
        program, length = self._of(value), jax.tree.leaves(like)[0].shape[0]
        particles, _ = program.init(begin_key, 1)
        edit = jax.tree.map(lambda x: x[0], program.choices(particles))

        def turn(state: tuple) -> tuple:
            t, particles, new, log_density = state
            particles, _, drawn, log_made = program.told(jax.random.fold_in(step_key, t), particles, {}, which=jnp.zeros(1, bool))
            if set(drawn) != set(new):
                theirs, own = (", ".join(sorted(map(repr, names))) or "none" for names in (new, drawn))
                raise ValueError(f"editor: its steps must make the choices that the program's make, {theirs}; those of {program} make {own}")
            new = jax.tree.map(lambda history, x: history.at[t].set(jnp.asarray(x[0], history.dtype)), new, drawn)
            return t + 1, particles, new, log_density + log_made[0]

        def going(state: tuple) -> Array:
            return (state[0] < until) & ~program.done(state[1])[0]

        start = jnp.zeros((), jnp.int32), particles, like, _log_prior(program, edit)
        steps, particles, new, log_density = loop(going, turn, start, limit=length)
        return edit, steps, new, log_density

    def _density(self, value: Any, edit: Choices, choices: Choices, steps: Int[Array, ""], until: Array | int) -> Float[Array, ""]:
        """The log density with which the editor, given a value and what it decided before its steps, writes these; -inf where it ends elsewhere."""
        program, length = self._of(value), jax.tree.leaves(choices)[0].shape[0]
        given = Definition(_given).bind(program, edit)
        particles, _ = given.init(jax.random.key(0), 1)  # all choices are given: the key is idle

        def turn(state: tuple) -> tuple:
            t, particles, log_density = state
            particles, _, _, log_made = given.told(jax.random.key(0), particles, jax.tree.map(lambda x: x[t][None], choices))
            return t + 1, particles, log_density + log_made[0]

        def going(state: tuple) -> Array:
            return (state[0] < steps) & ~given.done(state[1])[0]

        start = jnp.zeros((), jnp.int32), particles, _log_prior(program, edit)
        made, particles, log_density = loop(going, turn, start, limit=length)
        return jnp.where((made == steps) & ((steps >= until) | given.done(particles)[0]), log_density, -jnp.inf)

    def _of(self, value: Any) -> FunctionProgram:
        with isolated():  # so that a call of what `@po.program` made is a program, whoever looks on
            return function_program("editor", self.program(value))


def editor(program: Callable[[Any], Any]) -> Editor:
    """Another program as the one that proposes: it reads the value of a chain's run and writes all choices of a new one, which is accepted or not.

    What it chooses before its own scan (which part to rewrite, say) is u. From x it writes x' with density q(u | x) q(x' | x, u), which is accepted with
    probability min(1, pi(x') q(u | x') q(x | x', u) / (pi(x) q(u | x) q(x' | x, u))): both densities are taken by running it, so that whatever it does
    leaves the program's posterior invariant. What the new run has in common with the old from its beginning is not computed again.

    Args:
      program: from one value to a program (`@po.program`) that is a probability law (its factors do not count), finite or not, whose steps make the choices
        that the edited program's make, by name, and whose scan is as long. A choice that is to stay as it is has a law with all its mass there. A text's
        prompt may hold the value. Arrays in a `jax.tree_util.Partial` (the editor's weights) are arguments of the compiled code.

    Raises (from the chain):
      TypeError: when it does not give a program made of a function.
      ValueError: when its steps make other choices.

    Source: Green (1995), for moves with a choice u that both directions share.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def flips(rate):
    ...     def step(heads, _):
    ...         head = po.sample("head", dist.Bernoulli(rate))
    ...         po.factor("reward", 1.0 * head)
    ...         return heads + head
    ...     return po.scan(step, 0, length=3)
    >>> kernel = editor(lambda heads: flips((1.0 + heads) / 5.0))                 # the more heads there are, the more are proposed
    >>> chains = po.mcmc_sequences(jax.random.key(0), flips(0.5), kernel, chains=8, draws=400)
    >>> bool(abs(chains.expect() - po.exact(flips(0.5)).expect()) < 0.1)
    True
    """
    if not callable(program):
        raise TypeError(f"editor: program must be a function from a value to a program, got {type(program).__name__}")
    return Editor(program if isinstance(program, jax.tree_util.Partial) else jax.tree_util.Partial(program))


def first_difference(choices: Choices, others: Choices) -> Int[Array, " n"]:
    """The first step (from 1) at which choices [n, length, ...] differ; one more than there are when none does."""
    leaves = zip(jax.tree.leaves(choices), jax.tree.leaves(others), strict=True)
    differs = jnp.any(jnp.stack([jnp.any((a != b).reshape(*a.shape[:2], -1), axis=2) for a, b in leaves]), axis=0)
    return jnp.argmax(jnp.pad(differs, ((0, 0), (0, 1)), constant_values=True), axis=1) + 1


def _given(program: FunctionProgram, choices: Choices) -> Any:
    with handlers.substitute(data=choices):
        return program()


def _log_prior(program: FunctionProgram, edit: Choices) -> Float[Array, ""]:
    """The log density of what was decided before the steps, nats."""
    return log_prior(program, jax.tree.map(lambda x: x[None], edit))[0] if edit else jnp.zeros(())
