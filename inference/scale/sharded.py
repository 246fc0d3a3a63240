"""Sequential Monte Carlo over many devices: each has an equal share of the particles."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int, PRNGKeyArray

from posterity.inference.blocks import advance, resample_below, spawn
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import Info, drive
from posterity.inference.population import Population
from posterity.inference.posterior import Posterior
from posterity.inference.scale.devices import AnyMesh, along, auto, each, slots
from posterity.inference.scale.in_blocks import InBlocks, in_blocks
from posterity.inference.smc.resampling import Systematic
from posterity.inference.smc.resampling.quotas import Quotas, quotas, running_sum
from posterity.inference.smc.smc import share
from posterity.ppl.program import Program
from posterity.ppl.transform import bound


class SystematicOverDevices(Systematic):
    """`Systematic` of weights that are sharded over the devices along a mesh axis: the same law and the same arithmetic.

    What a device must know of the others are single numbers (their totals), and the particles' ends where its slots begin and end.
    """

    pytree_aux_fields = ("mesh", "axis")

    def __init__(self, log_weights: Float[Array, " n"], *, mesh: AnyMesh, axis: str, validate_args: bool | None = None):
        self.mesh, self.axis = mesh, axis
        super().__init__(log_weights, validate_args=validate_args)

    @property
    def quotas(self) -> Quotas:
        return each(self.mesh, self.axis, functools.partial(quotas, axis=self.axis), self.log_weights)

    def _at(self, u: Array) -> Int[Array, " n"]:
        return each(self.mesh, self.axis, functools.partial(_ancestors, self.axis), self.log_weights, shared=(u,))


def _ancestors(axis: str, u: Array, log_weights: Float[Array, " m"]) -> Int[Array, " m"]:
    """A device's part of what `Systematic._at(u)` gives for all weights."""
    whole, part = quotas(log_weights, axis)
    totals = lax.all_gather(jnp.sum(part, dtype=part.dtype), axis)
    before = jnp.sum(jnp.where(jnp.arange(totals.size) < lax.axis_index(axis), totals, 0), dtype=part.dtype)
    return slots(whole + (u + before + running_sum(part) < part), axis)


def step(
    key: PRNGKeyArray, program: InBlocks, population: Population, *, threshold: Float[Array, ""] | float = 0.5, mesh: AnyMesh, axis: str
) -> tuple[Population, Info]:
    """A generation as `smc.step` makes it; ancestors are found, and copied, by the devices together."""
    resample_key, advance_key = jax.random.split(key)
    scheme = functools.partial(SystematicOverDevices, mesh=mesh, axis=axis)
    population, info = resample_below(threshold, resample_key, program, population, scheme, copies=select)
    return advance(advance_key, program, population), info


def select(program: InBlocks, population: Population, ancestors: Int[Array, " n"], log_evidence: Float[Array, ""]) -> Population:
    """As `blocks.select`; the eves travel as the particles do."""
    return Population(
        particles=program.select(population.particles, ancestors),
        log_weights=jnp.full_like(population.log_weights, -jnp.log(population.size)),
        log_evidence=log_evidence,
        eves=program.select(population.eves, ancestors),
        invalid=population.invalid,
    )


