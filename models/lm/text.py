"""A text under way: what one particle sees of a language model, and the batch behind it.

The step of a program reads `text.next()` and records a token by `text.push(token)`; between steps all particles go through
the model in one batched forward pass, over the prompt's keys and values (held once) and their own suffixes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer

from posterity.models.lm.decoder import KeysValues
from posterity.models.lm.next_token import NextToken
from posterity.models.lm.tokenizer import Tokenizer
from posterity.ppl import component
from posterity.ppl.posterior import Answer

if TYPE_CHECKING:
    from posterity.models.lm.language_model import LanguageModel, Prompt


@struct.dataclass
class Text(component.Component, Answer):
    """A text as one particle sees it: the prompt and the tokens generated so far."""

    tokens: Array  # [capacity] int32, prompt first
    length: Array  # [] int32, how many of them count
    prompt_length: Array  # [] int32
    ended: Array  # [] bool: its last token is an end token, or the model's context is full
    logits: Array | None  # [vocab] of the next token; only between two pushes
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    extract: Callable[[str], str] = struct.field(pytree_node=False)
    context_length: int = struct.field(pytree_node=False)
    phase: str = struct.field(pytree_node=False)  # why there are logits or none: "started", "ready", "pushed" or "finished"

    def next(self, temperature: Array | float = 1.0) -> NextToken:
        """The law of the next token, with logits divided by `temperature`.

        Raises:
          ValueError: outside a scan's step, or after `push` in the same step: the model runs once between steps. On a
            temperature that is not positive, where its value is known (as a program's argument it is not).
        """
        if not isinstance(temperature, Tracer) and not temperature > 0:
            raise ValueError(f"text.next(): temperature must be positive, got {temperature}")
        if self.logits is None:
            reasons = {
                "started": "the model runs when the scan begins; draw tokens in its step",
                "pushed": "a token was pushed in this step already; the model runs between steps, so one step draws one token",
                "finished": "this is a finished text",
            }
            raise ValueError(f"text.next() is not available here: {reasons[self.phase]}")
        return NextToken(self.logits / temperature, self.tokenizer)

    def push(self, token: Array) -> Self:
        """The text with `token` appended; the model takes it in before the next step.

        Raises:
          ValueError: on a second push in one step, or outside a scan's step.
        """
        if self.phase != "ready":
            raise ValueError(f"text.push() takes one token a step, inside a scan's step; this text is {self.phase}")
        token = jnp.asarray(token, self.tokens.dtype)
        length = self.length + 1
        ended = jnp.isin(token, jnp.array(self.tokenizer.end_ids, token.dtype)) | (length >= self.context_length)
        return replace(self, tokens=self.tokens.at[self.length].set(token), length=length, ended=ended, logits=None, phase="pushed")

    @property
    def last(self) -> Array:
        """The last token, int32 []."""
        return self.tokens[self.length - 1]

    @property
    def generated(self) -> Array:
        """How many tokens follow the prompt, int32 []."""
        return self.length - self.prompt_length

    def __str__(self) -> str:
        """The generated text, without prompt and special tokens (outside compiled code, for one text)."""
        return self.tokenizer.decode(np.asarray(self.tokens)[int(self.prompt_length) : int(self.length)].tolist())

    def answer(self) -> str:
        """The answer in the generated text, as the model's `extract` reads it."""
        return self.extract(str(self))


@struct.dataclass
class Texts(component.State):
    """The batch behind n texts: what they read, and the model's keys and values."""

    text: Text  # every leaf with leading axis n
    prompt: list[KeysValues]  # a layer each, [1, prompt, kv heads, size], shared by all
    suffix: list[KeysValues]  # a layer each, [n, steps, kv heads, size]

    def view(self) -> Text:
        return self.text

    def result(self) -> Text:
        return replace(self.text, logits=None, phase="finished")

    def select(self, ancestors: Array) -> Self:
        return replace(self, text=jax.tree.map(lambda x: x[ancestors], self.text), suffix=jax.tree.map(lambda x: x[ancestors], self.suffix))


@struct.dataclass
class TextSource:
    """Starts and advances texts: the model and the prompt that they share."""

    lm: "LanguageModel"
    prompt: "Prompt"

    def begin(self) -> Text:
        """The prompt as a text that no scan has taken up yet."""
        length = jnp.asarray(self.prompt.length)
        lm, tokens = self.lm, jnp.asarray(self.prompt.tokens)
        text = Text(tokens, length, length, jnp.zeros((), bool), None, lm.tokenizer, lm.extract, lm.config.context_length, "started")
        object.__setattr__(text, "source", self)
        return text

    def spawn(self, n: int, steps: int) -> Texts:
        """The prompt through the model once; n texts with its logits and room for `steps` tokens."""
        start, decoder = self.begin(), self.lm.decoder
        hidden, prompt = decoder(start.tokens[None])
        logits = decoder.logits(hidden[0, start.length - 1])
        text = replace(start, tokens=jnp.pad(start.tokens, (0, steps)), ended=start.length >= start.context_length, logits=logits, phase="ready")
        suffix = jax.tree.map(lambda x: jnp.zeros((n, steps, *x.shape[2:]), x.dtype), prompt)
        return Texts(jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), text), prompt, suffix)

    def advance(self, state: Texts, views: Text, active: Array) -> Texts:
        """One forward pass over the pushed tokens of all texts; those not `active` keep what they had."""
        if views.phase not in ("ready", "pushed"):
            raise ValueError(f"the step must carry on the text that it was given, or push a token to it; it returned one that is {views.phase}")
        if views.phase == "ready":
            return state
        before, decoder = state.text, self.lm.decoder
        token = jnp.take_along_axis(views.tokens, before.length[:, None], axis=1)[:, 0]
        hidden, suffix = decoder.decode(token, state.prompt, before.prompt_length[0], state.suffix, before.generated)
        after = replace(views, logits=decoder.logits(hidden), phase="ready")
        text = jax.tree.map(lambda new, old: jnp.where(active.reshape(active.shape + (1,) * (new.ndim - 1)), new, old), after, before)
        return Texts(text, state.prompt, suffix)
