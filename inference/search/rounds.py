"""Search as rounds of two moves: select by a rule, step. Every strategy here is a rule."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.budget import Budget, Metered, Stopwatch, limited, of_work
from posterity.inference.drive import Eagerly, check_counts, check_key
from posterity.inference.search.result import CHOICES, Selection, chosen
from posterity.ppl.component import complaint
from posterity.ppl.effects import cond, followed, isolated, loop
from posterity.ppl.program import Program, as_program, runs_on_host
from posterity.ppl.side_by_side import anywhere


class Rule(Protocol):
    """Whose copies go on: a pytree, its options data or static."""

    def __call__(
        self, key: PRNGKeyArray, program: Any, particles: Any, scores: Float[Array, " n"], done: Bool[Array, " n"], time: Int[Array, ""]
    ) -> tuple[Any, Int[Array, " n"]]:
        """The particles (with what the rule itself has cost, where it runs some of them ahead) and whose copies go on, [n], after `time` steps."""
        ...


class Round(NamedTuple):
    """A search under way."""

    time: Int[Array, ""]  # steps made
    particles: Any


def begin(key: PRNGKeyArray, program: Program, n: int) -> Round:
    """n particles before their first step."""
    with isolated():
        return Round(jnp.zeros((), jnp.int32), program.init(jax.random.fold_in(key, program.length), n)[0])


def turn(key: PRNGKeyArray, program: Program, rule: Rule | None, now: Round) -> Round:
    """Select by the rule (before the first step there is nothing to select by), step."""
    rule_key, step_key = jax.random.split(jax.random.fold_in(key, now.time))
    with isolated():
        particles = now.particles
        if rule is not None:
            particles = cond(now.time > 0, lambda particles: _selected(rule_key, program, rule, now.time, particles), lambda particles: particles, particles)
        return Round(now.time + 1, program.step(step_key, particles)[0])


def going(program: Program, now: Round) -> Array:
    """Until all particles are done, or all steps made."""
    return anywhere(~jnp.all(program.done(now.particles))) & (now.time < program.length)


def search(key: PRNGKeyArray, program: Program, n: int, rule: Rule | None) -> Selection:
    """n particles run to their end, selected by the rule (None: not at all) before every step but the first."""
    end = loop(lambda now: going(program, now), lambda now: turn(key, program, rule, now), begin(key, program, n), limit=program.length)
    return selection(program, end.particles)


def found(name: str, key: PRNGKeyArray, program: Program, n: int, rule: Rule | None, choose: str, budget: Budget | None) -> Selection:
    """The selection that a search comes to: checked, timed, and within the budget."""
    program = limited(name, as_program(program), budget)
    check_key(key)
    check_counts(n=(n, 1))
    if choose not in CHOICES:
        raise ValueError(f"{name}: choose must be one of {', '.join(CHOICES)}, got {choose!r}")
    if program.length < 1:
        raise ValueError(f"{name}: {program} has no steps to search over")
    hosted = runs_on_host(program)
    with Stopwatch() as watch, Eagerly() if hosted else contextlib.nullcontext():
        if budget is not None and budget.seconds is not None:
            rollouts = _for(budget.seconds, watch, key, program, n, rule)
        else:
            rollouts = (search if hosted or followed() else _compiled)(key, program, n, rule)
        rollouts = jax.block_until_ready(replace(rollouts, strategy=name).choose(choose))
    return rollouts if isinstance(rollouts.ledger.generated, Tracer) else checked(name, program, rollouts, watch)


def checked(name: str, program: Program, selection: Selection, watch: Stopwatch) -> Selection:
    """With its seconds; no score is NaN."""
    if bool(jnp.any(jnp.isnan(selection.scores))):
        if why := complaint(selection.values):
            raise ValueError(f"{name}: {program}: {why}")
        raise ValueError(f"{name}: {int(jnp.sum(jnp.isnan(selection.scores)))} of {len(selection)} scores of {program} are no numbers in [0, 1]")
    return selection.replace(ledger=selection.ledger.timed(watch))  # pyright: ignore[reportAttributeAccessIssue] - flax adds it


_compiled = jax.jit(search, static_argnames="n")


def _for(seconds: float, watch: Stopwatch, key: PRNGKeyArray, program: Program, n: int, rule: Rule | None) -> Selection:
    """The search, round by round, as long as there is time for one more."""
    if isinstance(key, Tracer):
        raise TypeError("budget: seconds cannot be a limit inside compiled code (jax.jit, vmap)")
    if runs_on_host(program):
        one, now = partial(turn, key, program, rule), begin(key, program, n)
    else:
        now = jax.jit(begin, static_argnames="n")(key, program, n)
        one = partial(jax.jit(turn).lower(key, program, rule, now).compile(), key, program, rule)  # before the clock is looked at
    end = for_seconds(seconds, watch, lambda now: going(program, now), one, now)
    return selection(program, end.particles)


def for_seconds(seconds: float, watch: Stopwatch, goes: Callable[[Any], Array], one: Callable[[Any], Any], now: Any) -> Any:
    """Turns while it goes on, and while by the longest so far there is time for another."""
    jax.block_until_ready(now)
    longest = 0.0
    while goes(now) and watch.elapsed + longest < seconds:
        before = watch.elapsed
        now = jax.block_until_ready(one(now))
        longest = max(longest, watch.elapsed - before)
    return now


def selection(program: Program, particles: Any) -> Selection:
    """What particles have come to, one vote each."""
    with isolated():
        values, done = program.value(particles), program.done(particles)
    scores = score("search", program, values)
    complete = done & values.complete if isinstance(values, Metered) else done
    log_weights = chosen("majority", scores, complete)
    return Selection(values, log_weights, jnp.array(jnp.nan), scores, complete, of_work(values, ~jnp.all(complete)), "search")


def score(name: str, program: Program, values: Any) -> Float[Array, " n"]:
    """The `reward` of every value.

    Raises:
      TypeError: when values have none.
    """
    reward = getattr(values, "reward", None)
    if reward is None:
        raise TypeError(f"{name}: the values of {program} have no `reward` to search by; those of po.reason do")
    return reward


def _selected(key: PRNGKeyArray, program: Program, rule: Rule, time: Int[Array, ""], particles: Any) -> Any:
    done = program.done(particles)
    particles, ancestors = rule(key, program, particles, score("search", program, program.value(particles)), done, time)
    return program.select(particles, jnp.where(jnp.all(done), jnp.arange(done.shape[0], dtype=jnp.int32), ancestors.astype(jnp.int32)))
