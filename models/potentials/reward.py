"""Rewards: scores in [0, 1] of texts under way, by a model, or by a function of the text. What `reason` weighs steps by."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.cache import Cache, CachedDecoder
from posterity.models.lm.heads import Classifier
from posterity.models.lm.language_model import Prompt
from posterity.models.lm.text import Text
from posterity.models.lm.tokenizer import Tokenizer
from posterity.ppl.rewind import Rewindable
from posterity.ppl.side_by_side import anywhere


@runtime_checkable
class Reward(Protocol):
    """Scores n texts that share a prompt, as they grow. A pytree: its weights are leaves.

    It speaks of a batch, because it may remember what it has read of each text (a reward model has a cache): its state follows the
    texts by `select`, as their language model's memory does.
    """

    def begin(self, prompt: Prompt, n: int, steps: int) -> Any:
        """The state for n texts that begin with `prompt` and may each have `steps` more tokens: a pytree."""
        ...

    def score(self, state: Any, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], Any]:
        """The score of each text as it stands, in [0, 1], and the state after it; where `where` is False it is not read, and its score means nothing.

        `texts` is what n texts are to `jax.vmap`: every leaf has leading axis n. They only ever grow, between two calls.
        """
        ...

    def select(self, state: Any, ancestors: Int[Array, " m"]) -> Any:
        """The state of m texts whose i-th is a copy of number `ancestors[i]`."""
        ...


@struct.dataclass
class Read:
    """What a reward model has read of n texts."""

    memory: Cache
    generated: Int[Array, " n"]  # tokens after the prompt that it has taken in
    logits: Float[Array, "n labels"]  # after the last of them


@struct.dataclass
class RewardModel:
    """A classifier as a reward: its probability, at a text's last token, that what is written is right. It reads every token once.

    With one label that is the logistic function of its score, with more the softmax's share of `label`.

    >>> import posterity as po
    >>> RewardModel(po.load_classifier("hf:PATH/OF/A/REWARD/MODEL"))  # doctest: +SKIP
    """

    classifier: Classifier
    label: int = struct.field(pytree_node=False, default=-1)  # which of the labels means "right"; the last, by default

    def begin(self, prompt: Prompt, n: int, steps: int) -> Read:
        """The prompt through the model, once for all texts."""
        model, length = CachedDecoder(self.classifier.decoder), jnp.asarray(prompt.length)
        logits, memory = model.start(jnp.asarray(prompt.tokens), length, n, steps)
        return Read(memory, jnp.zeros(n, jnp.int32), logits.astype(jnp.float32))

    def score(self, state: Read, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], Read]:
        """Takes in what it has not read yet, one token of every text at a time.

        Raises:
          ValueError: for texts in other tokens than the model's own.
        """
        self.check(self.classifier.name, texts.tokenizer, 0)
        model, last = CachedDecoder(self.classifier.decoder), texts.tokens.shape[1] - 1

        def unread(state: Read) -> Array:
            return where & (state.generated < texts.generated)

        def read(state: Read) -> Read:
            active, place = unread(state), jnp.minimum(texts.prompt_length + state.generated, last)
            logits, memory = model.advance(state.memory, jnp.take_along_axis(texts.tokens, place[:, None], axis=1)[:, 0], active)
            return Read(memory, state.generated + active, jnp.where(active[:, None], logits.astype(jnp.float32), state.logits))

        state = jax.lax.while_loop(lambda state: anywhere(jnp.any(unread(state))), read, state)
        return self.probability(state.logits), state

    def select(self, state: Read, ancestors: Int[Array, " m"]) -> Read:
        return Read(state.memory.select(ancestors), state.generated[ancestors], state.logits[ancestors])

    def mark(self, state: Read) -> tuple[Array, Array]:
        """What it has read of each text, by which `rewind` finds back."""
        return state.generated, state.logits

    def rewind(self, state: Read, marks: tuple[Array, Array]) -> Read:
        """The state when it had read so much of each text; nothing is read for it."""
        return Read(state.memory.rewind(marks[0]), *marks)

    def check(self, name: str, tokenizer: Tokenizer, tokens: int) -> None:
        """Raises ValueError, in the name of `name`, when texts in these tokens, or of so many, cannot be read."""
        if tokenizer != self.classifier.tokenizer:
            raise ValueError(f"{name}: the reward model {self.classifier.name} has other tokens than the language model, and reads no others")
        if (context := self.classifier.decoder.config.context_length) < tokens:
            raise ValueError(f"{name}: texts may come to {tokens} tokens, the context of the reward model {self.classifier.name} is {context}")

    def probability(self, logits: Float[Array, "*n labels"]) -> Float[Array, "*n"]:
        """That the text is right, of the labels' scores."""
        return jax.nn.sigmoid(logits[..., 0]) if logits.shape[-1] == 1 else jax.nn.softmax(logits, axis=-1)[..., self.label]


@struct.dataclass
class TextReward:
    """A function of one text as a reward: jittable, Text -> number in [0, 1]. With `jax.tree_util.Partial` its tables are data, no constants."""

    function: jax.tree_util.Partial

    def begin(self, prompt: Prompt, n: int, steps: int) -> tuple:
        return ()

    def score(self, state: tuple, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], tuple]:
        return jnp.asarray(jax.vmap(self.function)(replace(texts, logits=None, phase="finished")), float), state

    def select(self, state: tuple, ancestors: Int[Array, " m"]) -> tuple:
        return state


def mark(reward: Reward | None, state: Any) -> Any:
    """Where the state of n texts' reward is, by which `rewind` takes it back with the texts: leaves [n, ...].

    Raises:
      TypeError: when it keeps something of the texts and no way back.
    """
    if isinstance(reward, Rewindable):
        return reward.mark(state)
    if jax.tree.leaves(state):
        raise TypeError(f"a {type(reward).__name__} keeps what it has read of a text, and cannot go back in it: it has no mark and rewind")
    return state


def rewind(reward: Reward | None, state: Any, marks: Any) -> Any:
    """The state where each text's was at its own of the `marks`."""
    return reward.rewind(state, marks) if isinstance(reward, Rewindable) else marks


def as_reward(x: Reward | Classifier | Callable[[Text], Array]) -> Reward:
    """The reward that x is, or that a classifier or a function of one text makes.

    Raises:
      TypeError: when x is none of these.
    """
    if isinstance(x, Reward):
        return x
    if isinstance(x, Classifier):
        return RewardModel(x)
    if callable(x):
        return TextReward(x if isinstance(x, jax.tree_util.Partial) else jax.tree_util.Partial(x))
    raise TypeError(f"reward must be a Reward, a classifier (po.load_classifier) or a function of a Text, got {type(x).__name__}")
