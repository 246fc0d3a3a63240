"""Static programs at powers of their likelihood: the targets between prior and posterior."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from posterity.inference.mcmc.parameters import Choices, begin
from posterity.ppl.program import FunctionProgram
from posterity.ppl.transform import Transformed


class Tempered(NamedTuple):
    """Particles of a static program, on their way from the prior to the posterior."""

    now: Any  # the program's particles
    log_likelihood: Float[Array, " n"]  # of all that the program observes, nats
    exponent: Float[Array, " n"]  # the power of the likelihood that they are weighed for; the same for all


@struct.dataclass
class Path(Transformed):
    """The targets prior * likelihood^exponent of a static program: `mcmc.parameters.Parametric`. How far a stage goes is the algorithm's to say (`raised`)."""

    inner: FunctionProgram
    stages: int = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<{self.inner} tempered>"

    @property
    def length(self) -> int:
        return self.stages - 1

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Tempered, Array]:
        steps = self.inner.length
        if steps:
            raise ValueError(f"tempering: program must be static, but {self.inner} has a scan of {steps} steps; see po.ibis, po.resample_move and po.temper")
        now, log_likelihood = self.inner.init(key, n)
        return Tempered(now, log_likelihood, jnp.zeros_like(log_likelihood)), jnp.zeros_like(log_likelihood)

    def raised(self, particles: Tempered, exponent: Array) -> tuple[Tempered, Array]:
        """The particles under another exponent, and the log potentials that weigh them for it, nats."""
        return particles._replace(exponent=jnp.full_like(particles.exponent, exponent)), (exponent - particles.exponent) * particles.log_likelihood

    def step(self, key: PRNGKeyArray, particles: Tempered, *, where: Array | None = None) -> tuple[Tempered, Array]:
        """All the way to exponent 1."""
        return self.raised(particles, jnp.ones(()))

    def done(self, particles: Tempered) -> Array:
        return particles.exponent >= 1.0

    def at(self, key: Array, choices: Choices | None, particles: Tempered, time: Any) -> Tempered:
        n = particles.exponent.shape[0]
        now, log_likelihood = self.inner.init(key, n) if choices is None else begin(self.inner, choices)
        return Tempered(now, log_likelihood, particles.exponent)

    def log_likelihood(self, particles: Tempered) -> Array:
        return jnp.where(particles.exponent > 0, particles.exponent * particles.log_likelihood, 0.0)
