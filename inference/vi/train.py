"""Parameters fitted by an optimiser of optax to a loss: one compiled loop."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array, lax
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray


class Trained(NamedTuple):
    """Parameters, and how the loss went."""

    parameters: Any
    losses: Float[Array, " steps"]


def train(
    caller: str, key: PRNGKeyArray, loss: Callable[[Array, Any], Float[Array, ""]], parameters: Any, *, optimizer: optax.GradientTransformation, steps: int
) -> Trained:
    """The parameters after `steps` steps of the optimiser on `loss(key, parameters)`, a `jax.tree_util.Partial` whose arguments are data.

    Raises:
      ValueError: when the loss became NaN or infinite.
    """
    trained = _train(key, loss, parameters, optimizer, steps)
    if not isinstance(trained.losses, Tracer) and not (finite := np.isfinite(np.asarray(trained.losses))).all():
        step = int(np.argmin(finite))
        raise ValueError(f"{caller}: the loss was {float(trained.losses[step])} at step {step + 1} of {steps}; a smaller step size (optimizer) may help")
    return trained


@functools.partial(jax.jit, static_argnames=("optimizer", "steps"))
def _train(key: Array, loss: Callable, parameters: Any, optimizer: optax.GradientTransformation, steps: int) -> Trained:
    def step(carry, key):
        parameters, state = carry
        value, gradient = jax.value_and_grad(lambda parameters: loss(key, parameters))(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value

    (parameters, _), losses = lax.scan(step, (parameters, optimizer.init(parameters)), jax.random.split(key, steps))
    return Trained(parameters, losses)


@functools.lru_cache
def descent(steps: int, rate: float = 0.05) -> optax.GradientTransformation:
    """Adam from `rate` down to 0 along a cosine: what is used where no optimiser is given. One object a number of steps, so that it compiles once."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def check_optimizer(caller: str, optimizer: Any) -> optax.GradientTransformation | None:
    """The optimiser, or None where none was given.

    Raises:
      TypeError: when it is no optimiser of optax.
    """
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"{caller}: optimizer must be one of optax (optax.adam(0.01), say), got {type(optimizer).__name__}")
    return optimizer
