"""Trains Abacus, the embedded model: `python -m posterity.models.weights.train_abacus --minutes 50 --seed 0 --out DIR`.

A decoder of characters learns to rewrite arithmetic, one reduction a line, from canonical traces of random problems.
It sees no prompt of the held-out eighth, and no problem twice but by chance. The learning rate follows the clock, so
that a run ends on time on any machine; the data follow the seed.
"""

import json
import os
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from random import Random
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
import typer
from flax import nnx
from jax import Array

from posterity.models.lm import huggingface
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.programs.arithmetic import CHARACTERS, LEVELS, Level, is_held_out, random_prompt, trace
from posterity.models.weights import evaluate_abacus

END = len(CHARACTERS)  # the id of the end token; a character's id is its place in CHARACTERS
CONFIG = DecoderConfig(
    vocab_size=len(CHARACTERS) + 1, hidden_size=128, intermediate_size=352, num_layers=5, num_heads=4, num_kv_heads=4, head_dim=32, context_length=192
)
# Single operations on larger numbers are what the longer problems fail at, and short: almost half of all problems.
MIXTURE = {
    LEVELS[1]: 0.02,
    Level(1, 2, False, 9_999): 0.25,
    Level(1, 4, False, 99_999): 0.20,
    LEVELS[2]: 0.05,
    LEVELS[3]: 0.10,
    LEVELS[4]: 0.10,
    LEVELS[5]: 0.10,
    LEVELS[6]._replace(reach=0): 0.18,
}
BATCH_TOKENS = 2048
WIDTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 184)  # texts are batched with others of about their length
WARMUP, PEAK_MUON, PEAK_ADAM = 0.02, 2e-2, 3e-3


class Batch(NamedTuple):
    """Texts, padded with end tokens, and which of their predictions count: those after the prompt, to the first end token."""

    tokens: np.ndarray  # [texts, width + 1], int32
    weights: np.ndarray  # [texts, width], 0 or 1


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="training time, without the evaluation")] = 50.0,
    seed: Annotated[int, typer.Option(help="of the weights and of the problems")] = 0,
    out: Annotated[Path, typer.Option(help="where the model directory, its card and its loss curve go")] = Path("abacus"),
    save_every: Annotated[float, typer.Option(min=0.1, help="minutes between two saves")] = 5.0,
):
    """Trains for so many minutes, saving as it goes, then measures accuracy by level and writes the card."""
    decoder, record = train(minutes, seed, out, save_every)
    save(decoder, record, out)
    evaluate_abacus.main(out, count=1000, seed=1)


def train(minutes: float, seed: int, out: Path, save_every: float, clock: Callable[[], float] = time.perf_counter) -> tuple[Decoder, dict]:
    """The trained decoder and a record of the run. `clock` counts seconds."""
    graph, weights = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(seed)))
    optimizer = optimizer_of(weights)
    state, update = optimizer.init(weights), update_of(graph, optimizer)
    start, reported, saved, losses, curve, tokens, texts = clock(), 0.0, 0.0, [], [], 0, 0
    for step, batch in enumerate(prefetch(batches(seed)), 1):
        elapsed = (clock() - start) / 60
        weights, state, loss = update(weights, state, batch, rate(elapsed / minutes))
        losses.append(loss)
        tokens, texts = tokens + batch.weights.size, texts + len(batch.weights)
        if len(losses) > 2:
            losses[-3].block_until_ready()  # a schedule by the clock must not run ahead of the work
        if elapsed - reported >= min(0.5, minutes / 10) or elapsed >= minutes:
            mean = float(np.mean(jax.device_get(losses)))
            curve.append((step, round(elapsed, 2), round(mean, 5)))
            print(f"{elapsed:5.1f} of {minutes:g} min  step {step:6d}  {tokens / elapsed / 60:7,.0f} tokens/s  loss {mean:.4f} nats a character", flush=True)
            reported, losses = elapsed, []
        record = {"seed": seed, "minutes": round(elapsed, 1), "steps": step, "tokens": tokens, "texts": texts, "curve": curve}
        if elapsed >= minutes:
            return nnx.merge(graph, weights), record
        if elapsed - saved >= save_every:
            save(nnx.merge(graph, weights), record, out)
            saved = elapsed
    raise AssertionError("batches never end")


