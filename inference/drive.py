"""Runs an algorithm's `(init, step)` to the end of a program: one compiled loop, or step by step with a progress bar."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from rich.console import Console
from rich.progress import Progress, TextColumn

from posterity.inference import checkpoint as checkpoints
from posterity.inference.checkpoint import Checkpoint, Kept
from posterity.inference.population import Population, normalise
from posterity.inference.posterior import Posterior
from posterity.ppl.component import State, complaint
from posterity.ppl.effects import Decider, followed, isolated, loop
from posterity.ppl.program import Definition, Program, choices_of, is_program, runs_on_host
from posterity.ppl.side_by_side import anywhere, held


class Info(NamedTuple):
    """What one step did."""

    ess: Float[Array, ""]  # effective sample size when the step began
    resampled: Bool[Array, ""]
    ancestors: Int[Array, " n"] | None  # int32, the identity where nothing was resampled; None where no history is kept
    accepted: Float[Array, ""] | None = None  # the share of moves accepted; None in algorithms that make none


class Generations(NamedTuple):
    """All particles that a run had, after 0, 1, .. steps: leading axis length + 1. Those of steps not made mean nothing."""

    particles: Any
    log_weights: Float[Array, "times n"]  # nats, of the population after the step; their sum is not normalised


HISTORIES = {False: "none", True: "ancestors", "none": "none", "ancestors": "ancestors", "full": "full"}


class Run(NamedTuple):
    """A run under way."""

    key: PRNGKeyArray
    time: Int[Array, ""]  # steps made
    population: Population
    record: Info  # of all steps, [length, ...]; without ancestors when no history is kept
    generations: Generations | None  # when the full history is kept


def drive(
    key: PRNGKeyArray,
    program: Program,
    n: int,
    init: Callable,
    step: Callable,
    *,
    history: bool | str,
    progress: bool,
    moves: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """`init`, then `step(key, program, population) -> (population, info)` until all particles are done, then the posterior.

    An algorithm that `moves` particles makes all the program's steps: what is done now may be moved, and go on.
    `step` is a pytree (`jax.tree_util.Partial`): its options are traced, so that other values do not recompile.
    """
    if isinstance(program, Definition):
        program = program.bind()
    if not is_program(program):
        wanted = "a Program (a function decorated with @po.program, called with its arguments; inside another model, its .bind(...))"
        raise TypeError(f"program must be {wanted}, got {type(program).__name__}")
    check_key(key)
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be at least 1 particle, got {n!r}")
    if not isinstance(history, (bool, str)) or history not in HISTORIES:
        raise ValueError(f'history must be "none" (or False), "ancestors" (or True) or "full", got {history!r}')
    options = (key, program, int(n), init, step, HISTORIES[history], moves)
    if checkpoint is not None:
        checkpoints.check(checkpoint, key, program, step)
    if runs_on_host(program):
        posterior = _on_host(*options, progress=progress)
    elif progress or checkpoint is not None:
        posterior = _stepwise(*options, progress=progress, checkpoint=checkpoint)
    else:
        run = _compiled.__wrapped__ if followed() else _compiled  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
        posterior = run(*options)
    _check(posterior, program)
    return posterior


@functools.partial(jax.jit, static_argnames=("n", "init", "history", "moves"))
def _compiled(key: PRNGKeyArray, program: Program, n: int, init: Callable, step: Callable, history: str, moves: bool) -> Posterior:
    run = begin(key, program, n, init, history, moves)
    steps = run.record.ess.shape[0]
    if steps:
        more, turn = lambda run: going(run, program, moves), lambda run: advance(run, program, step)
        if followed():  # each branch of an enumeration ends by itself
            run = loop(more, turn, run, limit=steps)
        else:  # in compiled code, which may be mapped over many problems
            run = loop(lambda run: anywhere(more(run)), lambda run: held(more(run), turn(run), run), run, limit=steps)
    return finish(run, program)


class Eagerly(Decider):
    """Around algorithms on programs that run in Python: branches and loops are Python's, draws are made as ever."""

    def cond(self, predicate: Array, true: Callable, false: Callable, *operands: Any) -> Any:
        return true(*operands) if predicate else false(*operands)

    def loop(self, going: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, limit: int) -> Any:
        while going(state):
            state = body(state)
        return state


