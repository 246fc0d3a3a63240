"""Chains of the kernels that move particles: all chains are one batch, and what a kernel is not given it learns during the warm-up."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float, PRNGKeyArray
from numpyro.infer.hmc_util import build_adaptation_schedule

from posterity.inference.blocks import Moved, run
from posterity.inference.mcmc.chain import Chain, chain
from posterity.inference.mcmc.metropolis import log_potential, where
from posterity.inference.mcmc.parameters import supports, to_reals
from posterity.inference.mcmc.space import Fit, as_vectors, discrete, fitted, learns
from posterity.inference.mcmc.starts import TRIES, layout, placed
from posterity.inference.mcmc.tempered import Copies, copies_of
from posterity.inference.mcmc.traces import is_single_site
from posterity.inference.recorded import Recorded, recorded
from posterity.inference.retraced import retraced
from posterity.inference.smc.ibis import Parameters
from posterity.ppl.program import FunctionProgram


class Learning(NamedTuple):
    """What the draws of a window of the warm-up say of the target, for each exponent (of which there is one, but for parallel tempering)."""

    fit: Fit  # [exponents, d] and [exponents, d, d]: of the window before
    count: Array  # [] draws of each chain in this window
    mean: Float[Array, "particles d"]  # of each chain
    squares: Float[Array, "exponents d d"]  # summed outer products of deviations from these


class State(NamedTuple):
    """Chains under way."""

    particles: Any  # [chains * exponents, ...]
    time: Array  # [] moves made
    learning: Learning | None


def moving(key: PRNGKeyArray, program: FunctionProgram, kernel: Partial, initial: Any, *, chains: int, warmup: int, **options: Any) -> Chain:
    """The posterior of a program by chains of a kernel that moves particles."""
    if learns(kernel) and warmup < 2:
        raise ValueError(f"this kernel learns during the warm-up what it was not given (a covariance, a width); give it that, or a warm-up: got {warmup=}")
    exponents = copies_of(kernel)
    if is_single_site(kernel) and initial is None and program.length:
        target = recorded(retraced(program))
    else:
        target = Parameters(program) if exponents is None else Copies(program, exponents)
    windows = build_adaptation_schedule(warmup) if learns(kernel) else []
    ends = jnp.array([window.end for window in windows[:-1] or windows], jnp.int32)  # the last window is too short to learn from
    begin = Partial(_first_with(chains, learns(kernel)), target, initial)
    step, read = Partial(_step, target, kernel, ends, warmup), Partial(_read_with(chains), target)
    found = chain(key, program, begin, step, read, chains=chains, warmup=warmup, **options)
    values, choices = found.values
    return replace(found, values=values, choices=choices)


@functools.cache
def _first_with(chains: int, learning: bool) -> Callable:
    """One object for these numbers: jit knows compiled code again by it."""
    return functools.partial(_first, chains=chains, learning=learning)


def _first(target: Any, initial: Any, init_key: Array, run_key: Array, *, chains: int, learning: bool) -> State:
    """Draws of the program that its potentials allow, if they are found in 100 tries."""
    if isinstance(target, Recorded):
        return State(run(run_key, target, target.init(init_key, chains)[0], target.length), jnp.zeros((), jnp.int32), None)
    given = placed(target.inner, layout(target.inner), initial, chains)

    def tried(key: Array) -> Any:
        particles = target.init(key, chains)[0]
        if not given:
            return particles
        copies = _flat(particles, target).shape[0] // chains
        own = {name: jnp.repeat(x, copies, axis=0) for name, x in given.items()}
        judge = _judge(target)
        return judge.at(key, {**judge.choices(particles), **own}, particles, None)

    def again(state: tuple[Array, Any]) -> tuple[Array, Any]:
        count, particles = state
        return count + 1, where(_allowed(target, particles), particles, tried(jax.random.fold_in(init_key, count)))

    start = (jnp.ones((), jnp.int32), tried(init_key))
    _, particles = lax.while_loop(lambda state: (state[0] < TRIES) & ~jnp.all(_allowed(target, state[1])), again, start)
    learning = learning and bool(_real(target, particles))
    return State(particles, jnp.zeros((), jnp.int32), _unlearned(target, particles, chains) if learning else None)


def _step(target: Any, kernel: Partial, ends: Array, warmup: Any, key: Array, state: State) -> tuple[State, Moved]:
    particles, time, learning = state
    if learning is None:
        particles, moved = kernel(key, target, particles, time=None)
        return State(particles, time + 1, None), moved
    places = functools.partial(_places, target, particles)
    particles, moved = fitted(kernel, _for_each(learning.fit, learning.mean.shape[0]), places)(key, target, particles, time=None)
    learned = _learn(learning, _coordinates(target, particles), jnp.any(time == ends))
    learning = jax.tree.map(lambda new, old: jnp.where(time < warmup, new, old), learned, learning)
    return State(particles, time + 1, learning), moved


@functools.cache
def _read_with(chains: int) -> Callable:
    return functools.partial(_read, chains=chains)


def _read(target: Any, state: State, *, chains: int) -> tuple[Any, Array]:
    particles = state.particles
    if isinstance(target, Recorded):
        return (target.value(particles), {}), log_potential(particles) > -jnp.inf
    values, choices, allowed = target.value(particles), target.choices(particles), _allowed(target, particles).reshape(chains, -1)[:, 0]
    if isinstance(target, Copies):  # of each chain the copy whose exponent is 1
        values, choices = jax.tree.map(lambda x: x[:, 0], (values, choices))
    return (values, choices), allowed


def _judge(target: Any) -> Any:
    """What the particles, all copies apart, are particles of."""
    return target.path if isinstance(target, Copies) else target


def _flat(particles: Any, target: Any) -> Array:
    return _judge(target).log_likelihood(particles)


def _allowed(target: Any, particles: Any) -> Array:
    """Which particles have some density, bool; those of undefined density count, and are told of when they are left."""
    return ~jnp.isneginf(_flat(particles, target))


# -- what is learned ----------------------------------------------------------------------------------------------------------


def _real(target: Any, particles: Any) -> tuple[str, ...]:
    laws = supports(target.inner, _judge(target).choices(particles))
    return tuple(name for name, law in laws.items() if not discrete(law))


def _coordinates(target: Any, particles: Any) -> Float[Array, "particles d"]:
    """Of all real choices; 0 at the edges of supports, where they are infinite."""
    x = as_vectors(to_reals(target.inner, _real(target, particles), _judge(target).choices(particles))[0])[0]
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _places(target: Any, particles: Any, names: tuple[str, ...]) -> np.ndarray:
    """Which coordinates those of the named choices are."""
    real = _real(target, particles)
    shapes = jax.eval_shape(lambda choices: to_reals(target.inner, real, choices)[0], _judge(target).choices(particles))
    sizes = {name: int(np.prod(shapes[name].shape[1:])) for name in sorted(real)}
    ends = np.cumsum(list(sizes.values()))
    ranges = {name: np.arange(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
    return np.concatenate([ranges[name] for name in sorted(set(names) & set(real) if names else real)])


def _unlearned(target: Any, particles: Any, chains: int) -> Learning:
    """Before anything is known: where the chains start, and a width of one."""
    x = _coordinates(target, particles)
    exponents, d = x.shape[0] // chains, x.shape[1]
    mean = jnp.mean(x.reshape(chains, exponents, d), axis=0)
    fit = Fit(mean, jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), (exponents, d, d)))
    return Learning(fit, jnp.zeros((), x.dtype), jnp.zeros_like(x), jnp.zeros((exponents, d, d), x.dtype))


def _learn(learning: Learning, x: Float[Array, "particles d"], ends: Array) -> Learning:
    """One draw of each chain more. At the end of a window its covariance within chains is what is known, drawn towards 1/1000 as Stan does: none is 0."""
    exponents, d = learning.fit.mean.shape
    count = learning.count + 1
    before = x - learning.mean
    mean = learning.mean + before / count
    apart = lambda x: x.reshape(-1, exponents, d)  # noqa: E731
    squares = learning.squares + jnp.einsum("cei,cej->eij", apart(before), apart(x - mean))
    total = jnp.maximum((count - 1) * (x.shape[0] // exponents), 1)
    covariance = (total * (squares / total) + 5e-3 * jnp.eye(d, dtype=x.dtype)) / (total + 5)
    fit = Fit(jnp.mean(apart(mean), axis=0), covariance)
    going = Learning(learning.fit, count, mean, squares)
    return jax.tree.map(lambda a, b: jnp.where(ends, a, b), Learning(fit, *jax.tree.map(jnp.zeros_like, (count, mean, squares))), going)


def _for_each(fit: Fit, particles: int) -> Fit:
    """The fit as kernels take it: one for all, or for each particle that of its exponent."""
    exponents = fit.mean.shape[0]
    if exponents == 1:
        return Fit(fit.mean[0], fit.covariance[0])
    return jax.tree.map(lambda x: jnp.tile(x, (particles // exponents, *[1] * (x.ndim - 1))), fit)
