"""Rewards made worse by a known amount, so that what search does with a bad reward can be studied."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.scipy.special import ndtri
from jaxtyping import Bool, Float, Int, UInt

from posterity.models.lm.language_model import Prompt
from posterity.models.lm.text import Text
from posterity.models.potentials.reward import Reward, as_reward, mark, rewind


@struct.dataclass
class Degraded:
    """A reward whose logit is off by noise that each text has once and for all, and by its length; see `degraded`."""

    inner: Reward
    noise: Float[Array, ""]  # nats, standard deviation
    length_bias: Float[Array, ""]  # nats a generated token
    seed: UInt[Array, ""]

    def begin(self, prompt: Prompt, n: int, steps: int) -> Any:
        return self.inner.begin(prompt, n, steps)

    def score(self, state: Any, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], Any]:
        scores, state = self.inner.score(state, texts, where)
        shift = self.noise * normal_of(texts.tokens, texts.length, self.seed) + self.length_bias * texts.generated
        return shifted(scores, shift), state

    def select(self, state: Any, ancestors: Int[Array, " m"]) -> Any:
        return self.inner.select(state, ancestors)

    def mark(self, state: Any) -> Any:
        return mark(self.inner, state)

    def rewind(self, state: Any, marks: Any) -> Any:
        return rewind(self.inner, state, marks)


def degraded(reward: Any, *, noise: float = 0.0, length_bias: float = 0.0, seed: int = 0) -> Degraded:
    """The reward with its logit changed: by a normal number that belongs to the text, and by so much for each generated token.

    The noise is no draw: it is a function of the text's tokens and the seed. So the same text has the same score whenever and by whomever it is
    scored, and a search cannot average the noise away, only fall for it. Noise makes the reward less able to tell right from wrong; a bias makes
    it love long texts (or short ones), which a search finds. With neither it is the reward as it was, to the bit. Scores of 0 and 1 stay.

    Args:
      reward: what `po.reason` takes: a reward, a classifier, or a function of a text.
      noise: standard deviation of the normal number, nats.
      length_bias: nats a generated token, of either sign.
      seed: another one is another wrong reward of the same quality.

    Raises:
      TypeError: when `reward` is none.
      ValueError: for noise that is negative, numbers that are not finite, or a seed outside 0..2^32 - 1.

    >>> import jax, posterity as po
    >>> lm, reward = po.load("abacus"), po.load("abacus-prm")
    >>> worse = po.degraded(reward, noise=2.0, length_bias=0.1)
    >>> posterior = po.smc(jax.random.key(0), po.reason(lm, "7*8=", reward=worse, max_steps=2), n=4)
    >>> list(posterior.answers())
    ['56']
    """
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"degraded: noise must be a finite number of nats, at least 0, got {noise}")
    if not math.isfinite(length_bias):
        raise ValueError(f"degraded: length_bias must be a finite number of nats a token, got {length_bias}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"degraded: seed must lie in 0..{2**32 - 1}, got {seed}")
    return Degraded(as_reward(reward), jnp.asarray(noise, jnp.float32), jnp.asarray(length_bias, jnp.float32), jnp.asarray(seed, jnp.uint32))


def shifted(scores: Float[Array, "*n"], shift: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Scores in [0, 1] with `shift` nats added to their logits."""
    moved = jax.nn.sigmoid(jnp.log(scores) - jnp.log1p(-scores) + shift)
    return jnp.where(shift == 0, scores, moved)


def normal_of(tokens: Int[Array, "*n capacity"], length: Int[Array, "*n"], seed: UInt[Array, ""]) -> Float[Array, "*n"]:
    """A standard normal number for each text, the first `length` of its tokens: the same for the same tokens and seed, else as if drawn anew.

    Each token has a pseudo-random word for each place, and the words of a text are added up (Zobrist 1970, "A new hashing method").
    """
    place = jnp.arange(tokens.shape[-1], dtype=jnp.uint32)
    words = _mixed(tokens.astype(jnp.uint32) ^ _mixed(place ^ _mixed(seed.astype(jnp.uint32) + jnp.uint32(1))))
    total = jnp.sum(jnp.where(place < length[..., None].astype(jnp.uint32), words, 0), axis=-1, dtype=jnp.uint32)
    return ndtri((_mixed(total) >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25)


def _mixed(x: UInt[Array, "*n"]) -> UInt[Array, "*n"]:
    """A bijection of words after which every bit depends on all: the finaliser of MurmurHash3 (Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
