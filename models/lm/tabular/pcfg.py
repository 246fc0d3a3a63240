"""Probabilistic context-free grammars as language models: prefix probabilities from a chart that grows by a column a token."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.scipy.special import logsumexp
from jaxtyping import Float, Int

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.tabular import grammar
from posterity.models.lm.tabular.columns import language_model, log_matvec
from posterity.models.lm.tabular.symbols import START, are_spaced, log


@struct.dataclass
class Column:
    """What a chart knows at one position k, log probabilities over those of the tokens up to there given all before them."""

    inside: Float[Array, "positions nonterminals"]  # that A writes the tokens from position j to k; -inf for j >= k
    forward: Float[Array, " nonterminals"]  # expected number of A that begin at k, at the left edge of what is yet to be written
    expected: Float[Array, " pairs"]  # expected number of rules A -> B C that begin at k


@struct.dataclass
class Chart:
    """The prefix probabilities of Jelinek and Lafferty (1991) and Stolcke (1995), column by column, for a grammar in normal form.

    Time and memory a token grow with the square and with the length of the text.
    """

    lexical: Float[Array | np.ndarray, "nonterminals vocab"]  # nats
    binary: Float[Array | np.ndarray, "nonterminals pairs"]  # nats
    corner: Float[Array | np.ndarray, "nonterminals nonterminals"]  # log of the expected number of B at the left edge below A
    pairs: Int[Array | np.ndarray, "pairs 2"]

    def first(self, capacity: int) -> Column:
        return self._column(jnp.full((capacity + 1, self.lexical.shape[0]), -jnp.inf, self.lexical.dtype), self.corner[0])

    def read(self, columns: Column, position: Int[Array, ""], token: Int[Array, ""]) -> Column:
        """The column after `position + 1` tokens."""
        left, right = self.pairs.T
        positions = jnp.arange(columns.inside.shape[0])
        here = jax.tree.map(lambda x: x[position], columns)
        surprise = logsumexp(here.forward + self.lexical[:, token])  # all are relative to the tokens read, so that nothing underflows
        word = self.lexical[:, token] - jnp.where(jnp.isneginf(surprise), 0.0, surprise)
        inside = jnp.full_like(here.inside, -jnp.inf).at[position].set(word)

        def extend(i, inside):
            """The nonterminals that begin at j, one position further left each time."""
            j = position - 1 - i
            split = columns.inside[:, j, left] + inside[:, right]  # B from j to m and C from m on, [m, pairs]
            split = jnp.where(((positions > j) & (positions <= position))[:, None], split, -jnp.inf)
            return inside.at[j].set(logsumexp(self.binary + logsumexp(split, axis=0), axis=1))

        inside = lax.fori_loop(0, position, extend, inside)
        begun = jnp.where((positions <= position)[:, None], columns.expected + inside[:, left], -jnp.inf)
        return self._column(inside, log_matvec(logsumexp(begun, axis=0), self.corner[right]))

    def next(self, column: Column) -> Float[Array, " vocab"]:
        law = log_matvec(column.forward, self.lexical)
        return law.at[-2].set(column.inside[0, 0])  # a text ends where nonterminal 0 has written all of it; the end is the last token but one

    def _column(self, inside: Float[Array, "positions nonterminals"], forward: Float[Array, " nonterminals"]) -> Column:
        return Column(inside, forward, log_matvec(forward, self.binary))


def pcfg(rules: grammar.Rules, *, start: str = "S", name: str = "pcfg") -> LanguageModel:
    """The language model of a probabilistic context-free grammar: after each prefix, the law of the next word in the grammar's texts.

    Left recursion, unit productions and empty ones may be used freely. Time and memory a token grow with the square and with the
    length of the text, and with the number of rules.

    Args:
      rules: for each nonterminal its right sides, symbols separated by white space (none: nothing is written), with their
        probabilities. A symbol without rules is a word; one that begins with a capital letter must stand in quotes. Words of one
        character each are written without spaces.
      start: the nonterminal that writes texts.
      name: what the model is called.

    Raises:
      ValueError: for a start or another nonterminal without rules, probabilities out of range or that do not sum to one, and a
        grammar that loses probability to derivations that never end.

    >>> import posterity as po
    >>> lm = pcfg({"S": {"a S b": 0.5, "c": 0.5}})
    >>> @po.program
    ... def texts(lm, prompt):
    ...     return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=2)
    >>> {text: round(estimate.value, 4) for text, estimate in po.exact(texts(lm, lm.prompt("aa"))).answers().items()}
    {'cb': 0.5, 'aa': 0.25, 'ac': 0.25}
    """
    table = grammar.table(rules, start, START)
    normal, words = grammar.normal(table), table.words
    chart = Chart(log(normal.lexical), log(normal.binary), log(normal.corner), normal.pairs)
    return language_model(chart, words, name, spaced=are_spaced(words))
