"""A budget of costs as part of the state: texts that would overdraw it are never written."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from posterity.models.potentials.potential import Potential

ROUNDING = 1e-5  # by which sums of costs may be off, relative to the budget


class Spent(NamedTuple):
    """What the costs are about, and how much has been spent."""

    state: Any
    spent: Float[Array, ""]


@struct.dataclass
class Safe(Potential):
    """The texts whose costs never come to more than a budget: 0 while they do not, -inf from where they do."""

    costs: Potential
    budget: Float[Array, ""] | float

    def start(self) -> Spent:
        return Spent(self.costs.start(), jnp.zeros(()))

    def update(self, state: Spent, token: Array) -> tuple[Spent, Array]:
        after, nats = self.costs.update(state.state, token)
        return Spent(after, state.spent - nats), self._allowed(state.spent - nats)

    def scores(self, state: Spent) -> Array | None:
        nats = self.costs.scores(state.state)
        return None if nats is None else self._allowed(state.spent - nats)

    def complete(self, state: Spent) -> Array:
        return self._allowed(state.spent - self.costs.complete(state.state))

    def _allowed(self, spent: Array) -> Array:
        return jnp.where(spent <= self.budget + ROUNDING * jnp.maximum(1.0, jnp.abs(self.budget)), 0.0, -jnp.inf)


def safe(costs: Potential, budget: float) -> Safe:
    """The texts whose costs never come to more than `budget` (the safety state of InferenceGuard, Ji et al. 2025, as a constraint).

    What it guarantees: no text of positive weight has spent more than the budget, at its end or at any time before, whatever the key, the number of
    particles, the temperature, or the room; so a posterior gives such texts probability zero, and not a small one. And texts
    that keep to the budget have the model's own law given that they do, in the sense of every properly weighted inference. It
    says nothing of what `costs` fails to see. A text may get stuck where every token is too dear: it then weighs nothing.

    Args:
      costs: a potential; minus what its `update` says, and for a text that is cut off its `complete`, is what a token costs.
      budget: what may be spent.

    Raises:
      TypeError: for costs that are no potential.
      ValueError: for a budget that is negative or not finite.

    >>> import flax.struct, jax, jax.numpy as jnp, posterity as po
    >>> @flax.struct.dataclass
    ... class Toll(po.potentials.Potential):                            # a token costs what a table says
    ...     table: jax.Array
    ...     def start(self):
    ...         return ()
    ...     def update(self, state, token):
    ...         return state, -self.table[token]
    ...     def scores(self, state):
    ...         return -self.table
    >>> lm = po.load("abacus")
    >>> toll = Toll(jnp.zeros(lm.tokenizer.vocab_size).at[lm.tokenizer.encode("9")[0]].set(1.0))
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "9*9=", po.potentials.safe(toll, 1.0), max_tokens=8, temperature=3.0), n=16)
    >>> all(text.count("9") <= 1 for text in posterior.answers())
    True
    """
    if not isinstance(costs, Potential):
        raise TypeError(f"safe: costs must be a Potential, got {type(costs).__name__}")
    if not isinstance(budget, Tracer) and not 0 <= budget < float("inf"):
        raise ValueError(f"safe: the budget must be finite and not negative, got {budget}")
    return Safe(costs, budget)