def sharded_smc(
    key: PRNGKeyArray,
    program: Program,
    *,
    n: int,
    mesh: AnyMesh,
    axis: str = "particles",
    threshold: float = 0.5,
    history: bool | str = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Posterior:
    """`smc` with systematic resampling, its particles sharded over the devices along one axis of a mesh.

    The law is that of `smc`: properly weighted for every n. Each device begins, steps and weighs its own particles. Resampling is that of
    the whole population: each device works out its particles' copies from a few totals of the others, in fixed point, and
    the copies go around the ring of devices, as many hops as they need (`communication` says what that came to).

    Particles are drawn block by block, by default one block a device. With a program that is `in_blocks` already, the blocks are its
    own: then the same key makes the same draws and ancestors on any number of devices, and with `smc` of that program on one. (What XLA
    rounds differently for blocks of another layout, and sums over all particles such as the evidence, may differ in the last bits.) Where the mesh spans
    several processes, each of them makes the same call, and gets the whole posterior.

    Args:
      key: a `jax.random.key`.
      program: what to infer; its particles must be rows of arrays. Its data and weights are on every device, or sharded over other axes.
      n: the number of particles of all devices together: a multiple of the devices, and of the program's blocks on each.
      mesh: the devices, as `jax.make_mesh((8,), ("particles",))` makes.
      axis: along which axis of the mesh the particles are split.
      threshold, history, progress, checkpoint: as in `smc`.

    Raises:
      TypeError: when `program` is no program, or its particles are no rows of arrays, or `mesh` is no mesh.
      ValueError: as `smc`; when the mesh has no such axis, or n particles cannot be split evenly.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> mesh = jax.make_mesh((jax.device_count(),), ("particles",))
    >>> posterior = po.sharded_smc(jax.random.key(0), walk(jnp.ones(3)), n=1_024, mesh=mesh)
    >>> bool(abs(posterior.expect() - 1.0) < 0.1)
    True
    """
    program = split("sharded_smc", program, n, mesh, axis)
    step = jax.tree_util.Partial(_step_with(program.mesh, axis), threshold=share(threshold))
    posterior = drive(key, program, n, spawn, step, history=history, progress=progress, checkpoint=checkpoint)
    return everywhere(posterior, program.mesh)


def split(name: str, program: Program, n: int, mesh: AnyMesh, axis: str) -> InBlocks:
    """The program with its blocks spread over the devices.

    Raises:
      TypeError, ValueError: as `sharded_smc`.
    """
    mesh, inner = along(name, mesh, axis), bound(name, program)
    devices = mesh.shape[axis]
    if isinstance(n, int | np.integer) and n > 0:  # any other is refused where every algorithm's n is
        size = inner.size if isinstance(inner, InBlocks) else n // devices
        if n % devices or n < devices:
            raise ValueError(f"{name}: n must be a multiple of the {devices} devices along mesh axis {axis!r}, got {n}")
        if n % (devices * size):
            raise ValueError(f"{name}: n must be a multiple of the {devices} devices along mesh axis {axis!r} times the blocks of {size}, got {n}")
    else:
        size = 1
    blocks = inner if isinstance(inner, InBlocks) else in_blocks(inner, size=size)
    return replace(jax.tree.map(_auto, blocks), mesh=mesh, axis=axis)


def _auto(x: Any) -> Any:
    """Data that the user sharded, on a mesh whose axes are of the kind that `along` gives."""
    if isinstance(x, Tracer) or not isinstance(getattr(x, "sharding", None), NamedSharding):
        return x
    return jax.device_put(x, NamedSharding(auto(x.sharding.mesh), x.sharding.spec))


def everywhere(posterior: Posterior, mesh: AnyMesh | None) -> Posterior:
    """The posterior with all of its arrays on every process."""
    if mesh is None or jax.process_count() == 1:
        return posterior
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(posterior)


def communication(posterior: Posterior, program: Program, *, mesh: AnyMesh, axis: str = "particles") -> np.ndarray:
    """Bytes that all devices together sent to each other for each step's resampling in a run by `sharded_smc`, [steps] int64.

    A hop sends every device's particles, their eves and ends to its neighbour. (Beside that, each device tells some twenty numbers.)

    Raises:
      ValueError: when the run kept no ancestors (history=False); as `sharded_smc`.
    """
    if posterior.ancestors is None:
        raise ValueError("communication: this run kept no ancestors; call the inference with history=True")
    n = len(posterior)
    program = split("communication", program, n, mesh, axis)
    particles = jax.eval_shape(lambda key: program.inner.init(key, n)[0], jax.random.key(0))
    devices = along("communication", mesh, axis).shape[axis]
    row = sum(x.dtype.itemsize * x.size // n for x in jax.tree.leaves(particles) if x.ndim) + 2 * np.dtype(np.int32).itemsize
    ancestors = np.asarray(posterior.ancestors[: int(posterior.steps)])
    far = np.arange(n) // (n // devices) - ancestors // (n // devices)
    hops = np.maximum(far.max(axis=1), 0) + np.maximum(-far.min(axis=1), 0)
    return hops.astype(np.int64) * row * n


@functools.cache
def _step_with(mesh: AnyMesh, axis: str) -> Any:
    """One object for each mesh: jit knows compiled code again by it."""
    return functools.partial(step, mesh=mesh, axis=axis)
