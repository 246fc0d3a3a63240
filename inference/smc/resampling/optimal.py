"""Optimal resampling (Fearnhead and Clifford 2003): many weighted particles become few, the heavy ones kept as they are."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt
from numpyro.distributions import constraints

from posterity.inference.smc.resampling.quotas import fixed, real, relative, running_sum, word
from posterity.inference.smc.resampling.schemes import random_bits, repeated
from posterity.ppl.effects import Atomic


class Optimal(dist.Distribution, Atomic):
    """Which n of m particles stay: i with probability min(1, c w_i), c such that these sum to n.

    Those of weight 1/c or more all stay, the others are chosen systematically. When each that stays weighs w_i / min(1, c w_i), so
    the heavy ones what they did and the others 1/c, all keep their weight on average, and no other choice of n changes weights
    less (in mean square). Where n or fewer have any weight they all stay.

    Args:
      log_weights: [m] nats, of any scale.
      slots: n.
    """

    arg_constraints = {"log_weights": constraints.real_vector}  # noqa: RUF012 - NumPyro's own declaration
    support = constraints.nonnegative_integer  # pyright: ignore[reportAssignmentType] - NumPyro's own way
    pytree_data_fields = ("log_weights",)
    pytree_aux_fields = ("slots",)

    def __init__(self, log_weights: Float[Array, " m"], slots: int, *, validate_args: bool | None = None):
        self.log_weights, self.slots = log_weights, slots
        super().__init__(batch_shape=(), event_shape=(slots,), validate_args=False if validate_args is None else validate_args)

    @property
    def chances(self) -> Float[Array, " m"]:
        """min(1, c w_i)."""
        weights = relative(self.log_weights)
        falling = jnp.append(jnp.sort(weights, descending=True), 0.0)
        rest = jnp.cumsum(falling[::-1])[::-1]  # of all but the k heaviest
        places = self.slots - jnp.arange(falling.size)
        kept = jnp.argmax((falling * places < rest) | (rest == 0))  # the first k of which the next weighs less than an equal share of what is left
        chances = jnp.where(rest[kept] > 0, jnp.minimum(weights * (places[kept] / rest[kept]), 1.0), 1.0)
        return jnp.where(self.log_weights > -jnp.inf, chances, 0.0)

    @property
    def log_chances(self) -> Float[Array, " m"]:
        """Nats."""
        return jnp.log(self.chances)

    @property
    def _parts(self) -> tuple[Bool[Array, " m"], UInt[Array, " m"]]:
        """Who stays for certain, and the chances of the others in fixed point."""
        chances = self.chances
        return chances >= 1, fixed(jnp.where(chances < 1, chances, 0.0))

    def _at(self, u: UInt[Array, ""]) -> Int[Array, " n"]:
        """In rising order; m where there is none left for a slot."""
        certain, part = self._parts
        return repeated((certain | (u + running_sum(part) < part)).astype(jnp.int32))[: self.slots]

    def sample(self, key: PRNGKeyArray, sample_shape: tuple = ()) -> Int[Array, "*shape n"]:
        function = lambda key: self._at(random_bits(key, self.log_weights, ()))  # noqa: E731
        for _ in sample_shape:
            function = jax.vmap(function)
        return function(jax.random.split(key, sample_shape) if sample_shape else key)

    def atoms(self) -> tuple[Int[Array, "outcomes n"], Float[Array, " outcomes"]]:
        edges = jnp.sort(jnp.append(-running_sum(self._parts[1]), jnp.zeros((), word(self.log_weights))))  # where some sum begins to wrap
        return jax.vmap(self._at)(edges), jnp.log(jnp.diff(real(edges), append=1.0))
