"""Measures Abacus and writes its card: `python -m posterity.models.weights.evaluate_abacus DIR`, which training ends with.

What is measured is how often one plain sample, at temperature 1, solves a problem: every line legal and correct.
"""

import importlib.util
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from flax import nnx
from jax import Array

from posterity.models.lm import huggingface
from posterity.models.lm.cache import CachedDecoder
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.programs.arithmetic import LEVELS, check, is_held_out, random_prompt, trace
from posterity.models.weights.abacus_card import card, plot_loss


class Accuracy(NamedTuple):
    """Solved problems out of those tried."""

    solved: int
    count: int

    @property
    def rate(self) -> float:
        """The fraction solved."""
        return self.solved / self.count

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's (1927) score interval for the probability of a solution, 95% by default."""
        centre = (self.solved + z * z / 2) / (self.count + z * z)
        radius = z * math.sqrt(self.count * self.rate * (1 - self.rate) + z * z / 4) / (self.count + z * z)
        return centre - radius, centre + radius


def main(
    directory: Annotated[Path, typer.Argument(help="the model directory that training wrote")],
    count: Annotated[int, typer.Option(min=1, help="problems of each level")] = 1000,
    seed: Annotated[int, typer.Option(help="of problems and samples")] = 1,
):
    """Measures accuracy by level and writes the card, and the loss curve if matplotlib is installed, beside the directory."""
    decoder, tokenizer = huggingface.load(directory)
    results = {}
    for level in LEVELS:
        results[level] = accuracy(decoder, tokenizer, level=level, count=count, seed=seed)
        low, high = results[level].interval()
        print(f"level {level}: {results[level].rate:.3f} solved by one sample (95%: {low:.3f} to {high:.3f})", flush=True)
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(decoder, nnx.Param)))
    size = (directory / "model.safetensors").stat().st_size
    picture = directory.with_name(f"{directory.name}-loss.png") if importlib.util.find_spec("matplotlib") else None
    if picture:
        plot_loss(record["curve"], picture)
    text = card(decoder.config, parameters, size, record, results, seed, examples(decoder, tokenizer, seed), picture and picture.name)
    directory.with_name(f"{directory.name}.md").write_text(text, encoding="utf-8")


def accuracy(decoder: Decoder, tokenizer: Tokenizer, *, level: int, count: int, seed: int) -> Accuracy:
    """Single-sample accuracy over `count` problems of a level that training left out (any problems of level 1, see `unseen_prompts`)."""
    prompts = unseen_prompts(seed, level, count)
    texts = sample_texts(jax.random.key(seed), decoder, tokenizer, prompts)
    return Accuracy(sum(text is not None and all(check(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)), count)


def unseen_prompts(seed: int, level: int, count: int) -> list[str]:
    """`count` prompts of a level that training leaves out. Level 1 has 255 prompts in all, so it leaves none of them out."""
    rng, prompts = Random(f"unseen/{seed}/{level}"), []
    while len(prompts) < count:
        prompt = random_prompt(rng, LEVELS[level])
        if level == 1 or is_held_out(prompt):
            prompts.append(prompt)
    return prompts


def examples(decoder: Decoder, tokenizer: Tokenizer, seed: int) -> list[tuple[str, str | None, bool]]:
    """One sample for one problem of every level: prompt, text, and whether it is right."""
    prompts = [unseen_prompts(seed + 1, level, 1)[0] for level in LEVELS]
    texts = sample_texts(jax.random.key(seed + 1), decoder, tokenizer, prompts)
    return [(prompt, text, text is not None and all(check(prompt, text))) for prompt, text in zip(prompts, texts, strict=True)]


def sample_texts(key: Array, decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str | None]:
    """One solution of every prompt, sampled token by token at temperature 1; None where no end token came while the text could still be right."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    forced = np.full((len(ids), max(longest_text(prompt) for prompt in prompts)), -1, np.int32)
    for row, prompt_ids in zip(forced, ids, strict=True):
        row[: len(prompt_ids)] = prompt_ids
    sampled = np.asarray(continued(*nnx.split(decoder), key, jnp.asarray(forced)))
    (end,) = tokenizer.end_ids
    texts = []
    for row, prompt_ids in zip(sampled.tolist(), ids, strict=True):
        new = row[len(prompt_ids) :]
        texts.append(tokenizer.decode(new[: new.index(end)]) if end in new else None)
    return texts


def longest_text(prompt: str) -> int:
    """A bound on the tokens of prompt, right solution and end token: every line is shorter than the one before."""
    lines = len(trace(prompt))
    return len(prompt) + sum(len(prompt) - line for line in range(1, lines + 1))


@partial(jax.jit, static_argnums=0)
def continued(graph: nnx.GraphDef, weights: nnx.State, key: Array, forced: Array) -> Array:
    """Token ids [n, steps]: those of `forced` where they are not negative, sampled ones elsewhere."""
    model, (n, steps) = CachedDecoder(nnx.merge(graph, weights)), forced.shape

    def extend(carry, step):
        memory, logits = carry
        key, given = step
        tokens = jnp.where(given < 0, jax.random.categorical(key, logits), given)
        logits, memory = model.advance(memory, tokens, jnp.ones(n, bool))
        return (memory, logits), tokens

    # The prompts differ, so nothing is shared: each is the beginning of its own text, behind a prompt of no tokens.
    logits, memory = model.start(jnp.zeros(1, jnp.int32), jnp.zeros((), jnp.int32), n, steps)
    _, tokens = jax.lax.scan(extend, (memory, logits), (jax.random.split(key, steps), forced.T))
    return tokens.T


if __name__ == "__main__":
    typer.run(main)
