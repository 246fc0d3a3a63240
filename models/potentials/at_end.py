"""Rewards as potentials: what a text weighs when it ends."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int

from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.text import Text, TextSource
from posterity.models.potentials.potential import Potential
from posterity.models.potentials.reward import Reward, as_reward


class Written(NamedTuple):
    """What one particle has written."""

    tokens: Int[Array, " max_tokens"]
    length: Int[Array, ""]


@struct.dataclass
class AtEnd(Potential):
    """A reward of finished texts. See `at_end`."""

    reward: Any
    source: TextSource
    sharpness: Float[Array, ""] | float
    max_tokens: int = struct.field(pytree_node=False)

    def start(self) -> Written:
        return Written(jnp.zeros(self.max_tokens, jnp.int32), jnp.zeros((), jnp.int32))

    def update(self, state: Written, token: Array) -> tuple[Written, Array]:
        token = jnp.asarray(token, jnp.int32)
        after = Written(state.tokens.at[state.length].set(token, mode="drop"), state.length + 1)
        ends = jnp.isin(token, jnp.array(self.source.lm.tokenizer.end_ids, jnp.int32))
        return after, jnp.where(ends, self._nats(after, ends), 0.0)

    def complete(self, state: Written) -> Array:
        return self._nats(state, jnp.ones((), bool))

    def _nats(self, state: Written, whole: Array) -> Float[Array, ""]:
        begun = self.source.begin()
        tokens = jnp.pad(begun.tokens, (0, self.max_tokens))
        place = jnp.arange(len(tokens)) - begun.length
        own = state.tokens[jnp.clip(place, 0, self.max_tokens - 1)]
        tokens = jnp.where((place >= 0) & (place < state.length), own, tokens)
        text = replace(begun, tokens=tokens, length=begun.length + state.length, ended=whole, phase="finished")
        score = _score((self.reward, self.source.prompt), text, whole)
        return self.sharpness * jnp.where(score > 0, jnp.log(jnp.where(score > 0, score, 1.0)), jnp.where(score == 0, -jnp.inf, jnp.nan))


def at_end(reward: Any, lm: LanguageModel, prompt: str, *, max_tokens: int = 64, sharpness: float = 1.0) -> AtEnd:
    """A reward as a potential: a text weighs its score to the power `sharpness` when it ends, or is cut off. For `po.constrained`, beside others.

    Args:
      reward: a `Reward` (a verifier, an LM as judge, a reward model), a classifier, or a function of a `Text`, as `reason` takes them.
      lm: the model that writes.
      prompt: what its texts begin with.
      max_tokens: the largest number of tokens that the program will generate.
      sharpness: a positive power.

    Raises:
      TypeError: for another kind of reward.
      ValueError: for max_tokens below 1, or a sharpness that is not positive.

    >>> import jax, posterity as po
    >>> lm = po.load("abacus")
    >>> even = po.potentials.verifier(lambda text: text.strip()[-1:] in set("02468"))
    >>> potential = po.potentials.at_end(even, lm, "7*8=", max_tokens=3)
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "7*8=", potential, max_tokens=3, temperature=2.0), n=16)
    >>> all(text.strip()[-1:] in set("02468") for text in posterior.answers())
    True
    """
    if max_tokens < 1:
        raise ValueError(f"at_end: max_tokens must be at least 1, got {max_tokens}")
    if not sharpness > 0:
        raise ValueError(f"at_end: sharpness must be positive, got {sharpness}")
    return AtEnd(as_reward(reward), TextSource(lm, lm.prompt(prompt)), float(sharpness), max_tokens)


def _together(shared: tuple[Reward, Prompt], texts: Text, whole: Array) -> Float[Array, " n"]:
    """The scores of those of n texts that are whole; nothing is asked where none is."""
    (reward, prompt), n = shared, whole.shape[0]

    def scores() -> Array:
        return reward.score(reward.begin(prompt, n, texts.tokens.shape[1] - prompt.tokens.shape[0]), texts, whole)[0].astype(float)

    return jax.lax.cond(jnp.any(whole), scores, lambda: jnp.zeros(n, float))


@jax.custom_batching.custom_vmap
def _score(shared: tuple[Reward, Prompt], text: Text, whole: Array) -> Float[Array, ""]:
    """The score of one text; under `vmap` those of all of them, in one call."""
    return _together(shared, jax.tree.map(lambda x: x[None], text), whole[None])[0]


@_score.def_vmap
def _scores(size: int, batched: Any, shared: tuple[Reward, Prompt], text: Text, whole: Array) -> tuple[Float[Array, " n"], bool]:
    if any(jax.tree.leaves(batched[0])):  # rewards that differ from text to text
        each = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
        return jax.vmap(lambda *one: _together(one[0], jax.tree.map(lambda x: x[None], one[1]), one[2][None])[0], each)(shared, text, whole), True
    texts, whole = jax.tree.map(lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape)), (text, whole), (batched[1], batched[2]))
    return _together(shared, texts, whole), True
