"""Island particle models (Vergé, Dubarry, Del Moral and Moulines 2015): populations that resample within themselves, and now and then as wholes."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.inference.blocks import evidence, spawn
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import check_counts
from posterity.inference.population import Population, normalise
from posterity.inference.posterior import Posterior
from posterity.inference.scale.devices import AnyMesh
from posterity.inference.scale.sharded import sharded_smc
from posterity.inference.smc import smc
from posterity.ppl.effects import particle_map
from posterity.ppl.program import Program, choices_of
from posterity.ppl.transform import Transformed, active, bound, whole


class Island(NamedTuple):
    """What an island holds: `values` and the named `choices` of its particles [size, ...], of which particle i has `log_weights[i]` of its mass."""

    values: Any
    log_weights: Float[Array, " size"]  # normalised, nats
    eves: Int[Array, " size"]  # the index at step 0 of each particle's ancestor, within the island that it was on
    choices: dict[str, Any]


@struct.dataclass
class Islands(Transformed):
    """A program whose particles are populations (leaves [n, size, ...]), weighed by their own evidence; see `islands`."""

    threshold: Float[Array, ""] | float
    size: int = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<islands of {self.size} particles of {self.inner}>"

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Population, Float[Array, " n"]]:
        populations = particle_map(lambda key: spawn(key, self.inner, self.size), (0,))(jax.random.split(key, n))
        return populations, self._mass(populations)

    def step(self, key: PRNGKeyArray, particles: Population, *, where: Bool[Array, " n"] | None = None) -> tuple[Population, Float[Array, " n"]]:
        """Each island's own generation of `smc`; its potential is the growth of its evidence."""

        def one(key, population, active):
            after, _ = smc.step(key, self.inner, population, threshold=self.threshold)
            return jax.tree.map(lambda new, old: jnp.where(active, new, old), after, population)

        moved = active(self, particles, where)
        after = particle_map(one, (0, 0, 0))(jax.random.split(key, moved.shape[0]), particles, moved)
        before, mass = self._mass(particles), self._mass(after)
        return after, jnp.where(moved, jnp.where(jnp.isneginf(before), -jnp.inf, mass - before), 0.0)

    def select(self, particles: Population, ancestors: Int[Array, " m"]) -> Population:
        return jax.tree.map(lambda x: x[ancestors], particles)

    def done(self, particles: Population) -> Bool[Array, " n"]:
        return particle_map(lambda population: jnp.all(self.inner.done(population.particles)), (0,))(particles)

    def value(self, particles: Population) -> Island:
        def one(population):
            values, choices = self.inner.value(population.particles), choices_of(self.inner, population.particles)
            return Island(values, normalise(population.log_weights), population.eves, choices)

        return particle_map(one, (0,))(particles)

    def choices(self, particles: Population) -> dict[str, Any]:
        return {}

    def _mass(self, populations: Population) -> Float[Array, " n"]:
        """Each island's evidence so far; NaN where a potential was invalid."""
        return jnp.where(populations.invalid > 0, jnp.nan, jax.vmap(evidence)(populations))


def islands(program: Program, *, size: int, threshold: float = 0.5) -> Islands:
    """The program of whole populations: a particle of it is an island of `size` particles of `program` that resamples within itself.

    Its potentials are the growth of the island's evidence estimate, which is unbiased: by every function of a particle drawn from an
    island by its weight, it means what `program` means. An inference over it resamples islands; `island_smc` is that.

    Args:
      program: what each particle of an island runs.
      size: the number of particles of an island.
      threshold: an island resamples within itself when its effective sample size is below `threshold * size`.

    Raises:
      TypeError: when `program` is no program.
      ValueError: on a size below 1, or a threshold outside [0, 1].

    Source: Vergé, Dubarry, Del Moral, Moulines (2015), "On parallel implementation of sequential Monte Carlo methods: the island particle model".

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin():
    ...     return po.scan(lambda heads, _: heads + po.sample("head", dist.Bernoulli(0.5)), 0, length=2)
    >>> particles, log_mass = po.islands(coin(), size=3).init(jax.random.key(0), 5)
    >>> particles.log_weights.shape, log_mass.shape
    ((5, 3), (5,))
    """
    return Islands(bound("islands", program), smc.share(threshold), whole("islands", "size", size))


def island_smc(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    islands: int,
    threshold: float = 0.5,
    exchange: float = 0.5,
    mesh: AnyMesh | None = None,
    axis: str = "particles",
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """`smc` on islands: each resamples within itself, with no word to the others; islands are exchanged when their masses have drifted apart.

    Properly weighted, like `smc`, for every n, number of islands and thresholds. What is sent is little and seldom: an exchange copies
    whole islands, by systematic resampling on their masses, when the effective number of islands is below `exchange * islands`.
    In return fewer islands than particles make an exchange coarser than resampling all particles together.

    Args:
      key: a `jax.random.key`.
      program: what to infer.
      n: the number of particles of all islands together, a multiple of `islands`.
      islands: how many there are.
      threshold: an island resamples within itself when its effective sample size is below `threshold * n / islands`.
      exchange: islands are exchanged when their effective number is below `exchange * islands`; 0 never.
      mesh, axis: spread the islands over the devices along this axis, as in `sharded_smc`; without a mesh all are on one.
      progress, checkpoint: as in `smc`.

    Returns:
      A posterior of all n particles. Its `ess_history` is the effective number of islands, `resampled` says before which steps
      they were exchanged; it keeps no ancestors.

    Raises:
      TypeError, ValueError: as `smc` and, with a mesh, `sharded_smc`; when n is no multiple of `islands`.

    Source: Vergé, Dubarry, Del Moral, Moulines (2015); Whiteley, Lee, Heine (2016), "On the role of interaction in sequential Monte Carlo algorithms".

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> posterior = po.island_smc(jax.random.key(0), walk(jnp.ones(3)), n=1_000, islands=10)
    >>> bool(abs(posterior.expect() - 1.0) < 0.1)
    True
    """
    check_counts(islands=(islands, 1), n=(n, 1))
    if n % islands:
        raise ValueError(f"n must be a multiple of the number of islands, {islands}, got {n}")
    archipelago = Islands(bound("island_smc", program), smc.share(threshold), n // islands)
    infer = smc.smc if mesh is None else functools.partial(sharded_smc, mesh=mesh, axis=axis)
    return together(infer(key, archipelago, n=islands, threshold=exchange, history=False, progress=progress, checkpoint=checkpoint))


def together(found: Posterior) -> Posterior:
    """A posterior of islands as one of their particles."""
    island: Island = found.values
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    return replace(
        found,
        values=jax.tree.map(flat, island.values),
        log_weights=flat(found.log_weights[:, None] + island.log_weights),
        eves=flat(found.eves[:, None] * island.eves.shape[1] + island.eves),
        choices=jax.tree.map(flat, island.choices),
    )
