"""What another language model says of a text, as a potential: how probable it finds the text, or how its head scores the next tokens.

The other model reads along: its text is part of the potential's state, and goes with the program's as a component of its own.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from posterity.models.lm.experts.together import difference, log_law
from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.text import Text
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.potential import Potential
from posterity.ppl import component


@struct.dataclass
class Likelihood(Potential):
    """The probability of a text under another language model. See `likelihood`."""

    lm: LanguageModel
    prompt: Prompt

    def start(self) -> Text:
        return self.lm.start(self.prompt)

    def update(self, state: Text, token: Array) -> tuple[Text, Array]:
        return state.push(token), self.scores(state)[token]

    def scores(self, state: Text) -> Float[Array, " vocab"]:
        return log_law(_logits(state))


def likelihood(lm: LanguageModel, prompt: str) -> Likelihood:
    """Texts that weigh what a language model, after a prompt of its own, says their probability is: a product of experts over whole texts.

    With `likelihood(b, ...) ** w`, `constrained(a, ...)` has texts by p_a(text) p_b(text)^w, and their sum for its evidence. It multiplies with
    other potentials; tokens are drawn by all of them. `lm` must have the tokens of the model that writes. For `po.constrained`.

    Raises:
      ValueError: as `lm.prompt`; from `constrained`, for a model of other tokens or with too small a context.

    >>> import jax.numpy as jnp, posterity as po
    >>> a, b = (po.tabular.ngram(text, order=1, smoothing=0) for text in ("xxy", "xyy"))
    >>> exact = po.exact(po.constrained(a, "", po.potentials.likelihood(b, ""), max_tokens=1))
    >>> round(float(jnp.exp(exact.log_evidence)), 4)      # 2/4 * 1/4 of x, as much of y, 1/4 * 1/4 of nothing
    0.3125
    """
    return Likelihood(lm, lm.prompt(prompt))


class Valued(NamedTuple):
    """A text as a reward model reads along, and what its last token was worth."""

    text: Text
    nats: Float[Array, ""]


@struct.dataclass
class Multifurcation(Potential):
    """A model that scores every next token in one call, as a potential. See `multifurcation`."""

    lm: LanguageModel
    prompt: Prompt
    strength: float | Array
    weighs: Literal["last", "every"] = struct.field(pytree_node=False)

    def start(self) -> Valued:
        return Valued(self.lm.start(self.prompt), jnp.zeros(()))

    def update(self, state: Valued, token: Array) -> tuple[Valued, Array]:
        gain = self.scores(state)[token]
        now = jnp.asarray(state.nats + jnp.where(jnp.isneginf(gain), 0.0, gain), state.nats.dtype) if self.weighs == "last" else state.nats
        return Valued(state.text.push(token), now), gain

    def scores(self, state: Valued) -> Float[Array, " vocab"]:
        rewards = _logits(state.text)
        return self.strength * jnp.asarray(rewards, jnp.promote_types(rewards.dtype, jnp.float32)) - state.nats


def multifurcation(lm: LanguageModel, prompt: str, *, strength: float = 1.0, weighs: Literal["last", "every"] = "last") -> Multifurcation:
    """A multifurcation reward model: one call scores all next tokens, so that tokens are drawn by law times exp(strength * reward).

    The rewards are the logits of `lm`, a model with a reward for each token in its head's rows; -inf forbids a token. A reward speaks of the
    text that the token makes: with `weighs="last"` each takes the place of the one before it, and a finished text weighs exp(strength *
    the reward of its last token); with "every" the rewards of all tokens add up. For `po.constrained`.

    Args:
      lm: the reward model, with the tokens of the model that writes.
      prompt: what it reads first.
      strength: nats a unit of reward.
      weighs: whether the last token's reward counts or every token's.

    Raises:
      ValueError: for a strength that is not positive, another `weighs`, and as `likelihood`.

    Source: Qiu et al. 2025, arXiv 2506.06444 (Saffron-1), whose search keeps the best tokens where this draws by them.

    >>> import posterity as po
    >>> lm, rewards = (po.tabular.ngram(text, order=1, smoothing=1) for text in ("xy", "xyyyyyy"))
    >>> texts = po.exact(po.constrained(lm, "", po.potentials.multifurcation(rewards, "", strength=2.0), max_tokens=1))
    >>> round(texts.answers()["y"].value, 2)
    0.86
    """
    if not strength > 0:
        raise ValueError(f"multifurcation: strength must be positive, got {strength}")
    if weighs not in ("last", "every"):
        raise ValueError(f"multifurcation: weighs must be 'last' or 'every', got {weighs!r}")
    return Multifurcation(lm, lm.prompt(prompt), float(strength), weighs)


def check_texts(caller: str, state: Any, tokenizer: Tokenizer, max_tokens: int) -> None:
    """Whether the texts in a potential's first state can go along with one of `tokenizer` for `max_tokens` tokens.

    Raises:
      ValueError: when one has other tokens, or a context without the room.
    """
    for text in component.parts(state):
        if not isinstance(text, Text):
            continue
        if differing := difference(tokenizer, text.tokenizer):
            raise ValueError(f"{caller}: the model of the potential has another vocabulary: {differing}; experts.over_bytes makes them one")
        if not isinstance(text.length, Tracer) and int(text.length) + max_tokens > text.context_length:
            length, context = int(text.length), text.context_length
            raise ValueError(f"{caller}: the potential's model has a prompt of {length} tokens and a context of {context}, without room for {max_tokens} more")


def _logits(text: Text) -> Float[Array, " vocab"]:
    if text.logits is None:
        raise ValueError("this potential's model reads along between the steps of a scan; use it in po.constrained")
    return text.logits
