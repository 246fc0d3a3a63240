"""A value head on a language model's hidden states: a learned guess, for every next token, of what a potential will come to after it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float, Int

from posterity.models.lm.decoder import Decoder, outline
from posterity.models.lm.heads import hidden_states
from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.text import Text
from posterity.models.potentials.potential import Potential, plus


class ValueHead(NamedTuple):
    """log psi of a text = weight[its last token] . h / sqrt(hidden) + bias[its last token], nats, h what the model's own head read before that token.

    So scaled, weights of size 1 make values of about a nat, whatever the width.
    """

    weight: Float[Array, "vocab hidden"]
    bias: Float[Array, " vocab"]


class LastRead(NamedTuple):
    """What a value head reads of a text."""

    hidden: Float[Array, " hidden"]  # the model's last hidden state before the last token
    token: Int[Array, ""]  # the last one; -1 where none was generated, of which the value is 1


def value_features(lm: LanguageModel) -> Partial:
    """From a text of `lm` to what a value head reads of it: the `features` of `po.learn.twist`.

    Raises:
      TypeError: for a model that is no decoder, and so has no hidden states.
    """
    _decoder("value_features", lm)
    return Partial(_last_read, lm)


def value_head(lm: LanguageModel) -> ValueHead:
    """The head that values every text at 1: the `parameters` that `po.learn.twist` starts from.

    Raises:
      TypeError: as `value_features`.
    """
    config = _decoder("value_head", lm).config
    return ValueHead(jnp.zeros((config.vocab_size, config.hidden_size)), jnp.zeros(config.vocab_size))


def log_value(head: ValueHead, read: LastRead) -> Float[Array, ""]:
    """The `log_psi` of `po.learn.twist`."""
    token = jnp.maximum(read.token, 0)
    return jnp.where(read.token < 0, 0.0, head.weight[token] @ read.hidden.astype(head.weight.dtype) / read.hidden.shape[-1] ** 0.5 + head.bias[token])


class Foreseen(NamedTuple):
    """How far a potential is, the text as the value model reads along, and the log value of its last token."""

    inner: Any
    text: Text
    ahead: Float[Array, ""]


@struct.dataclass
class Valued(Potential):
    """A potential with a learned guess of what it will come to. See `valued`."""

    potential: Potential
    values: LanguageModel  # whose logits are the log values of the next tokens
    prompt: Prompt

    def start(self) -> Foreseen:
        return Foreseen(self.potential.start(), self.values.start(self.prompt), jnp.zeros(()))

    def update(self, state: Foreseen, token: Array) -> tuple[Foreseen, Array]:
        inner, gain = self.potential.update(state.inner, token)
        return Foreseen(inner, state.text.push(token), self._values(state)[token]), gain

    def scores(self, state: Foreseen) -> Array | None:
        return self.potential.scores(state.inner)

    def complete(self, state: Foreseen) -> Array | float:
        return self.potential.complete(state.inner)

    def to_go(self, state: Foreseen) -> Array:
        return state.ahead

    def gains(self, state: Foreseen, end_ids: tuple[int, ...]) -> Array:
        """Where the potential does not know the scores of all tokens it is asked for those that end the text: of these there are no values."""
        ends, values, scores = jnp.array(end_ids, int), self._values(state), self.scores(state)
        if scores is None:
            final = jax.vmap(lambda token: jnp.asarray(self.potential.update(state.inner, token)[1], values.dtype))(ends)
            scores = jnp.zeros_like(values).at[ends].set(final)
        return plus(scores, values.at[ends].set(0.0)) - state.ahead

    def _values(self, state: Foreseen) -> Float[Array, " vocab"]:
        if (values := state.text.logits) is None:
            raise ValueError("a value model reads along between the steps of a scan; use it in po.constrained")
        return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def valued(potential: Potential, lm: LanguageModel, prompt: str, head: ValueHead) -> Valued:
    """The potential, with tokens drawn and texts weighed ahead of time by what a value head foresees; for `po.constrained`. What is asked stays the same.

    It is the twist that the head is, `po.twist` with `po.learn.twist`'s `log_psi`, at the cost of one more pass of the model over each new token in
    place of one over each whole text, and with tokens drawn by law times value. A potential that does not know its `scores` is asked at every step
    what it would say if the text ended there.

    Args:
      potential: any potential.
      lm: the model that the head was learned on, with the tokens of the model that writes: that model itself, mostly.
      prompt: the prompt of the texts.
      head: `po.learn.twist(key, program, value_features(lm), log_value, value_head(lm)).parameters`.

    Raises:
      TypeError: for another kind of potential, or a model that is no decoder.
      ValueError: for a head of another shape than the model's.

    Source: Zhao, Brekelmans, Makhzani and Grosse (2024), section 3.

    >>> import jax, jax.numpy as jnp, posterity as po
    >>> lm, v = po.load("abacus"), po.potentials
    >>> judged = v.valued(v.over(v.regex("[0-9]{2}"), lm.tokenizer), lm, "2+3=", v.value_head(lm))
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "2+3=", judged, max_tokens=4), n=4)
    >>> all(len(text) == 2 for text in posterior.answers())
    True
    """
    if not isinstance(potential, Potential):
        raise TypeError(f"valued: potential must be a Potential (an automaton by po.potentials.over(automaton, lm.tokenizer)), got {type(potential).__name__}")
    return Valued(potential, value_model(lm, head), lm.prompt(prompt))


def value_model(lm: LanguageModel, head: ValueHead) -> LanguageModel:
    """The model with a value head in place of its own: its logits are log values of the next tokens, nats."""
    config = _decoder("valued", lm).config
    shape = (config.vocab_size, config.hidden_size)
    if jnp.shape(head.weight) != shape or jnp.shape(head.bias) != shape[:1]:
        raise ValueError(
            f"valued: the head of {lm.name} must have weights of shape {shape} and {shape[:1]}, got {jnp.shape(head.weight)}, {jnp.shape(head.bias)}"
        )
    graph, _ = nnx.split(outline(dataclasses.replace(config, tied_head=False, head_bias=True, logit_softcap=None)))
    embed = {"embedding": lm.weights["embed"]["kernel"].T} if config.tied_head else lm.weights["embed"]
    weights = {**lm.weights, "embed": embed, "head": {"kernel": jnp.asarray(head.weight).T / config.hidden_size**0.5, "bias": jnp.asarray(head.bias)}}
    return dataclasses.replace(lm, weights=weights, graph=graph, name=f"values of {lm.name}")


def _last_read(lm: LanguageModel, text: Text) -> LastRead:
    hidden = hidden_states(lm.decoder, text.tokens[None])[0]
    return LastRead(hidden[jnp.maximum(text.length - 2, 0)], jnp.where(text.generated > 0, text.last, -1))


def _decoder(caller: str, lm: LanguageModel) -> Decoder:
    decoder = lm.decoder
    if not isinstance(decoder, Decoder):
        raise TypeError(f"{caller}: {lm.name} is a {type(decoder).__name__}, which has no hidden states; give a decoder")
    return decoder
