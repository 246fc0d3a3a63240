"""A text under way: what one particle sees of a language model, and the batch behind it.

The step of a program reads `text.next()`, records a token by `text.push(token)`, or takes some back by `text.rewind(...)`;
between steps all particles go through the model in one batched forward pass. What the model remembers of their pasts is its
`Memory`, which follows the particles by `select` and `rewind`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from posterity.models.lm.model import Memory
from posterity.models.lm.next_token import NextToken, next_token
from posterity.models.lm.tokenizer import Tokenizer
from posterity.ppl import component
from posterity.ppl.answer import Answer

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
    phase: str = struct.field(pytree_node=False)  # why there are logits or none: "started", "ready", "pushed", "rewound" or "finished"
    held: dict[str, Array] | None = None  # of a finished text: what the memory of all texts together came to, bytes, each []

    def next(
        self,
        temperature: Array | float = 1.0,
        *,
        top_k: Array | int | None = None,
        top_p: Array | float | None = None,
        min_p: Array | float | None = None,
    ) -> NextToken:
        """The law of the next token, with logits divided by `temperature`, and cut off as `next_token` says.

        Raises:
          ValueError: outside a scan's step, or after `push` or `rewind` in the same step: the model runs once between steps. On options
            out of range, where their values are known (as a program's arguments they are not).
        """
        if self.logits is None:
            reasons = {
                "started": "the model runs when the scan begins; draw tokens in its step",
                "pushed": "a token was pushed in this step already; the model runs between steps, so one step draws one token",
                "rewound": "the text was rewound in this step; the model runs between steps, so the next step can draw",
                "finished": "this is a finished text",
            }
            raise ValueError(f"text.next() is not available here: {reasons[self.phase]}")
        return next_token(self.logits, self.tokenizer, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

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

    def rewind(self, generated: Array | int) -> Self:
        """The text cut to its first `generated` tokens after the prompt, or as it is where it has no more; the next step has the law of what follows them.

        A step may push a token and then rewind: with `text = text.push(token)`, `text.rewind(jnp.where(wrong, start, text.generated))` goes back
        where something was wrong. A text that is cut is no longer ended.

        Raises:
          ValueError: outside a scan's step, or twice in one. When the scan goes on, from models that keep no past to return to.
        """
        if self.phase not in ("ready", "pushed"):
            raise ValueError(f"text.rewind() is for a scan's step, once; this text is {self.phase}")
        length = self.prompt_length + jnp.clip(jnp.asarray(generated, self.length.dtype), 0, self.generated)
        tokens = jnp.where(jnp.arange(self.tokens.shape[0]) < length, self.tokens, 0)
        return replace(self, tokens=tokens, length=length, ended=self.ended & (length == self.length), logits=None, phase="rewound")

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

    def memory(self) -> dict[str, float]:
        """What the model remembered of all the texts of a run, in bytes (outside compiled code; of one finished text, or all of them).

        "used" at the end, "peak" at any time, "reserved" in all; "dense" for the same texts at the end without sharing, prompts
        included. For a decoder also "bound", with the prompt of P and n texts of at most T further tokens: P + T + n log n tokens, what a
        genealogy takes on average when every step resamples, up to a factor on n log n (Jacob, Murray, Rubenthaler 2015).

        Raises:
          ValueError: for a text that is still under way.

        >>> import jax, posterity as po
        >>> from posterity.models.programs.generate import generate
        >>> posterior = po.smc(jax.random.key(0), generate(po.load("abacus"), "2+3=", max_tokens=4), n=4)
        >>> held = posterior.values.memory()
        >>> held["used"] <= held["peak"] <= held["reserved"]
        True
        """
        if self.held is None:
            raise ValueError(f"text.memory() is for finished texts, as a posterior holds them; this one is {self.phase}")
        held = {name: float(np.ravel(np.asarray(value))[0]) for name, value in self.held.items()}
        if token := held.pop("token", None):
            generated, n = np.ravel(np.asarray(self.generated)), np.size(self.length)
            held["bound"] = token * (int(np.max(self.prompt_length)) + int(generated.max()) + n * math.log(n))
        return held

    def complaint(self) -> str | None:
        if not (self.held and np.max(self.held.get("lacking", 0.0)) > 0):
            return None
        held = {name: float(np.max(value)) for name, value in self.held.items()}
        needed = held["reserved"] + held["lacking"]
        return (
            f"the pool for generated tokens is too small: {needed / 2**20:.4g} MiB are needed for the next step, {held['reserved'] / 2**20:.4g} MiB are there; "
            f"give lm.start(prompt, pool=...) at least {round((needed - held['prompt']) / held['token'])} tokens, leave pool out (it then never overflows), "
            "or use fewer particles"
        )


@struct.dataclass
class Texts(component.State):
    """The batch behind n texts: what they read, and what the model remembers."""

    text: Text  # every leaf with leading axis n
    memory: Memory
    first: Array  # [vocab] logits after the prompt

    def view(self) -> Text:
        return self.text

    def result(self) -> Text:
        n = self.text.length.shape[0]
        held = {name: jnp.broadcast_to(value, (n,)) for name, value in self.memory.bytes().items()}
        return replace(self.text, logits=None, phase="finished", held=held)

    def select(self, ancestors: Array) -> Self:
        return replace(self, text=jax.tree.map(lambda x: x[ancestors], self.text), memory=self.memory.select(ancestors))

    def sound(self) -> Array | None:
        held = self.memory.bytes()
        return held["lacking"] == 0 if "lacking" in held else None

    def mark(self) -> tuple[Array, Array]:
        """How many tokens each text has generated, and a checksum of its tokens, by which it is known again."""
        return self.text.generated, checksum(self.text.tokens, self.text.length)


@struct.dataclass
class TextSource:
    """Starts and advances texts: the model and the prompt that they share."""

    lm: "LanguageModel"
    prompt: "Prompt"
    pool: int | None = struct.field(pytree_node=False, default=None)  # tokens

    def begin(self) -> Text:
        """The prompt as a text that no scan has taken up yet."""
        length = jnp.asarray(self.prompt.length)
        lm, tokens = self.lm, jnp.asarray(self.prompt.tokens)
        text = Text(tokens, length, length, jnp.zeros((), bool), None, lm.tokenizer, lm.extract, lm.context_length, "started")
        object.__setattr__(text, "source", self)
        return text

    def spawn(self, n: int, steps: int) -> Texts:
        """The prompt through the model once; n texts with its logits and room for `steps` tokens."""
        if self.lm.rows is not None and n % (devices := self.lm.rows.mesh.shape[self.lm.rows.spec[0]]):
            raise ValueError(f"{self.lm.name}: n must be a multiple of the {devices} devices that particles are spread over, got {n}")
        return _spawned(self, n, steps)

    def advance(self, state: Texts, views: Text, active: Array) -> Texts:
        """One forward pass over the last tokens of the texts that changed; those not `active` keep what they had."""
        if views.phase not in ("ready", "pushed", "rewound"):
            raise ValueError(f"the step must carry on the text that it was given, push a token to it or rewind it; it returned one that is {views.phase}")
        return state if views.phase == "ready" else _advanced(self, state, views, active)

    def rewind(self, state: Texts, marks: tuple[Array, Array]) -> Texts:
        """The texts where they were at the `marks`, at the cost of one forward pass: the last token that stays is taken in again, for the logits after it.

        Where a program rewound the text itself in between, other tokens may stand there now; then it is not marked as it was.
        """
        generated, _ = marks
        views = jax.vmap(lambda text, generated: text.rewind(generated))(state.text, generated)
        return self.advance(state, views, jnp.ones(generated.shape, bool))


def checksum(tokens: Array, lengths: Array) -> Array:
    """A number for the first `lengths` [n] of `tokens` [n, capacity], uint32 [n]: other tokens have another one, but for one case in billions."""
    places = jnp.arange(tokens.shape[1], dtype=jnp.uint32)
    mixed = (tokens.astype(jnp.uint32) + 1) * (2 * places + 1) * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    return jnp.sum(jnp.where(places < lengths[:, None], mixed ^ (mixed >> 13), 0), axis=1, dtype=jnp.uint32)


# Compiled functions of their own: programs that share a model share the tracing of its layers, and NumPyro's handlers run them whole.
@functools.partial(jax.jit, static_argnames=("n", "steps"))
def _spawned(source: TextSource, n: int, steps: int) -> Texts:
    start = source.begin()
    logits, memory = source.lm.model(source.pool).start(start.tokens, start.length, n, steps)
    text = replace(start, tokens=jnp.pad(start.tokens, (0, steps)), ended=start.length >= start.context_length, phase="ready")
    text = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), text)
    return Texts(_laid(replace(text, logits=logits), source.lm), memory, logits[0])


@jax.jit
def _advanced(source: TextSource, state: Texts, views: Text, active: Array) -> Texts:
    model, before, memory = source.lm.model(source.pool), state.text, state.memory
    changed = active & (views.length != before.length)
    logits: Array = before.logits  # pyright: ignore[reportAssignmentType] - between steps there are some
    if views.phase == "rewound":
        memory = memory.rewind(jnp.where(changed, jnp.maximum(views.generated - 1, 0), before.generated))
        logits = jnp.where((changed & (views.generated == 0))[:, None], state.first, logits)
        changed = changed & (views.generated > 0)
    token = jnp.take_along_axis(views.tokens, views.length[:, None] - 1, axis=1)[:, 0]
    new, memory = model.advance(memory, token, changed)
    after, before = replace(views, phase="ready"), replace(before, logits=None)
    kept = jax.tree.map(lambda new, old: jnp.where(active.reshape(active.shape + (1,) * (new.ndim - 1)), new, old), after, before)
    return Texts(_laid(replace(kept, logits=jnp.where(changed[:, None], new, logits)), source.lm), memory, state.first)


def _laid(text: Text, lm: "LanguageModel") -> Text:
    """Texts on the devices that `lm.shard` spreads them over; from there the compiler carries it to all that is computed of them."""
    return text if lm.rows is None else jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, lm.rows), text)
