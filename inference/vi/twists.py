"""Twists learned from runs: a guess of what the later potentials will come to, fitted to which particles had descendants in the end."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro import handlers

from posterity.inference import blocks
from posterity.inference.drive import check_counts, check_key
from posterity.inference.population import effective_sample_size, normalise
from posterity.inference.vi.train import check_optimizer, descent, train
from posterity.ppl.effects import particle_map
from posterity.ppl.program import Program, as_program
from posterity.ppl.transform import Transformed
from posterity.ppl.twist import twist as twisted

LOSSES = ("contrastive", "regression")


class LearnedTwist(NamedTuple):
    """A twist: `po.twist(program, learned.log_psi)`."""

    log_psi: Partial  # of one particle's value; its parameters are leaves
    parameters: Any
    losses: Float[Array, "rounds steps"]  # nats
    log_evidence: Float[Array, " rounds"]  # what the run of each round estimated, nats


class Seen(NamedTuple):
    """What the particles of a run were at times 0, 1, .., length - 1."""

    features: Any  # [times, n, ...]
    log_weights: Float[Array, "times n"]  # nats; exp(log_weights) weighs the particles by all potentials so far, without the twist
    reached: Float[Array, "times n"]  # the share of the run's final weight that descends from each
    open: Bool[Array, "times n"]  # not done
    survivors: Float[Array, ""]  # their effective number at the end


def linear(parameters: dict[str, Array], features: Float[Array, " k"]) -> Float[Array, ""]:
    """log psi = weight . features + bias."""
    return features @ parameters["weight"] + parameters["bias"]


def twist(
    key: PRNGKeyArray,
    program: Program,
    features: Callable[[Any], Any],
    log_psi: Callable[[Any, Any], Float[Array, ""]] = linear,
    parameters: Any = None,
    *,
    n: int = 256,
    rounds: int = 3,
    steps: int = 300,
    loss: Literal["contrastive", "regression"] = "contrastive",
    scale: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> LearnedTwist:
    """A twist psi(x_t) = exp(log_psi(parameters, features(x_t))) fitted to E[product of the potentials after t | x_t], for any program.

    `po.twist(program, learned.log_psi)` means what the program means whatever was learned, so that every algorithm on it is as valid as before; the
    better the fit, the less its weights vary. Each round runs SMC on the program as twisted so far and fits psi to the run: of the particles of each
    time it knows how much of the final weight descends from them. Early rounds need a run in which some particle comes to its end alive.

    Args:
      key: a `jax.random.key`.
      program: any program; texts of language models too.
      features: of one particle's value, whatever `log_psi` reads; it is computed once a step and not trained. What psi is to depend on, the value must
        tell: a text tells its length, a number does not tell its time.
      log_psi: of the parameters and the features, one finite number, nats. By default linear in a vector of features.
      parameters: where the fit begins, a pytree of float arrays; zeros by default for the linear one.
      n: particles of a round's run.
      rounds, steps: how many runs, and steps of the optimiser on each.
      loss: "contrastive" fits, time by time, the law of the particles that psi predicts to that of those that had descendants, up to a factor that
        only particles which end at different times can tell; "regression" the same with the factor, which is psi's level.
      scale: how far from 0 a parameter may be: the fit has a normal prior of this standard deviation, against as many observations as the run has
        effective survivors, so that a run which few survive says little. A psi that is too sure of itself costs more than it saves.
      optimizer: any of optax; by default Adam from 0.05 down to 0 in every round.

    Raises:
      TypeError: when `program` is none, `features` or `log_psi` cannot be called, or `optimizer` is none of optax.
      ValueError: on counts below 1, another loss, one that became NaN or infinite, or when no particle of the first round came to its end alive.

    Source: Zhao, Brekelmans, Makhzani and Grosse (2024) for contrastive twist learning; Guarniero, Johansen and Lee (2017) for regression.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def arrive(y):
    ...     x, t = po.scan(lambda c, _: (po.sample("x", dist.Normal(c[0], 1.0)), c[1] + 1), (0.0, 0), length=8)
    ...     po.observe("y", dist.Normal(x, 0.5), y)
    ...     return x, t
    >>> def quadratic(value):
    ...     x, t = value
    ...     return jnp.kron(jax.nn.one_hot(t, 8), jnp.stack([x, x**2]))
    >>> learned = po.learn.twist(jax.random.key(0), arrive(8.0), quadratic)
    >>> better, plain = (po.smc(jax.random.key(1), program, n=500) for program in (po.twist(arrive(8.0), learned.log_psi), arrive(8.0)))
    >>> bool(better.log_evidence_error < 0.8 * plain.log_evidence_error)
    True
    """
    check_key(key)
    check_counts(n=(n, 2), rounds=(rounds, 1), steps=(steps, 1))
    program = as_program(program)
    for name, function in (("features", features), ("log_psi", log_psi)):
        if not callable(function):
            raise TypeError(f"learn.twist: {name} must be a function, got {function!r}")
    if not scale > 0:
        raise ValueError(f"learn.twist: scale must be positive, got {scale!r}")
    if loss not in LOSSES:
        raise ValueError(f"learn.twist: loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
    if program.length == 0:
        raise ValueError(f"learn.twist: {program} makes no steps, so that nothing is to come")
    read, psi = _partial(features), _partial(log_psi)
    optimizer = check_optimizer("learn.twist", optimizer) or descent(steps)
    parameters = _zeros(program, read) if parameters is None else jax.tree.map(jnp.asarray, parameters)
    losses, log_evidences = [], []
    for round_key in jax.random.split(key, rounds):
        run_key, fit_key = jax.random.split(round_key)
        seen, log_evidence, invalid = _seen(run_key, program, read, psi, parameters, n)
        if invalid:
            raise ValueError(f"learn.twist: {int(invalid)} log potentials of {program}, or of what was learned, were NaN or +inf; each must be finite or -inf")
        if np.isneginf(log_evidence) and not losses:
            raise ValueError(
                f"learn.twist: no particle of {n} came to the end of {program} alive, so that there is nothing to learn from; give more particles, or "
                "learn first with softer potentials"
            )
        if np.isneginf(log_evidence):
            losses.append(jnp.full(steps, jnp.nan))  # a run that died teaches nothing; the next starts from the same parameters
        else:
            divergence = Partial(_loss, psi, seen, jnp.asarray(loss == "regression"), log_evidence, jnp.asarray(scale, float))
            trained = train("learn.twist", fit_key, divergence, parameters, optimizer=optimizer, steps=steps)
            parameters = trained.parameters
            losses.append(trained.losses)
        log_evidences.append(log_evidence)
    return LearnedTwist(Partial(_of_value, psi, read, parameters), parameters, jnp.stack(losses), jnp.stack(log_evidences))


def _of_value(psi: Callable, read: Callable, parameters: Any, value: Any) -> Array:
    return psi(parameters, read(value))


def _of_note(psi: Callable, parameters: Any, features: Any) -> Array:
    log_psi = jnp.asarray(psi(parameters, features))
    if log_psi.ndim:
        raise ValueError(f"learn.twist: log_psi must return one number, it returned shape {log_psi.shape}")
    return log_psi


def _partial(function: Callable) -> Callable:
    """A function as a pytree."""
    return Partial(function) if jax.tree_util.all_leaves([function]) else function


def _loss(psi: Callable, seen: Seen, level: Array, log_evidence: Array, scale: Array, key: Array, parameters: Any) -> Array:
    """By time, how far exp(log_weights) psi is from what reached the end: KL divergence of the normalised measures, or with the level of those as they are."""
    log_psi = jnp.where(seen.open, jax.vmap(jax.vmap(functools.partial(_of_note, psi, parameters)))(seen.features), 0.0)
    log_mass = jax.scipy.special.logsumexp(seen.log_weights + log_psi, axis=1)
    matched = jnp.sum(jnp.where(seen.reached > 0, seen.reached * log_psi, 0.0), axis=1)
    divergence = jnp.mean(jnp.where(level, jnp.expm1(log_mass - log_evidence), log_mass - log_evidence) - matched)
    norm = sum((jnp.sum(x**2) for x in jax.tree.leaves(parameters)), jnp.zeros(()))
    return divergence + 0.5 * norm / (scale**2 * seen.survivors * len(seen.log_weights))


# -- runs that remember -----------------------------------------------------------------------------------------------------


class Note(NamedTuple):
    """Particles with the features of their value."""

    now: Any
    features: Any  # [n, ...]


@struct.dataclass
class Noted(Transformed):
    """A program whose value is the features of its value, which are computed once a step."""

    features: Any

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Note, Float[Array, " n"]]:
        now, log_potential = self.inner.init(key, n)
        return Note(now, self._of(now)), log_potential

    def step(self, key: PRNGKeyArray, particles: Note, *, where: Bool[Array, " n"] | None = None) -> tuple[Note, Float[Array, " n"]]:
        now, log_potential = self.inner.step(key, particles.now, where=where)
        return Note(now, self._of(now)), log_potential

    def value(self, particles: Note) -> Any:
        return particles.features

    def _of(self, now: Any) -> Any:
        return particle_map(self.features, (0,))(self.inner.value(now))


@functools.partial(jax.jit, static_argnames="n")
def _seen(key: PRNGKeyArray, program: Program, read: Callable, psi: Callable, parameters: Any, n: int) -> tuple[Seen, Array, Array]:
    """A run of the program as twisted so far, resampled where its weights vary, its particles, its log evidence, and how many potentials were no numbers."""
    chain = twisted(Noted(program, read), Partial(_of_note, psi, parameters))
    init_key, loop_key = jax.random.split(key)
    start, times = blocks.spawn(init_key, chain, n), jnp.arange(program.length)

    def step(population: Any, time: Array) -> tuple[Any, tuple]:
        resample_key, step_key = jax.random.split(jax.random.fold_in(loop_key, time))
        particles = population.particles
        log_weights = population.log_evidence + population.log_weights - jnp.where(jnp.isneginf(population.log_weights), 0.0, particles.log_psi)
        noted = particles.now.features, log_weights, ~chain.done(particles)
        population, info = blocks.resample_below(0.5, resample_key, chain, population)
        return blocks.advance(step_key, chain, population), (*noted, info.ancestors)

    population, (features, log_weights, is_open, ancestors) = lax.scan(step, start, times)

    def back(reached: Array, ancestors: Array) -> tuple[Array, Array]:
        reached = jnp.zeros_like(reached).at[ancestors].add(reached)
        return reached, reached

    _, reached = lax.scan(back, jnp.exp(normalise(population.log_weights)), ancestors, reverse=True)
    survivors = effective_sample_size(population.log_weights)
    return Seen(features, log_weights, reached, is_open, survivors), blocks.evidence(population), population.invalid


def _zeros(program: Program, read: Callable) -> dict[str, Array]:
    """Parameters of `linear` for which psi = 1.

    Raises:
      ValueError: when the features are no vector.
    """
    with handlers.block():  # shapes are asked for, nothing is drawn
        features = jax.eval_shape(lambda key: Noted(program, read).init(key, 1)[0].features, jax.random.key(0))
    if not isinstance(features, jax.ShapeDtypeStruct) or len(features.shape) != 2:
        raise ValueError(
            f"learn.twist: the linear log_psi needs a vector of features, got {jax.tree.map(lambda x: x.shape[1:], features)}; give log_psi and parameters"
        )
    return {"weight": jnp.zeros(features.shape[1]), "bias": jnp.zeros(())}
