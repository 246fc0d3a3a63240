"""Controlled SMC (Guarniero, Johansen and Lee 2017; Heng et al. 2020): a twist learned by backward regression, run by run."""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from numpyro import handlers

from posterity.inference import blocks
from posterity.inference import checkpoint as checkpoints
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import check_counts, check_key, in_stretches
from posterity.inference.posterior import Posterior
from posterity.inference.smc.resampling import Ancestors
from posterity.inference.smc.smc import smc
from posterity.ppl.effects import followed, loop, particle_map
from posterity.ppl.program import Program, as_program
from posterity.ppl.transform import Transformed, active
from posterity.ppl.twist import Twisted, twist

ALWAYS = 2.0  # an effective sample size is less than 2n
RIDGE = 1e-3  # on coefficients of standardised features, beside a mean loss: a twist is not to be sure of what few particles say
NEWTON, STEPS = 20, (0.0, 0.05, 0.2, 0.5, 1.0)


class Clock(NamedTuple):
    """Particles that know how many steps they made."""

    now: Any
    time: Int[Array, " n"]


class Timed(NamedTuple):
    """A value, and when it was seen."""

    value: Any
    time: Int[Array, "..."]


@struct.dataclass
class Clocked(Transformed):
    """A program whose value says the time too."""

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Clock, Float[Array, " n"]]:
        now, log_potential = self.inner.init(key, n)
        return Clock(now, jnp.zeros(n, jnp.int32)), log_potential

    def step(self, key: PRNGKeyArray, particles: Clock, *, where: Bool[Array, " n"] | None = None) -> tuple[Clock, Float[Array, " n"]]:
        moved = active(self, particles, where)
        now, log_potential = self.inner.step(key, particles.now, where=where)
        return Clock(now, particles.time + moved.astype(jnp.int32)), log_potential

    def value(self, particles: Clock) -> Timed:
        return Timed(self.inner.value(particles.now), particles.time)


class Fit(NamedTuple):
    """log psi_t = coefficients_t . (1, features), kept between what it was on the particles it was learned from; leading axis: the times 0..length-1."""

    coefficients: Float[Array, "*times k"]
    least: Float[Array, "*times"]
    most: Float[Array, "*times"]

    def __call__(self, row: Float[Array, "... k"]) -> Float[Array, "..."]:
        return jnp.clip(row @ self.coefficients, self.least, self.most)


class Seen(NamedTuple):
    """What n particles met in a step."""

    before: Float[Array, "n k"]  # 1 and the features
    after: Float[Array, "n k"]
    log_potential: Float[Array, " n"]
    moved: Bool[Array, " n"]
    ended: Bool[Array, " n"]


