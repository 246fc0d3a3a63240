"""How often one plain sample of a character-level model solves a problem of arithmetic, by level."""

import math
from functools import partial
from random import Random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from posterity.models.lm.llama import KeysValues, Llama
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.programs.arithmetic import LEVELS, check, is_held_out, random_prompt


class Accuracy(NamedTuple):
    """Solved texts out of the number sampled: every line legal and correct, ended by a number."""

    solved: int
    count: int

    @property
    def rate(self) -> float:
        """The fraction solved."""
        return self.solved / self.count

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's (1927) score interval, 95% by default."""
        centre = (self.solved + z * z / 2) / (self.count + z * z)
        radius = z * math.sqrt(self.count * self.rate * (1 - self.rate) + z * z / 4) / (self.count + z * z)
        return centre - radius, centre + radius


def accuracy(decoder: Llama, tokenizer: Tokenizer, *, level: int, count: int, seed: int) -> Accuracy:
    """Single-sample accuracy at temperature 1 over `count` prompts of a level, none of them trained on (but of level 1, which has 255 in all)."""
    prompts = unseen_prompts(seed, level, count)
    texts = sample_texts(jax.random.key(seed), decoder, tokenizer, prompts)
    return Accuracy(sum(text is not None and all(check(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)), count)


def unseen_prompts(seed: int, level: int, count: int) -> list[str]:
    """`count` prompts of a level that training leaves out (any prompts, for level 1)."""
    rng, prompts = Random(f"unseen/{seed}/{level}"), []
    while len(prompts) < count:
        prompt = random_prompt(rng, LEVELS[level])
        if level == 1 or is_held_out(prompt):
            prompts.append(prompt)
    return prompts


def sample_texts(key: Array, decoder: Llama, tokenizer: Tokenizer, prompts: list[str], *, steps: int = 96) -> list[str | None]:
    """One continuation of every prompt, sampled token by token at temperature 1; None where no end token came within `steps` tokens, the prompt's included."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    forced = np.full((len(ids), steps), -1, np.int32)
    for row, prompt_ids in zip(forced, ids, strict=True):
        row[: len(prompt_ids)] = prompt_ids
    sampled = np.asarray(_continue(*nnx.split(decoder), key, jnp.asarray(forced)))
    (end,) = tokenizer.end_ids
    texts = []
    for row, prompt_ids in zip(sampled.tolist(), ids, strict=True):
        new = row[len(prompt_ids) :]
        texts.append(tokenizer.decode(new[: new.index(end)]) if end in new else None)
    return texts


@partial(jax.jit, static_argnums=0)
def _continue(graph, weights, key: Array, forced: Array) -> Array:
    """Token ids [n, steps]: those of `forced` where they are not negative, sampled ones elsewhere."""
    decoder = nnx.merge(graph, weights)
    config, (n, steps) = decoder.config, forced.shape
    nothing = [_cache(config, 1, 0)] * config.num_layers

    def extend(carry, step):
        suffix, logits = carry
        position, key, given = step
        tokens = jnp.where(given < 0, jax.random.categorical(key, logits), given)
        hidden, suffix = decoder.decode(tokens, nothing, jnp.zeros((), jnp.int32), suffix, jnp.full(n, position))
        return (suffix, decoder.logits(hidden)), tokens

    start = [_cache(config, n, steps) for _ in range(config.num_layers)], jnp.zeros((n, config.vocab_size))
    _, tokens = jax.lax.scan(extend, start, (jnp.arange(steps), jax.random.split(key, steps), forced.T))
    return tokens.T


def _cache(config, n: int, length: int) -> KeysValues:
    empty = jnp.zeros((n, length, config.num_kv_heads, config.head_dim))
    return KeysValues(empty, empty)
