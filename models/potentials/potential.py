"""What weighs a text token by token: the protocol of potentials, their products and powers.

A potential is a pytree whose tables are leaves, and speaks of one particle, so that it can stand inside a program's step.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Int


class Potential:
    """A weight of texts, multiplied in token by token. Subclasses are pytrees (`flax.struct.dataclass`) with at least `start` and `update`.

    The weight of a text is exp of the sum of what `update` gives for its tokens, the token that ends it included; a text that is cut
    off before such a token also counts exp of `complete`. In a program: `programs.constrained`. `check.potential` looks for contradictions.

    >>> import flax.struct, jax, jax.numpy as jnp, posterity as po
    >>> @flax.struct.dataclass
    ... class Loves(po.potentials.Potential):                            # one token is worth more
    ...     token: jax.Array
    ...     nats: float
    ...     def start(self):
    ...         return jnp.zeros((), jnp.int32)                          # how often it came
    ...     def update(self, count, token):
    ...         return count + (token == self.token), jnp.where(token == self.token, self.nats, 0.0)
    >>> lm = po.load("abacus")
    >>> loves = Loves(jnp.array(lm.tokenizer.encode("7")[0]), 2.0)
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "1+2=", loves, max_tokens=4), n=8)
    >>> len(posterior)
    8
    """

    def start(self) -> Any:
        """The state before the first generated token: a pytree of arrays."""
        raise NotImplementedError(f"{type(self).__name__} must define start()")

    def update(self, state: Any, token: Int[Array, ""]) -> tuple[Any, Float[Array, ""]]:
        """The state after one more token, and the token's log potential, nats; -inf forbids."""
        raise NotImplementedError(f"{type(self).__name__} must define update(state, token)")

    def scores(self, state: Any) -> Float[Array, " vocab"] | None:
        """The log potentials of all next tokens, those of `update`; None where they are too dear. With them tokens are drawn by law times potential."""
        return None

    def complete(self, state: Any) -> Float[Array, ""] | float:
        """The log potential of a text that is cut off here, for want of room."""
        return 0.0

    def to_go(self, state: Any) -> Float[Array, ""] | None:
        """A guess of what the later potentials will come to, nats, never -inf where a text can still be finished; None where there is none.

        It changes how texts are found, and not what is asked: it is multiplied in ahead of time and taken back.
        """
        return None

    def gains(self, state: Any, end_ids: tuple[int, ...]) -> Float[Array, " vocab"] | None:
        """`scores` and the change of `to_go`, for all next tokens: what they are drawn by, beside the model's law. After an end token nothing is to go."""
        scores, now = self.scores(state), self.to_go(state)
        if scores is None or now is None:
            return scores
        after = jnp.asarray(jax.vmap(lambda token: self.to_go(self.update(state, token)[0]))(jnp.arange(scores.shape[-1])))
        return plus(scores, after.at[jnp.array(end_ids, int)].set(0.0)) - known(now)

    def __mul__(self, other: "Potential") -> "Potential":
        """The potential whose weight is the product: scores add."""
        return Product(self, other) if isinstance(other, Potential) else NotImplemented

    def __pow__(self, exponent: float | Array) -> "Potential":
        """The potential whose weight is raised to a positive power.

        Raises:
          ValueError: for an exponent that is not positive and finite: zero to such a power is no weight.
        """
        if not isinstance(exponent, Tracer) and not (exponent > 0 and math.isfinite(exponent)):
            raise ValueError(f"Potential: the exponent must be positive and finite, got {exponent}")
        return Power(self, exponent)


@struct.dataclass
class Product(Potential):
    """Two potentials at once. Tokens are drawn by those that have scores, and weighed by the others."""

    left: Potential
    right: Potential

    def start(self) -> Any:
        return self.left.start(), self.right.start()

    def update(self, state: Any, token: Array) -> tuple[Any, Array]:
        (left, gain), (right, more) = self.left.update(state[0], token), self.right.update(state[1], token)
        return (left, right), plus(gain, more)

    def scores(self, state: Any) -> Array | None:
        left, right = self.left.scores(state[0]), self.right.scores(state[1])
        return None if left is None or right is None else plus(left, right)

    def complete(self, state: Any) -> Array | float:
        return plus(self.left.complete(state[0]), self.right.complete(state[1]))

    def to_go(self, state: Any) -> Array | None:
        return _either(self.left.to_go(state[0]), self.right.to_go(state[1]))

    def gains(self, state: Any, end_ids: tuple[int, ...]) -> Array | None:
        return _either(self.left.gains(state[0], end_ids), self.right.gains(state[1], end_ids))


@struct.dataclass
class Power(Potential):
    """A potential whose nats are multiplied by a positive number."""

    base: Potential
    exponent: float | Array

    def start(self) -> Any:
        return self.base.start()

    def update(self, state: Any, token: Array) -> tuple[Any, Array]:
        state, gain = self.base.update(state, token)
        return state, self.exponent * gain

    def scores(self, state: Any) -> Array | None:
        return _times(self.exponent, self.base.scores(state))

    def complete(self, state: Any) -> Array | float:
        return self.exponent * self.base.complete(state)

    def to_go(self, state: Any) -> Array | None:
        return _times(self.exponent, self.base.to_go(state))

    def gains(self, state: Any, end_ids: tuple[int, ...]) -> Array | None:
        return _times(self.exponent, self.base.gains(state, end_ids))


def plus(a: Any, b: Any) -> Any:
    """a + b where -inf forbids whatever the other says."""
    return jnp.where(jnp.isneginf(a) | jnp.isneginf(b), -jnp.inf, a + b)


def known(log_psi: Any) -> Any:
    """A potential-to-go as it is taken back: one that was forbidden has nothing to give."""
    return jnp.where(jnp.isneginf(log_psi), 0.0, log_psi)


def _either(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    return plus(a, b)


def _times(exponent: Any, x: Array | None) -> Array | None:
    return None if x is None else exponent * x