def save(decoder: Decoder, record: dict, out: Path) -> None:
    """Writes the model directory and, beside the weights, the record of their training."""
    huggingface.save(out, decoder, tokenizer())
    settings = {"mixture": list(MIXTURE.items()), "batch_tokens": BATCH_TOKENS, "peak_muon": PEAK_MUON, "peak_adam": PEAK_ADAM, "warmup": WARMUP}
    (out / "training.json").write_text(json.dumps(record | settings | machine()) + "\n", encoding="utf-8")


def tokenizer() -> Tokenizer:
    """One token a character, and `<end>`."""
    vocabulary = {character: i for i, character in enumerate(CHARACTERS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=""))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, end_ids=[END], eos_token="<end>")


def optimizer_of(weights) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on matrices, AdamW on the rest: in short probes the loss fell far faster than with AdamW alone."""
    kinds = jax.tree_util.tree_map_with_path(lambda path, x: "muon" if x.ndim == 2 and "embed" not in jax.tree_util.keystr(path) else "adam", weights)
    rules: dict[Hashable, optax.GradientTransformation] = {"muon": optax.contrib.muon(PEAK_MUON), "adam": optax.adamw(PEAK_ADAM, b2=0.98)}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.partition(rules, kinds))


def update_of(graph, optimizer):
    """One compiled training step; `scale` in 0..1 multiplies the peak learning rates."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, batch: Batch, scale: Array):
        loss, gradient = jax.value_and_grad(lambda weights: loss_of(nnx.merge(graph, weights), batch))(weights)
        change, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, jax.tree.map(lambda x: scale * x, change)), state, loss

    return update


def loss_of(decoder: Decoder, batch: Batch) -> Array:
    """Mean cross-entropy of the characters after the prompt, nats."""
    hidden, _ = decoder(jnp.asarray(batch.tokens[:, :-1]))
    losses = optax.softmax_cross_entropy_with_integer_labels(decoder.logits(hidden), batch.tokens[:, 1:])
    return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights)


def rate(done: float) -> np.float32:
    """Linear warm-up, then half a cosine down to zero, by the fraction of the run that is done."""
    done = min(done, 1.0)
    return np.float32(done / WARMUP if done < WARMUP else 0.5 + 0.5 * np.cos(np.pi * (done - WARMUP) / (1 - WARMUP)))


def batches(seed: int) -> Iterator[Batch]:
    """Training data without end: every batch holds about `BATCH_TOKENS` tokens of texts of like length."""
    rng, waiting = Random(f"training/{seed}"), defaultdict(list)
    while True:
        (level,) = rng.choices(list(MIXTURE), list(MIXTURE.values()))
        prompt = random_prompt(rng, level)
        # Level 1 is too small to hold anything out.
        if is_held_out(prompt) and level != LEVELS[1]:
            continue
        text = prompt + "\n".join(trace(prompt))
        width = next(width for width in WIDTHS if width >= len(text))
        waiting[width].append((len(prompt), text))
        if len(waiting[width]) == BATCH_TOKENS // width:
            yield pack(waiting.pop(width), width)


def pack(texts: list[tuple[int, str]], width: int) -> Batch:
    """A batch of texts, each with the length of its prompt."""
    tokens = np.full((len(texts), width + 1), END, np.int32)
    weights = np.zeros((len(texts), width), np.float32)
    for row, (prompt_length, text) in enumerate(texts):
        tokens[row, : len(text)] = [CHARACTERS.index(character) for character in text]
        weights[row, prompt_length - 1 : len(text)] = 1.0
    return Batch(tokens, weights)


def prefetch(items: Iterator[Batch], ahead: int = 8) -> Iterator[Batch]:
    """The same items, made by a thread in the background."""
    queue: Queue[Batch] = Queue(ahead)

    def fill():
        for item in items:
            queue.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield queue.get()


def machine() -> dict:
    """What a run was made on and with, for its record."""
    return {
        "cpu_minutes": round(time.process_time() / 60, 1),
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {jax.default_backend()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy", "tokenizers")},
    }


if __name__ == "__main__":
    typer.run(main)
