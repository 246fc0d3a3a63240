"""A language model under a prompt of its own: how one model becomes several experts."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.model import Memory


@struct.dataclass
class Prompted:
    """A model that reads tokens before and after every prompt."""

    lm: LanguageModel
    before: Int[Array | np.ndarray, " b"]
    after: Int[Array | np.ndarray, " a"]
    starts: int | None = struct.field(pytree_node=False)  # the token that starts texts: `before` has it, so that of the prompt is left out

    @property
    def vocab_size(self) -> int:
        return self.lm.tokenizer.vocab_size

    @property
    def context_length(self) -> int:
        return self.lm.context_length - len(self.before) - len(self.after)

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Memory]:
        first = jnp.zeros((), jnp.int32) if self.starts is None else (jnp.asarray(tokens)[0] == self.starts).astype(jnp.int32)
        b, own = len(self.before), length - first
        place = jnp.arange(b + tokens.shape[0] + len(self.after))
        parts = jnp.concatenate([jnp.asarray(part, jnp.int32) for part in (self.before, tokens, self.after)])
        # Where in `parts` each place reads: before, the prompt without its first token if that is left out, after.
        source = jnp.where(place < b, place, jnp.where(place < b + own, place + first, place - own + tokens.shape[0]))
        read = parts[jnp.minimum(source, len(parts) - 1)]
        return self.lm.model().start(read, b + own + len(self.after), n, steps)

    def advance(self, memory: Any, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Memory]:
        return self.lm.model().advance(memory, tokens, active)


def prompted(lm: LanguageModel, before: str, after: str = "") -> LanguageModel:
    r"""The model that reads `before`, then a program's prompt, then `after`: an expert for products, contrasts and mixtures of one model with itself.

    The three are split into tokens one by one; a token that starts texts comes once, at the very beginning.

    Raises:
      ValueError: when a text has tokens that the vocabulary lacks, or both leave no room in the model's context.

    >>> import posterity as po
    >>> lm = po.load("abacus")
    >>> short = po.experts.prompted(lm, "1+1=2\n")
    >>> lm.context_length - short.context_length
    6
    """
    tokenizer = lm.tokenizer
    starts = None if tokenizer.bos_token is None else tokenizer.backend.token_to_id(tokenizer.bos_token)
    head = np.array(tokenizer.encode(before), np.int32)
    tail = tokenizer.encode_on(after)
    model = Prompted(lm, head, np.array(tail, np.int32), starts if starts is not None and starts in head[:1] else None)
    if model.context_length < 2:
        raise ValueError(
            f"prompted: before and after have {len(head) + len(tail)} tokens, which leave no room in the context of {lm.name}, {lm.context_length}"
        )
    return LanguageModel.of(model, tokenizer, f"{lm.name} after {before[:20]!r}", lm.extract)
