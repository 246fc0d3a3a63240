"""Nested SMC: a program whose particles are parameters with a population inside, weighed by what it estimates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from numpyro import handlers

from posterity.inference import blocks
from posterity.inference.population import Population
from posterity.inference.smc import smc
from posterity.inference.smc.resampling import Ancestors, scheme
from posterity.ppl.effects import isolated, particle_map, sample
from posterity.ppl.program import Program, is_program, program
from posterity.ppl.transform import times


class Draw(NamedTuple):
    """A joint draw of parameters and of what happened under them."""

    parameters: Any
    value: Any


@struct.dataclass
class NestedParticles:
    """Parameters, each with its own inner population."""

    parameters: Any  # [n, ...]
    populations: Population  # of the model at each particle's parameters; leaves [n, inner, ...]
    log_weights: Float[Array, " n"]  # log of the parameters' own potential times the inner evidence so far, nats; NaN after an invalid potential
    drawn: Int[Array, " n"]  # one inner particle, drawn by its weight
    time: Int[Array, " n"]  # steps asked for, also of particles that were done


@struct.dataclass
class Nested:
    """A program over parameters and inner populations; see `nested`."""

    parameters: Program
    model: Callable[[Any], Program]  # a `jax.tree_util.Partial`: what it holds are leaves
    threshold: Float[Array, ""] | float
    n: int = struct.field(pytree_node=False)
    resampling: type[Ancestors] = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<{self.parameters} with {self.n} inner particles each>"

    @property
    def length(self) -> int:
        found = [0]

        def look(key):
            drawn = self.parameters.value(self.parameters.init(key, 1)[0])
            found[0] = self._model(jax.tree.map(lambda x: x[0], drawn)).length

        with handlers.block(), isolated():
            jax.eval_shape(look, jax.random.key(0))
        return found[0]

    def init(self, key: PRNGKeyArray, n: int) -> tuple[NestedParticles, Float[Array, " n"]]:
        parameters_key, spawn_key = jax.random.split(key)
        drawn, log_potential = self.parameters.init(parameters_key, n)
        particles = self.at(spawn_key, self.parameters.value(drawn), log_potential)
        return particles, particles.log_weights

    def at(self, key: PRNGKeyArray, parameters: Any, log_potential: Float[Array, " n"]) -> NestedParticles:
        """Fresh inner populations at given parameters [n, ...], whose own log potentials are `log_potential` [n]."""

        def one(key, parameters):
            spawn_key, collapse_key = jax.random.split(key)
            population = blocks.spawn(spawn_key, self._model(parameters), self.n)
            return population, blocks.evidence(population), blocks.collapse(collapse_key, population)

        n = log_potential.shape[0]
        populations, log_evidence, drawn = particle_map(one, (0, 0), (0, 0, 0))(jax.random.split(key, n), parameters)
        log_weights = times(log_potential, _invalid_as_nan(log_evidence, populations))
        return NestedParticles(parameters, populations, log_weights, drawn, jnp.zeros(n, jnp.int32))

    def step(self, key: PRNGKeyArray, particles: NestedParticles, *, where: Bool[Array, " n"] | None = None) -> tuple[NestedParticles, Float[Array, " n"]]:
        asked = jnp.ones_like(particles.time, bool) if where is None else where
        active = asked & ~self.done(particles)

        def one(key, parameters, population):
            step_key, collapse_key = jax.random.split(key)
            before = blocks.evidence(population)
            population, _ = smc.step(step_key, self._model(parameters), population, threshold=self.threshold, resampling=self.resampling)
            growth = jnp.where(jnp.isneginf(before), -jnp.inf, blocks.evidence(population) - before)
            return population, growth, blocks.collapse(collapse_key, population)

        keys = jax.random.split(key, active.shape[0])
        populations, growth, drawn = particle_map(one, (0, 0, 0), (0, 0, 0))(keys, particles.parameters, particles.populations)
        growth = _invalid_as_nan(growth, populations)
        stepped = replace(particles, populations=populations, log_weights=times(particles.log_weights, growth), drawn=drawn)
        return replace(choose(active, stepped, particles), time=particles.time + asked), jnp.where(active, growth, 0.0)

    def select(self, particles: NestedParticles, ancestors: Int[Array, " m"]) -> NestedParticles:
        return jax.tree.map(lambda x: x[ancestors], particles)

    def done(self, particles: NestedParticles) -> Bool[Array, " n"]:
        ended = particle_map(lambda parameters, population: jnp.all(self._model(parameters).done(population.particles)), (0, 0))
        return ended(particles.parameters, particles.populations)

    def value(self, particles: NestedParticles) -> Draw:
        def one(parameters, population, drawn):
            model = self._model(parameters)
            return jax.tree.map(lambda x: x[0], model.value(model.select(population.particles, drawn[None])))

        return Draw(particles.parameters, particle_map(one, (0, 0, 0))(particles.parameters, particles.populations, particles.drawn))

    def _model(self, parameters: Any) -> Program:
        with isolated():
            model = self.model(parameters)
        if not is_program(model):
            raise TypeError(f"nested: model must return a Program for given parameters, it returned a {type(model).__name__}")
        return model


def nested(
    parameters: Program | dist.Distribution,
    model: Callable[[Any], Program],
    *,
    n: int,
    resampling: str | type[Ancestors] = "systematic",
    threshold: Float[Array, ""] | float = 0.5,
) -> Nested:
    """The program of parameters and of a model under them, where the model is run by an inner SMC of `n` particles.

    A particle is a draw of the parameters with an inner population; a step is one of the inner SMC, its potential the
    growth of the inner evidence estimate. Its value is a `Draw`: the parameters and the value of one inner particle drawn
    by its weight. For every `n` it means exactly what the model means with its parameters drawn first: the law
    p(d parameters) ⟦model(parameters)⟧(dx), since the inner estimate is unbiased (Andrieu, Doucet and Holenstein 2010).
    `embed` does the same with a whole inference as one choice; here the inner steps are the steps.

    Args:
      parameters: a NumPyro distribution, or a program without steps.
      model: from one value of the parameters to a program; its length may not depend on them. Data held in a
        `jax.tree_util.Partial` are arguments of the compiled code, those closed over are constants in it.
      n: the number of inner particles.
      resampling: as in `smc`.
      threshold: as in `smc`.

    Raises:
      TypeError: when `parameters` is neither a distribution nor a program, or `model` returns no program.
      ValueError: when `parameters` has steps, n < 1, or on an unknown scheme or threshold.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def flips(bias):
    ...     def step(heads, _):
    ...         head = po.sample("head", dist.Bernoulli(bias))
    ...         po.factor("two in a row", jax.numpy.where(head, 0.0, -jax.numpy.inf))
    ...         return heads + head
    ...     return po.scan(step, 0, length=2)
    >>> program = po.nested(dist.Uniform(0.0, 1.0), flips, n=8)
    >>> posterior = po.smc(jax.random.key(0), program, n=1_000)  # of a bias after two heads: Beta(3, 1)
    >>> bool(abs(posterior.expect(lambda draw: draw.parameters) - 0.75) < 0.05)
    True
    """
    if isinstance(parameters, dist.Distribution):
        parameters = prior.bind(parameters)
    if not is_program(parameters):
        raise TypeError(f"parameters must be a NumPyro distribution or a Program, got {type(parameters).__name__}")
    if parameters.length:
        raise ValueError(f"parameters must be a program without steps, {parameters} has {parameters.length}")
    if not callable(model):
        raise TypeError(f"model must be a function from parameters to a Program, got {type(model).__name__}")
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be at least 1 inner particle, got {n!r}")
    partial = model if isinstance(model, jax.tree_util.Partial) else jax.tree_util.Partial(model)
    return Nested(parameters, partial, smc.share(threshold), n, scheme(resampling))


@program
def prior(distribution):
    """One draw."""
    return sample("parameters", distribution)


def choose(condition: Array, new: NestedParticles, old: NestedParticles) -> NestedParticles:
    """For every particle the new one where `condition` [n] holds, else the old."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b), new, old)


def _invalid_as_nan(log_weights: Array, populations: Population) -> Array:
    """Potentials that were invalid inside are so outside."""
    return jnp.where(populations.invalid > 0, jnp.nan, log_weights)
