"""How tables read: a column of numbers for each token of a text, from which the law of the next token follows.

For an n-gram a column is the state of an automaton, for a hidden Markov model a belief, for a grammar a column of its chart.
"""

from dataclasses import replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.tabular.symbols import tokenizer_of

CONTEXT_LENGTH = 65_536  # tokens: tables have no limit of their own


class Reader(Protocol):
    """Reads one text, a token at a time. Its leaves are the tables; a column is a pytree of its own choice."""

    def first(self, capacity: int) -> Any:
        """What is known before any token of a text that gets at most `capacity`."""
        ...

    def read(self, columns: Any, position: Int[Array, ""], token: Int[Array, ""]) -> Any:
        """What is known after the token at `position`, from the columns up to there ([capacity + 1, ...]; later ones mean nothing)."""
        ...

    def next(self, column: Any) -> Float[Array, " vocab"]:
        """Log probabilities of the next token (nats, up to a constant); all -inf after what has probability zero."""
        ...


@struct.dataclass
class Columns:
    """What is known of n texts after each of their tokens: the memory of a `Tabular` model."""

    columns: Any  # leaves [n, capacity + 1, ...]
    length: Int[Array, " n"]  # tokens read
    prompt: Int[Array, ""]  # how many of them are the prompt's

    def select(self, ancestors: Int[Array, " m"]) -> Self:
        return replace(self, columns=jax.tree.map(lambda x: x[ancestors], self.columns), length=self.length[ancestors])

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        return replace(self, length=jnp.asarray(self.prompt + lengths, self.length.dtype))

    def bytes(self) -> dict[str, Array]:
        leaves = jax.tree.leaves(self.columns)
        held = jnp.asarray(sum(x.nbytes for x in leaves), jnp.float32)
        used = sum(x[0, 0].nbytes for x in leaves) * jnp.sum(self.length + 1).astype(jnp.float32)
        return {"used": used, "peak": held, "reserved": held, "dense": held}

    @property
    def last(self) -> Any:
        """Each text's last column, leaves [n, ...]."""
        return jax.tree.map(lambda x: x[jnp.arange(len(self.length)), self.length], self.columns)


@struct.dataclass
class Tabular:
    """A model that reads by tables. After a text of probability zero only the end follows: there the tables leave the law open."""

    reader: Any
    vocab_size: int = struct.field(pytree_node=False)
    end: int = struct.field(pytree_node=False)  # the token that ends texts
    context_length: int = struct.field(pytree_node=False, default=CONTEXT_LENGTH)

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Columns]:
        capacity = tokens.shape[0] + steps
        reader = jax.tree.map(jnp.asarray, self.reader)
        columns = jax.tree.map(lambda x: jnp.zeros((capacity + 1, *x.shape), x.dtype).at[0].set(x), reader.first(capacity))

        def take(columns, token):
            position, columns = columns
            return (position + 1, _written(columns, position + 1, reader.read(columns, position, token))), None

        with jax.disable_jit(False):  # an enumeration follows draws without jit, and would unroll the loop; nothing is drawn here
            (_, columns), _ = lax.scan(take, (jnp.zeros_like(length), columns), tokens)  # padding is read too, but lies beyond `length`
        memory = Columns(jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), columns), jnp.full(n, length), length)
        return self._logits(memory), memory

    def advance(self, memory: Any, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Columns]:
        reader = jax.tree.map(jnp.asarray, self.reader)

        def take(columns, length, token):
            return _written(columns, length + 1, reader.read(columns, length, token))

        # The columns that texts which stand still get lie beyond their ends.
        columns = jax.vmap(take)(memory.columns, memory.length, tokens)
        memory = replace(memory, columns=columns, length=memory.length + active.astype(memory.length.dtype))
        return self._logits(memory), memory

    def _logits(self, memory: Columns) -> Float[Array, "n vocab"]:
        law = jax.vmap(jax.tree.map(jnp.asarray, self.reader).next)(memory.last)
        ended = jnp.where(jnp.arange(self.vocab_size) == self.end, jnp.zeros((), law.dtype), -jnp.inf)
        return jnp.where(jnp.all(jnp.isneginf(law), axis=-1, keepdims=True), ended, law)


def language_model(reader: Reader, symbols: list[str], name: str, *, spaced: bool) -> LanguageModel:
    """The language model of a reader whose tokens are the symbols, then the end, then the start."""
    model = Tabular(reader, vocab_size=len(symbols) + 2, end=len(symbols))
    return LanguageModel.of(model, tokenizer_of(symbols, spaced=spaced), name)


def log_matvec(x: Float[Array, " m"], table: Float[Array | np.ndarray, "m k"]) -> Float[Array, " k"]:
    """log(exp(x) @ exp(table))."""
    return jax.scipy.special.logsumexp(x[:, None] + table, axis=0)


def log_normalised(x: Float[Array, " k"]) -> Float[Array, " k"]:
    """Minus its log sum; all -inf stays that."""
    total = jax.scipy.special.logsumexp(x)
    return x - jnp.where(jnp.isneginf(total), 0.0, total)


def _written(columns: Any, position: Int[Array, ""], column: Any) -> Any:
    return jax.tree.map(lambda x, new: x.at[position].set(new), columns, column)
