"""Exactness by enumeration: what a finite program means, and what an algorithm does, to the last digit.

The law that an inference must keep, E[exp(log_evidence) * sum_i W_i f(x_i)] = ⟦p⟧(f) (proper weighting; Ścibior et al.
2018, "Denotational validation of higher-order Bayesian inference"), is a finite sum when all choices are finite. Here
that sum is taken over what the inference's own code does, so that it can be compared to the program's meaning.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer, eval_context

from posterity.inference.enumeration.branching import Branch, Chain, Law, law, scripted
from posterity.inference.enumeration.measure import Measure, measure
from posterity.inference.enumeration.script import Script
from posterity.ppl.component import State
from posterity.ppl.effects import isolated
from posterity.ppl.program import Program, as_program, choices_of

LIMIT = 20_000_000
HELD = 100_000  # numbers in the batched components of one branch


def exact(program: Program, *, limit: int = LIMIT) -> Measure:
    """The exact unnormalised measure of a finite program: every value with its weight, and the evidence.

    All choices must have finite support. Steps are enumerated one by one, and particles with the same future are merged:
    a hidden Markov model with S states costs S^2 a step. In 64-bit arithmetic, whatever the caller's precision. Texts of language
    models are enumerated like other states where what the model remembers of one is small (100,000 numbers): tabular models, tiny decoders.

    Args:
      program: what to enumerate; its value is what merging keeps apart at the end (a program that returns its whole path
        has as many values as paths), and without a scan all its choices, for `measure["name"]`.
      limit: the largest number of branches of one step.

    Raises:
      ValueError: when a step has more than `limit` branches (the message says how many, and of which choices), when a
        choice has no finite support, a potential is NaN or +inf, or a language model remembers too much.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def sprinkler():
    ...     rain = po.sample("rain", dist.Bernoulli(0.2))
    ...     sprinkler = po.sample("sprinkler", dist.Bernoulli(jnp.where(rain, 0.01, 0.4)))
    ...     po.observe("wet", dist.Bernoulli(jnp.array([[0.0, 0.9], [0.8, 0.99]])[rain, sprinkler]), 1)
    ...     return rain
    >>> round(float(po.exact(sprinkler()).expect()), 6)
    0.357688
    """
    return moved(program, None, limit=limit)


def moved(program: Program, kernel: Callable[[Array, Program, Any], Any] | None, *, limit: int = LIMIT) -> Measure:
    """The exact measure of the program's value after `kernel(key, program, particles)` has moved its particle at the end."""
    (values, choices), log_weights, branches = _apart(_program_then(kernel), as_program(program), limit)
    return measure(values, log_weights, branches, choices)


def law_of(run: Callable[[Any, Array], Any], args: Any, *, limit: int = LIMIT) -> Law:
    """The exact law of `run(args, key)`, code that draws through handlers (an inference, say), over all that it draws.

    `run` is traced, not executed: it must be code that jit accepts. Its first loop (`effects.loop`) is followed turn by
    turn, and what a turn leaves is merged.

    Raises:
      ValueError: as `exact`; also when anything depends on the key itself.
    """
    return _apart(_chain_of(run), args, limit)


def _apart(chain: Chain, args: Any, limit: int) -> Law:
    """Enumerates in 64 bits, apart from the handlers and the trace around: a program may ask for the exact answer of another."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
        raise ValueError("enumeration: the program's arguments are being traced (they depend on a choice, or on what jit compiles); it needs their values")
    with isolated(), eval_context(), jax.disable_jit(False), jax.enable_x64():
        return law(chain, args, limit)


def _begin(program: Program, _: None, key: Array, code: Array) -> Branch:
    def init():
        particles, log_potential = program.init(key, 1)
        batches = [leaf for leaf in jax.tree.leaves(particles, is_leaf=lambda x: isinstance(x, State)) if isinstance(leaf, State)]
        if (held := sum(x.size for x in jax.tree.leaves(batches))) > HELD:
            raise ValueError(
                f"{program}: its steps go through a batched component (a language model's text) that holds {held:,} numbers, and every branch would hold "
                f"as many; enumeration takes up to {HELD:,}: use a smaller model, a tabular one say"
            )
        return particles, log_potential[0], program.done(particles)[0]

    return scripted(init, code)


def _step(program: Program, particles: Any, key: Array, code: Array) -> Branch:
    def step():
        after, log_potential = program.step(key, particles) if program.length else (particles, jnp.zeros(1))
        return after, log_potential[0], program.done(after)[0]

    return scripted(step, code)


@functools.lru_cache(maxsize=256)
def _program_then(kernel: Callable | None) -> Chain:
    """A program as a chain that ends with its value, after the kernel if there is one."""

    def final(program: Program, particles: Any, key: Array, code: Array) -> Branch:
        def value():
            end = particles if kernel is None else kernel(key, program, particles)
            choices = {} if program.length else choices_of(program, end)  # with a scan they would keep apart what the value does not
            return jax.tree.map(lambda x: x[0], (program.value(end), choices)), jnp.zeros(()), jnp.ones((), bool)

        return scripted(value, code)

    return Chain(_begin, _step, final)


class _Reached(Exception):
    """Leaves a run at its loop, whose turns and first state are its arguments."""


@functools.lru_cache(maxsize=256)
def _chain_of(run: Callable[[Any, Array], Any]) -> Chain:
    """A run as a chain: up to its first loop, the loop's turns, and what follows. What came before the loop is replayed, by its code."""

    def leave(*loop):
        raise _Reached(*loop)

    def to_loop(args, key, code) -> tuple[Script, tuple | None]:
        script = Script(code, leave)
        try:
            with script:
                run(args, key)
        except _Reached as reached:
            return script, reached.args
        return script, None

    def init(args, _, key, code):
        script, loop = to_loop(args, key, code)
        state, done = (loop[2], ~loop[0](loop[2])) if loop else (None, jnp.ones((), bool))
        return Branch((code, state), script.log_prob, done, script.choices)

    def step(args, before, key, code):
        loop = to_loop(args, key, before[0])[1]
        if loop is None:
            return Branch(before, jnp.zeros(()), jnp.ones((), bool), [])
        going, body, *_ = loop
        with Script(code) as script:
            state = body(before[1])
        return Branch((before[0], state), script.log_prob, ~going(state), script.choices)

    def final(args, before, key, code):
        def at_loop(*_):
            script.restart(code)
            return before[1]

        with Script(before[0], at_loop) as script:
            result = run(args, key)
        if script.at_loop is not None:  # it met no loop: all was drawn at the beginning
            return Branch(result, jnp.zeros(()), jnp.ones((), bool), [])
        return Branch(result, script.log_prob, jnp.ones((), bool), script.choices)

    return Chain(init, step, final)