def controlled(
    key: PRNGKeyArray,
    program: Program,
    features: Callable[[Any], Float[Array, " k"]],
    *,
    n: int,
    rounds: int = 3,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    history: bool | str = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """The posterior by SMC on the program twisted by a potential-to-go that earlier runs have taught.

    Properly weighted for every n, every number of rounds and any features: what is learned in a round comes from other draws than the run that it
    serves, and `po.twist` keeps the meaning whatever psi is. The better psi_t(x) = E[product of the potentials after t | x], the less the evidence varies.

    Each round runs SMC on the program as twisted so far and then goes back in time: exp(coefficients_t . (1, features)) is fitted to
    G_{t+1} psi_{t+1} at each particle's next state (a Poisson regression, so that means and not their logarithms are matched). Costs rounds + 1 runs,
    and a round keeps the features of all n particles and steps. Few particles may teach a bad psi; `log_evidence_error` is then larger than in
    other runs, though still too small: compare keys.

    Args:
      key: a `jax.random.key`.
      program: any program.
      features: of one particle's value, [k] finite numbers: for log psi to be quadratic in a state x, say, `lambda x: jnp.stack([x, x**2])`. The
        constant is added. A function defined once compiles once.
      n: the number of particles, in the rounds and in the last run.
      rounds: how often psi is learned; 0 is `po.smc`.
      resampling, threshold, history: of the last run, as in `po.smc`. Rounds resample systematically before every step.
      progress, checkpoint: as in `po.smc`, of the rounds and of the last run, which are kept in two folders at the checkpoint's path. What is
        learned is kept after every round.

    Raises:
      TypeError: when `program` is no program, or `features` cannot be called.
      ValueError: on n < 1, rounds < 0, features that are no vector; otherwise as `po.smc`.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def arrive(y):
    ...     x = po.scan(lambda x, _: po.sample("x", dist.Normal(x, 1.0)), 0.0, length=8)
    ...     po.observe("y", dist.Normal(x, 0.5), y)
    ...     return x
    >>> def quadratic(x):
    ...     return jnp.stack([x, x**2])
    >>> posterior = po.controlled(jax.random.key(0), arrive(8.0), quadratic, n=500)
    >>> bool(posterior.log_evidence_error < 0.5 * po.smc(jax.random.key(0), arrive(8.0), n=500).log_evidence_error)
    True
    """
    if not callable(features):
        raise TypeError(f"controlled: features must be a function of a particle's value, got {features!r}")
    check_key(key)
    check_counts(n=(n, 1), rounds=(rounds, 0))
    *keys, last_key = jax.random.split(key, rounds + 1)
    clocked, design = Clocked(as_program(program)), jax.tree_util.Partial(_row, jax.tree_util.Partial(features))
    if checkpoint is not None:
        checkpoints.check(checkpoint, key, clocked, design)
    fit = _nothing_learned(clocked, design)
    if clocked.length and keys:
        if progress or checkpoint is not None:
            fit = _stepwise(keys, clocked, design, fit, n, progress=progress, checkpoint=checkpoint)
        else:
            for round_key in keys:
                fit = (_learned.__wrapped__ if followed() else _learned)(round_key, clocked, design, fit, n)  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
    options = {"resampling": resampling, "threshold": threshold, "history": history, "progress": progress}
    posterior = smc(last_key, _twisted(clocked, design, fit), n=n, **options, checkpoint=checkpoint and _part(checkpoint, "run"))
    return replace(posterior, values=posterior.values.value)


class Rounds(NamedTuple):
    """Rounds under way."""

    time: Int[Array, ""]  # rounds made
    fit: Fit


class Shown(NamedTuple):
    """What a progress bar says of rounds."""

    program: Program
    length: int

    def __repr__(self) -> str:
        return f"rounds of learning a twist of {self.program}"


def _stepwise(keys: list[Array], program: Clocked, design: Callable, fit: Fit, n: int, *, progress: bool, checkpoint: Checkpoint | None) -> Fit:
    """The rounds, one by one."""
    keys_of = jnp.stack(keys)
    begun, about = Rounds(jnp.zeros((), jnp.int32), fit), checkpoints.describe(keys[0], program, n, _learned, design, rounds=len(keys))
    kept = checkpoint and checkpoints.keep(_part(checkpoint, "learned")._replace(every=1), about)
    stretch = jax.jit(functools.partial(_stretch, n), donate_argnames="rounds")
    goes = lambda rounds: rounds.time < len(keys)  # noqa: E731
    shown = Shown(program, len(keys))
    return in_stretches(begun, goes, stretch, (keys_of, program, design), shown=shown, progress=progress, kept=kept).fit


def _stretch(n: int, rounds: Rounds, keys: Array, program: Clocked, design: Callable, until: Array | int) -> Rounds:
    """The rounds when `until` of them are made."""

    def once(rounds: Rounds) -> Rounds:
        return Rounds(rounds.time + 1, _learned(keys[rounds.time], program, design, rounds.fit, n))

    return lax.while_loop(lambda rounds: rounds.time < until, once, rounds)


def _part(checkpoint: Checkpoint, name: str) -> Checkpoint:
    return checkpoint._replace(path=os.path.join(checkpoint.path, name))


@functools.partial(jax.jit, static_argnames="n")
def _learned(key: PRNGKeyArray, program: Clocked, design: Callable, fit: Fit, n: int) -> Fit:
    """What a run under the last twist teaches about a better one."""
    return _backward(_seen(key, _twisted(program, design, fit), design, n))


def _twisted(program: Clocked, design: Callable, fit: Fit) -> Twisted:
    return twist(program, jax.tree_util.Partial(_log_psi, design, fit)) if program.length else twist(program, _one)


def _one(timed: Timed) -> Array:
    return jnp.zeros(())


def _log_psi(design: Callable, fit: Fit, timed: Timed) -> Array:
    now = jnp.minimum(timed.time, fit.least.shape[0] - 1)
    return jax.tree.map(lambda x: x[now], fit)(design(timed))


def _row(features: Callable, timed: Timed) -> Array:
    row = jnp.asarray(features(timed.value), float)
    if row.ndim != 1:
        raise ValueError(f"controlled: features must return one vector, it returned shape {row.shape}")
    return jnp.concatenate([jnp.ones(1), row])


def _nothing_learned(program: Clocked, design: Callable) -> Fit:
    """psi = 1."""
    one = lambda key: design(jax.tree.map(lambda x: x[0], program.value(program.init(key, 1)[0])))  # noqa: E731
    with handlers.block():  # shapes are asked for, nothing is drawn
        size = jax.eval_shape(one, jax.random.key(0)).size
    return Fit(jnp.zeros((program.length, size)), *jnp.zeros((2, program.length)))


def _seen(key: PRNGKeyArray, program: Twisted, design: Callable, n: int) -> Seen:
    """A run, resampled before each step, and what its particles saw on the way; leaves [length, n, ...]."""
    rows = lambda particles: particle_map(design, (0,))(program.value(particles))  # noqa: E731
    init_key, loop_key = jax.random.split(key)

    def turn(state):
        time, population, record = state
        resample_key, step_key = jax.random.split(jax.random.fold_in(loop_key, time))
        population, _ = blocks.resample_below(ALWAYS, resample_key, program, population)
        before = population.particles
        population = blocks.advance(step_key, program, population)
        after, alive = population.particles, population.log_weights > -jnp.inf
        log_potential = jnp.where(alive, population.log_weights + jnp.log(n) - after.log_psi + before.log_psi, -jnp.inf)
        seen = Seen(rows(before), rows(after), log_potential, ~program.done(before), program.done(after))
        return time + 1, population, jax.tree.map(lambda all_, now: all_.at[time].set(now), record, seen)

    start = blocks.spawn(init_key, program, n)
    none, no = jnp.zeros((program.length, *rows(start.particles).shape)), jnp.zeros((program.length, n), bool)
    state = (jnp.zeros((), jnp.int32), start, Seen(none, none, none[..., 0], no, no))
    fruitful = lambda state: (state[0] < program.length) & jnp.any(state[1].log_weights > -jnp.inf)  # noqa: E731
    return loop(fruitful, turn, state, limit=program.length)[2]


def _backward(seen: Seen) -> Fit:
    """psi_t from psi_{t+1}, from the last step to the first."""

    def one(later: Fit, seen: Seen) -> tuple[Fit, Fit]:
        fit = _log_linear(seen.before, seen.log_potential + jnp.where(seen.ended, 0.0, later(seen.after)), seen.moved)
        return fit, fit

    return lax.scan(one, Fit(jnp.zeros(seen.before.shape[-1]), jnp.zeros(()), jnp.zeros(())), seen, reverse=True)[1]


def _log_linear(rows: Float[Array, "n k"], log_response: Float[Array, " n"], counts: Bool[Array, " n"]) -> Fit:
    """The fit of exp(coefficients . row) to a response on the rows that count: Poisson regression, by Newton steps; psi = 1 if none responds."""
    total = jnp.maximum(jnp.sum(counts), 1)
    mean = lambda x: jnp.tensordot(counts / total, jnp.where(counts.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0), 1)  # noqa: E731
    level = jax.scipy.special.logsumexp(jnp.where(counts, log_response, -jnp.inf)) - jnp.log(total)
    known = level > -jnp.inf
    level = jnp.where(known, level, 0.0)
    response = jnp.where(counts & known, jnp.exp(log_response - level), 1.0)
    centre = mean(rows).at[0].set(0.0)
    scale = jnp.sqrt(mean((rows - centre) ** 2))
    x = (rows - centre) / jnp.where(scale > 0, scale, 1.0)

    def loss(c: Array) -> Array:
        return mean(jnp.exp(x @ c) - response * (x @ c)) + 0.5 * RIDGE * c @ c

    def newton(_: Any, c: Array) -> Array:
        curvature = jax.hessian(loss)(c)
        steps = c - jnp.asarray(STEPS)[:, None] * jnp.linalg.solve(curvature, jax.grad(loss)(c))
        return steps[jnp.argmin(jax.vmap(loss)(steps))]

    c = lax.fori_loop(0, NEWTON, newton, jnp.zeros(rows.shape[1])) / jnp.where(scale > 0, scale, 1.0)
    c = jnp.where(known, c.at[0].add(level - centre @ c), 0.0)
    fitted = rows @ c
    return Fit(c, *(jnp.where(known, x, 0.0) for x in (jnp.min(fitted, where=counts, initial=jnp.inf), jnp.max(fitted, where=counts, initial=-jnp.inf))))
