"""Hidden Markov models as language models: the memory is the belief over the hidden state, the next token's law its forward recursion."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.tabular.columns import language_model, log_matvec, log_normalised
from posterity.models.lm.tabular.symbols import are_spaced, checked_rows, log


@struct.dataclass
class Filter:
    """The forward recursion (Rabiner 1989) in log space. Two states beside the user's write the start and the end."""

    transition: Float[Array | np.ndarray, "states states"]  # nats
    emission: Float[Array | np.ndarray, "states vocab"]  # nats

    def first(self, capacity: int) -> Float[Array, " states"]:
        begin = self.transition.shape[0] - 2
        return jnp.where(jnp.arange(begin + 2) == begin, jnp.zeros((), self.transition.dtype), -jnp.inf)

    def read(self, columns: Float[Array, "positions states"], position: Int[Array, ""], token: Int[Array, ""]) -> Float[Array, " states"]:
        """The belief over the state that writes the next token, log probabilities."""
        return log_matvec(log_normalised(columns[position] + self.emission[:, token]), self.transition)

    def next(self, column: Float[Array, " states"]) -> Float[Array, " vocab"]:
        return log_matvec(column, self.emission)


def hmm(
    initial: Sequence[float] | np.ndarray,
    transition: Sequence[Sequence[float]] | np.ndarray,
    emission: Sequence[Sequence[float]] | np.ndarray,
    *,
    symbols: str | Sequence[str],
    end: Sequence[float] | np.ndarray | None = None,
    name: str = "hmm",
) -> LanguageModel:
    """The language model of a hidden Markov model with S states and V symbols: a state writes a symbol, then the text ends or another state follows.

    Args:
      initial: [S] probabilities of the first state.
      transition: [S, S] of the next state, a row for each present one, given that the text goes on.
      emission: [S, V] of the symbol that a state writes, a row for each state.
      symbols: the V symbols; those of one character each are written without spaces.
      end: [S] probability that the text ends after the symbol of a state; left out, texts never end by themselves.
      name: what the model is called.

    Raises:
      ValueError: for shapes that do not fit, probabilities that are none or do not sum to one, or symbols that cannot be told apart.

    >>> import posterity as po
    >>> lm = hmm([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0]], [[0.9, 0.1], [0.2, 0.8]], symbols="ab")  # two states in turn
    >>> @po.program
    ... def texts(lm, prompt):
    ...     return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=2)
    >>> {text: round(estimate.value, 4) for text, estimate in po.exact(texts(lm, lm.prompt(""))).answers().items()}
    {'ab': 0.72, 'aa': 0.18, 'bb': 0.08, 'ba': 0.02}
    """
    symbols, states = list(symbols), len(initial)
    if not states or not symbols:
        raise ValueError(f"hmm: it needs at least one state and one symbol, got {states} and {len(symbols)}")
    first = checked_rows("hmm: initial", initial, (states,))
    following = checked_rows("hmm: transition", transition, (states, states))
    writing = checked_rows("hmm: emission", emission, (states, len(symbols)))
    ending = np.zeros(states) if end is None else np.asarray(end, float)
    if ending.shape != (states,) or not np.all((ending >= 0) & (ending <= 1)):
        raise ValueError(f"hmm: end must hold {states} probabilities, one for each state, got {end}")
    begin, over = states, states + 1
    moves, writes = np.zeros((states + 2, states + 2)), np.zeros((states + 2, len(symbols) + 2))
    moves[:states, :states], moves[:states, over] = (1 - ending)[:, None] * following, ending
    moves[begin, :states], moves[over, over] = first, 1.0
    writes[:states, : len(symbols)], writes[over, len(symbols)], writes[begin, len(symbols) + 1] = writing, 1.0, 1.0
    return language_model(Filter(log(moves), log(writes)), symbols, name, spaced=are_spaced(symbols))