def _on_host(key: PRNGKeyArray, program: Program, n: int, init: Callable, step: Callable, history: str, moves: bool, *, progress: bool) -> Posterior:
    """The same step by step in Python, for programs whose own steps run there."""
    if isinstance(key, Tracer):
        raise TypeError(f"{program} runs in Python: it cannot be part of compiled code (jax.jit, vmap), nor be enumerated")
    with Eagerly(), bar(program, progress) as told:
        run = begin(key, program, n, init, history, moves)
        while going(run, program, moves):
            run = advance(run, program, step)
            told(int(run.time))
        return finish(run, program)


@contextlib.contextmanager
def bar(shown: Any, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar of `shown.length` steps, if there is to be `progress`: what it yields is told how many are made."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.completed} of at most {task.total} steps"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as shower:
        task = shower.add_task(repr(shown), total=shown.length)
        yield lambda completed: shower.update(task, completed=completed)


def _stepwise(
    key: PRNGKeyArray,
    program: Program,
    n: int,
    init: Callable,
    step: Callable,
    history: str,
    moves: bool,
    *,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Posterior:
    """The same in stretches."""
    kept = checkpoint and checkpoints.keep(checkpoint, checkpoints.describe(key, program, n, init, step, history=history, moves=moves))
    run = jax.jit(begin, static_argnames=("n", "init", "history", "moves"))(key, program, n, init, history, moves)
    goes = functools.partial(jax.jit(going, static_argnames="moves"), program=program, moves=moves)
    stretch = jax.jit(_stretch, static_argnames="moves", donate_argnames="run")
    run = in_stretches(run, goes, stretch, (program, step, moves), shown=program, progress=progress, kept=kept)
    return jax.jit(finish)(run, program)


def in_stretches(run: Any, goes: Callable, stretch: Callable, options: tuple, *, shown: Any, progress: bool, kept: Kept | None) -> Any:
    """A run brought to its end in stretches of steps, each compiled as one loop: to show how far it is, or to keep the run on disk between them.

    `stretch(run, *options, until)`, a jitted function, makes steps until `run.time` is `until` or `goes(run)` no longer holds; `shown` has a name
    (its `repr`) and a `length`.
    """
    if kept:
        run = stretch(run, *options, 0)  # no step: but from here on its arrays lie on the devices as they will
        kept = kept.computing(stretch.lower(run, *options, 0).as_text())  # pyright: ignore[reportFunctionMemberAccess] - jit has it
        run = kept.latest(run)
    every = kept.every if kept else 1
    with bar(shown, progress) as told:
        while goes(run):
            time = int(run.time)
            run = stretch(run, *options, time + 1 if progress else time + every - time % every)
            told(int(run.time))
            if kept and int(run.time) % every == 0:
                kept.save(run, int(run.time))
    if kept:
        kept.save(run, int(run.time))
        kept.manager.close()
    return run


def _stretch(run: Run, program: Program, step: Callable, moves: bool, until: Array | int) -> Run:
    """The run when `until` steps are made, or when it has ended."""
    steps = run.record.ess.shape[0]
    if not steps:
        return run
    return loop(lambda run: going(run, program, moves) & (run.time < until), lambda run: advance(run, program, step), run, limit=steps)


def begin(key: PRNGKeyArray, program: Program, n: int, init: Callable, history: str, moves: bool) -> Run:
    """A run before its first step."""
    with isolated():
        init_key, loop_key = jax.random.split(key)
        population = init(init_key, program, n)
        length = program.length
        kept = None if history == "none" else jnp.zeros((length, n), jnp.int32)
        unknown = jnp.full(length, jnp.nan, population.log_weights.dtype)
        record = Info(unknown, jnp.zeros(length, bool), kept, unknown if moves else None)
        generations = _first_of(length + 1, program, population) if history == "full" else None
        return Run(loop_key, jnp.zeros((), jnp.int32), population, record, generations)


def going(run: Run, program: Program, moves: bool) -> Array:
    """Until all particles are done, or the last step where moves may bring them back to life.

    A run that can come to nothing (no weight left, or an invalid potential) stops where that is seen.
    """
    population = run.population
    fruitful = (jnp.max(population.log_weights) > -jnp.inf) & (population.invalid == 0)
    ended = False if moves else jnp.all(program.done(population.particles))
    return fruitful & (run.time < run.record.ess.shape[0]) & ~jnp.asarray(ended)


def advance(run: Run, program: Program, step: Callable) -> Run:
    """The run one step further."""
    with isolated():
        population, info = step(jax.random.fold_in(run.key, run.time), program, run.population)
    kept = info._replace(**{name: None for name, rows in run.record._asdict().items() if rows is None})
    record = jax.tree.map(lambda rows, row: rows.at[run.time].set(row), run.record, kept)
    now, time = Generations(population.particles, population.log_weights), run.time + 1
    generations = run.generations and jax.tree.map(lambda rows, row: rows.at[time].set(row), run.generations, now)
    return Run(run.key, time, population, record, generations)


def _first_of(times: int, program: Program, population: Population) -> Generations:
    """Room for generations, with the first in its place."""
    for leaf in jax.tree.leaves(population.particles, is_leaf=lambda x: isinstance(x, State)):
        if isinstance(leaf, State):
            raise TypeError(f'history="full" keeps every generation, but {program} has a {type(leaf).__name__} in its particles, whose past is shared')
    now = Generations(population.particles, population.log_weights)
    return jax.tree.map(lambda row: jnp.zeros((times, *row.shape), row.dtype).at[0].set(row), now)


def finish(run: Run, program: Program) -> Posterior:
    """The posterior that a run has come to."""
    population, record = run.population, run.record
    with isolated():
        values, choices = program.value(population.particles), choices_of(program, population.particles)
    log_evidence = population.log_evidence + jax.scipy.special.logsumexp(population.log_weights)
    valid = population.invalid == 0
    return Posterior(
        values=values,
        log_weights=jnp.where(valid, normalise(population.log_weights), -jnp.inf),
        log_evidence=jnp.where(valid, log_evidence, -jnp.inf),
        eves=population.eves,
        invalid=population.invalid,
        steps=run.time,
        ess_history=record.ess,
        resampled=record.resampled,
        ancestors=record.ancestors,
        choices=choices,
        acceptance=record.accepted,
        generations=run.generations,
    )


def check_key(key: object) -> None:
    """Raises TypeError when `key` is no single random key."""
    if not _is_key(key):
        raise TypeError(f"key must be a single random key, as jax.random.key(0) makes, got {key!r}")


def check_counts(**counts: tuple[Any, int]) -> None:
    """Raises ValueError when a count (given, smallest allowed) is no whole number or too small."""
    for name, (count, least) in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")


def _is_key(key: object) -> bool:
    if not isinstance(key, jax.Array):
        return False
    return key.shape == () if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else (key.shape, key.dtype) == ((2,), jnp.uint32)


def _check(posterior: Posterior, program: Program) -> None:
    if not isinstance(posterior.invalid, Tracer) and int(posterior.invalid):
        if why := complaint(posterior.values):
            raise ValueError(f"{program}: {why}")
        when = f"step {int(posterior.steps)}" if int(posterior.steps) else "the initial law"
        raise ValueError(f"{program}: {int(posterior.invalid)} of {len(posterior)} log potentials were NaN or +inf at {when}; each must be finite or -inf")
