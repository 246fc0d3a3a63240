"""Chains of NumPyro's kernels: warm-up and draws as one loop, compiled once for a program and run again for other data.

(NumPyro's own `MCMC` traces the model anew at every run. Its kernels are pure functions of their state, and that is what is looped here.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PRNGKeyArray

from posterity.inference.mcmc.chain import Chain
from posterity.inference.mcmc.numpyro_kernels import ENSEMBLES, MIXES, Library
from posterity.inference.mcmc.parameters import Choices, begin, from_reals, to_reals
from posterity.inference.mcmc.starts import Layout, Start, energy, layout, need_finite, need_real, placed, proper, start
from posterity.ppl.effects import isolated
from posterity.ppl.program import FunctionProgram

PARTS = 100  # of a run: what its progress is told in


class Course(NamedTuple):
    """Chains under way."""

    time: Array  # [] parts of the run that are made
    state: Any  # the kernel's, [chains, ...]
    rows: Any  # what was read of every draw, [chains, draws, ...]; of an ensemble [draws, chains, ...]
    start: Start  # [chains, ...]


class Sampler(NamedTuple):
    """A kernel made for a program."""

    init: Callable[[Array, Any], Any]  # key, where to start -> state
    sample: Callable[[Any], Any]  # state -> state
    read: Callable[[Any], tuple[Any, dict[str, Array]]]  # state -> coordinates (or coordinates and choices by name), and what the kernel tells of the move


@functools.partial(jax.jit, static_argnames=("chains", "draws", "warmup", "thinning"))
def whole(
    key: PRNGKeyArray, program: FunctionProgram, kernel: Library, initial: Choices | None, *, chains: int, draws: int, warmup: int, thinning: int
) -> tuple[Chain, Start]:
    """A run from its start to its end."""
    course = first(key, program, kernel, initial, chains=chains, draws=draws, warmup=warmup)
    return last(stretch(course, program, kernel, warmup, thinning, PARTS), program, kernel)


def first(key: PRNGKeyArray, program: FunctionProgram, kernel: Library, initial: Choices | None, *, chains: int, draws: int, warmup: int) -> Course:
    """A run before its first move."""
    with isolated():
        found = _checked(program, kernel)
        given = placed(program, found, initial, chains)
        start_key, init_key = jax.random.split(key)
        start_keys, init_keys = jax.random.split(start_key, chains), jax.random.split(init_key, chains)
        made = _sampler(program, kernel, found, warmup)
        if kernel.name in MIXES:
            starts = Start(jnp.zeros((chains, 0)), jnp.zeros(chains, bool), jnp.zeros(chains, bool), jnp.zeros((chains, 0), bool))
            state = _each_chain(lambda key, again, given: made.init(key, _complete(again, program, found, given)))(init_keys, start_keys, given)
            starts = starts._replace(found=jnp.isfinite(state.hmc_state.potential_energy))
        elif kernel.name in ENSEMBLES:
            starts = jax.vmap(lambda key, given: start(key, program, found, given, gradient=False))(start_keys, given)
            state = made.init(init_keys, starts.z)
        else:
            starts = _each_chain(lambda key, given: start(key, program, found, given))(start_keys, given)
            state = _each_chain(made.init)(init_keys, starts.z)
        row = jax.eval_shape(made.read if kernel.name in ENSEMBLES else jax.vmap(made.read), state)
        lead = (lambda x: (draws, *x.shape)) if kernel.name in ENSEMBLES else (lambda x: (x.shape[0], draws, *x.shape[1:]))
        rows = jax.tree.map(lambda x: jnp.zeros(lead(x), x.dtype), row)
        return Course(jnp.zeros((), jnp.int32), state, rows, starts)


def stretch(course: Course, program: FunctionProgram, kernel: Library, warmup: int, thinning: int, until: Array | int) -> Course:
    """The run when `until` parts of it are made."""
    draws = jax.tree.leaves(course.rows)[0].shape[0 if kernel.name in ENSEMBLES else 1]
    moves = warmup + draws * thinning
    from_, to = course.time * moves // PARTS, until * moves // PARTS
    found = layout(program)

    def on(state, rows):
        made = _sampler(program, kernel, found, warmup)
        _prime(made, kernel, state)

        def once(t, carry):
            state, rows = carry
            state = made.sample(state)
            kept = t + 1 - warmup
            row = jnp.where((kept > 0) & (kept % thinning == 0), kept // thinning - 1, draws)  # beyond the end: dropped
            return state, jax.tree.map(lambda rows, x: rows.at[row].set(x, mode="drop"), rows, made.read(state))

        return lax.fori_loop(from_, to, once, (state, rows))

    with isolated():
        state, rows = (on if kernel.name in ENSEMBLES else _each_chain(on))(course.state, course.rows)
    return course._replace(time=jnp.asarray(until, jnp.int32), state=state, rows=rows)


def last(course: Course, program: FunctionProgram, kernel: Library) -> tuple[Chain, Start]:
    """The chains that a run has come to, and where they started."""
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), course.rows) if kernel.name in ENSEMBLES else course.rows
    chains = course.start.found.shape[0]
    z, statistics = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    n = statistics["accepted"].shape[0]
    with isolated():
        choices = _choices(program, layout(program), z)
        values = program.value(begin(program, choices)[0])
    sound = jnp.all(course.start.found)
    adapted = getattr(getattr(course.state, "hmc_state", course.state), "adapt_state", None)
    tuned = {} if adapted is None else {"step_size": adapted.step_size}
    chain = Chain(
        values=values,
        log_weights=jnp.where(sound, jnp.full(n, -jnp.log(n)), -jnp.inf),
        log_evidence=jnp.where(sound, jnp.nan, -jnp.inf),
        accepted=statistics.pop("accepted"),
        invalid=jnp.zeros((), jnp.int32),
        choices=choices,
        chains=chains,
        statistics=statistics,
        tuned=tuned,
    )
    return chain, course.start


def _checked(program: FunctionProgram, kernel: Library) -> Layout:
    """The program's layout, if the kernel can move its choices."""
    found = layout(program)
    (need_finite if kernel.name in ("discrete_gibbs", "mixed_hmc") else (lambda *_: None) if kernel.name in MIXES else need_real)(kernel.name, program, found)
    return found


