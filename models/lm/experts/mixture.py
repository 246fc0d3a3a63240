"""Mixtures of language models: of whole texts, each written by one of them, or of tokens, each by whichever."""

from dataclasses import replace
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.experts.together import Members, Memories, Panel, Together, ending, named, of_one_vocabulary
from posterity.models.lm.language_model import LanguageModel


@struct.dataclass
class Tokens:
    """The rule of a mixture of tokens: log of the weighted sum of probabilities."""

    log_weights: Float[Array | np.ndarray, " k"]

    def __call__(self, laws: Float[Array, "k n vocab"]) -> Float[Array, "n vocab"]:
        return jax.scipy.special.logsumexp(jnp.asarray(self.log_weights, laws.dtype)[:, None, None] + laws, axis=0)


@struct.dataclass
class Written:
    """What a mixture of texts keeps of n texts: what the members do, and how probable the text so far is with each of them."""

    members: Memories
    laws: Float[Array, "k n vocab"]  # of the token after the last one read
    tokens: Int[Array, "n steps"]
    joint: Float[Array, "n steps+1 k"]  # after so many tokens: log(prior times the probability of the tokens), nats
    length: Int[Array, " n"]  # tokens read
    latest: Int[Array, " n"]  # of how many `laws` speaks: more than `length` after a rewind

    def select(self, ancestors: Int[Array, " m"]) -> Self:
        rest = {name: getattr(self, name)[ancestors] for name in ("tokens", "joint", "length", "latest")}
        return replace(self, members=self.members.select(ancestors), laws=self.laws[:, ancestors], **rest)

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        return replace(self, members=self.members.rewind(lengths), length=jnp.asarray(lengths, self.length.dtype))

    def bytes(self) -> dict[str, Array]:
        own = sum(x.nbytes for x in (self.laws, self.tokens, self.joint))
        return {name: held + own for name, held in self.members.bytes().items()}


@struct.dataclass
class Texts:
    """The mixture of the laws of texts, as a `Model`: the next token by each member, weighted with its posterior given the text so far."""

    panel: Panel
    log_weights: Float[Array | np.ndarray, " k"]

    @property
    def vocab_size(self) -> int:
        return self.panel.tokenizer.vocab_size

    @property
    def context_length(self) -> int:
        return self.panel.context_length

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Written]:
        laws, members = self.panel.start(tokens, length, n, steps)
        joint = jnp.broadcast_to(jnp.asarray(self.log_weights, laws.dtype), (n, steps + 1, len(self.panel.members)))
        nothing = jnp.zeros(n, jnp.int32)
        written = Written(members, laws, jnp.zeros((n, steps), jnp.int32), joint, nothing, nothing)
        return self._scores(written), written

    def advance(self, memory: Any, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Written]:
        tokens, rows, length = tokens.astype(jnp.int32), jnp.arange(tokens.shape[0]), memory.length
        said = jnp.moveaxis(memory.laws[:, rows, tokens], 0, -1)
        # After a rewind the last token that was kept is read again. Its probability is known; that of another one would not be.
        again = jnp.where((tokens == memory.tokens[rows, length])[:, None], memory.joint[rows, length + 1], jnp.nan)
        after = jnp.where((length == memory.latest)[:, None], memory.joint[rows, length] + said, again)
        laws, members = self.panel.advance(memory.members, tokens, active)
        after = jnp.where(active[:, None], after, memory.joint[rows, length + 1])
        now = length + active.astype(length.dtype)
        written = Written(
            members,
            jnp.where(active[:, None], laws, memory.laws),
            memory.tokens.at[rows, length].set(jnp.where(active, tokens, memory.tokens[rows, length])),
            memory.joint.at[rows, length + 1].set(after),
            now,
            jnp.where(active, now, memory.latest),
        )
        return self._scores(written), written

    def _scores(self, written: Written) -> Float[Array, "n vocab"]:
        joint = written.joint[jnp.arange(written.length.shape[0]), written.length]
        possible = jnp.any(joint > -jnp.inf, axis=-1, keepdims=True)
        posterior = jnp.where(possible, jax.nn.log_softmax(jnp.where(possible, joint, 0.0), axis=-1), joint)
        return ending(jax.scipy.special.logsumexp(posterior.T[:, :, None] + written.laws, axis=0), self.panel.tokenizer)


def mixture(members: Members, *, of: Literal["texts", "tokens"] = "texts") -> LanguageModel:
    """The mixture of language models, with weights as prior probabilities (divided by their sum).

    Of texts: one member writes all that follows the prompt, so that a text's probability is the weighted sum of its probabilities; the next
    token is drawn by the members' posterior given the text so far, and `authors` tells who wrote a finished one. Of tokens: each token is
    written by a member drawn anew. Both laws are normalised as they are.

    Args:
      members: language models, or pairs of one and its weight (1 where it is left out), over one vocabulary.
      of: "texts" or "tokens".

    Raises:
      ValueError: for no members, weights that are not positive and finite, vocabularies that differ, or another `of`.

    >>> import posterity as po
    >>> xs, ys = (po.tabular.ngram(text, order=1, smoothing=0) for text in ("xxxxxy", "xyyyyy"))
    >>> texts = po.exact(po.constrained(po.experts.mixture([xs, ys]), "", po.potentials.regex(".."), max_tokens=2))
    >>> tokens = po.exact(po.constrained(po.experts.mixture([xs, ys], of="tokens"), "", po.potentials.regex(".."), max_tokens=2))
    >>> [round(posterior.answers()["xx"].value, 4) for posterior in (texts, tokens)]
    [0.3611, 0.25]
    """
    if of not in ("texts", "tokens"):
        raise ValueError(f"mixture: of must be 'texts' or 'tokens', got {of!r}")
    models, weights = of_one_vocabulary("mixture", members)
    log_weights = np.log(weights / weights.sum())
    panel = Panel(models)
    return named(f"mixture of {of}", models, Texts(panel, log_weights) if of == "texts" else Together(panel, Tokens(log_weights)))