def _each_chain(function: Callable) -> Callable:
    """One chain after the other on CPUs, where that takes less time than all at once, when each waits for the longest trajectory; side by side elsewhere."""
    if jax.default_backend() == "cpu":
        return lambda *batches: lax.map(lambda one: function(*one), batches)
    return jax.vmap(function)


def _sampler(program: FunctionProgram, kernel: Library, found: Layout, warmup: int) -> Sampler:
    """NumPyro's kernel for this program. Coordinates are one vector: its loops carry, and branch on, fewer arrays than with one for each choice."""
    if kernel.name in MIXES:
        mix = kernel.build(model=_run)
        return Sampler(lambda key, z: mix.init(key, warmup, z, (program,), {}), lambda state: mix.sample(state, (program,), {}), _read)
    potential = energy(program, found)
    made = kernel.build(potential=potential if kernel.name in ("nuts", "hmc") else proper(potential))  # those two take a NaN for a divergence
    return Sampler(lambda key, z: made.init(key, warmup, z, (), {}), lambda state: made.sample(state, (), {}), _read)


def _run(program: FunctionProgram) -> Any:
    """A program as NumPyro's model: its data are the model's arguments."""
    return program()


def _prime(made: Sampler, kernel: Library, state: Any) -> None:
    """NumPyro's kernels learn in `init` what to run in `sample`. What is computed here is used nowhere, and compiled away."""
    key = jax.random.key(0)
    made.init(jax.random.split(key, state.z.shape[0]) if kernel.name in ENSEMBLES else key, None if kernel.name in MIXES else state.z)


def _read(state: Any) -> tuple[Any, dict[str, Array]]:
    """Where a chain is, and what its last move was."""
    hmc = getattr(state, "hmc_state", state)
    if hasattr(state, "inner_state"):  # an ensemble: the shares accepted, of all its members together
        accepted = getattr(state.inner_state, "accept_prob", jnp.ones(()))
        return state.z, {"accepted": jnp.broadcast_to(accepted, jax.tree.leaves(state.z)[0].shape[:1])}
    told = {"accepted": getattr(state, "accept_prob", hmc.accept_prob), "log_density": -hmc.potential_energy}
    names = {"diverging": "divergent", "num_steps": "steps", "energy": "energy"}
    return state.z, told | {ours: getattr(hmc, theirs) for theirs, ours in names.items() if hasattr(hmc, theirs)}


def _complete(key: Array, program: FunctionProgram, found: Layout, given: Choices) -> dict[str, Array] | None:
    """Where a mix starts: what was given, and draws of the program for the rest; None to leave it to the kernel."""
    if not given:
        return None
    choices = {**program.init(key, 1)[0].choices, **jax.tree.map(lambda x: x[None], given)}
    reals, _ = to_reals(program, found.real, choices)
    return {name: reals.get(name, x)[0] for name, x in choices.items()}


def _choices(program: FunctionProgram, found: Layout, z: Any) -> Choices:
    """The choices [n, ...] by name."""
    if isinstance(z, dict):
        return from_reals(program, z, {name: z[name] for name in found.real})[0]
    reals = jax.vmap(found.unravel)(z)
    return from_reals(program, reals, reals)[0]
