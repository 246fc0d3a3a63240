"""Trains the reward model of Abacus: `python -m posterity.models.weights.train_abacus_prm --seed 0 --out DIR --work DIR`.

Abacus solves random problems, an exact checker says of every beginning of its texts whether it is still right, and a decoder that
is Abacus below, with two layers and a head for that one label on top, learns to say so. What was sampled and trained is kept in the working directory,
so that the command goes on where it was stopped. The data follow the seed alone.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from flax import nnx
from jax import Array

from posterity.models import weights
from posterity.models.lm import huggingface
from posterity.models.lm.decoder import Decoder
from posterity.models.programs.arithmetic import LEVELS, is_held_out, random_prompt
from posterity.models.weights import evaluate_abacus_prm
from posterity.models.weights.abacus_rollouts import STEP_END, WIDTHS, Rollouts, labelled, sampled, width_of
from posterity.models.weights.train_abacus import machine, optimizer_of, rate, tokenizer

LABEL = "right"  # the logit that the text, as it stands, is the beginning of a right solution
MIXTURE = {1: 0.02, 2: 0.05, 3: 0.15, 4: 0.15, 5: 0.25, 6: 0.38}  # levels, by their share of the problems
PART = 2048  # texts, sampled between two saves
BATCH_TOKENS = 2048
NEW_LAYERS = 2  # above those of Abacus: only there is it known what Abacus expected in a token's place, to be compared with what it wrote
AUXILIARY = 0.25  # weight of the second task
SAVE_EVERY = 60  # seconds


def main(
    out: Annotated[Path, typer.Option(help="where the model directory goes, and its card and picture beside it")] = Path("abacus-prm"),
    work: Annotated[Path, typer.Option(help="what is kept between two runs of this command: texts, and the state of the training")] = Path("abacus-prm-work"),
    texts: Annotated[int, typer.Option(min=1, help="how many texts Abacus writes")] = 8192,
    epochs: Annotated[int, typer.Option(min=1, help="how often each is seen")] = 3,
    seed: Annotated[int, typer.Option(help="of problems, texts, order, and the head's first weights")] = 0,
    measured: Annotated[int, typer.Option(min=80, help="texts of each level that it is measured on")] = 800,
):
    """Samples, labels, trains, then measures and writes the card."""
    abacus, _ = huggingface.load(Path(weights.__file__).parent / "abacus")
    work.mkdir(parents=True, exist_ok=True)
    rows, seconds = sampled_texts(abacus, texts, seed, work)
    rollouts = labelled(rows)
    decoder, record = train(warm_started(abacus, seed), rollouts, surprises(abacus, rollouts), epochs, seed, work)
    save(decoder, record | {"seed": seed, "texts": texts, "epochs": epochs, "sampling_seconds": round(seconds)}, out)
    evaluate_abacus_prm.main(out, count=measured, seed=1)


def sampled_texts(abacus: Decoder, texts: int, seed: int, work: Path) -> tuple[list[tuple[str, list[int]]], float]:
    """So many texts of Abacus for problems of the mixture, none of them held out: prompts, and tokens after them; and the seconds that sampling took."""
    found, seconds = [], 0.0
    for part in range(-(-texts // PART)):
        path = work / f"texts-{seed}-{part:03d}.json"
        if not path.exists():
            start, rng = time.perf_counter(), Random(f"reward/{seed}/{part}")
            prompts = [training_prompt(rng) for _ in range(min(PART, texts - part * PART))]
            solutions = sampled(jax.random.fold_in(jax.random.key(seed), part), abacus, prompts)
            taken = time.perf_counter() - start
            _write(path, json.dumps({"seconds": taken, "texts": list(zip(prompts, solutions, strict=True))}))
            print(f"texts {part * PART + len(prompts):6d} of {texts}  {taken:5.1f} s", flush=True)
        kept = json.loads(path.read_text(encoding="utf-8"))
        found += [(prompt, solution) for prompt, solution in kept["texts"]]
        seconds += kept["seconds"]
    return found, seconds


def training_prompt(rng: Random) -> str:
    """A problem of the mixture that is not held out (of the easiest level none is)."""
    (level,) = rng.choices(list(MIXTURE), list(MIXTURE.values()))
    while is_held_out(prompt := random_prompt(rng, LEVELS[level])) and level > 1:
        pass
    return prompt


def warm_started(abacus: Decoder, seed: int) -> Decoder:
    """Abacus with fresh layers on top, which at first pass on what they are given, and a head for one label in the place of the one over the vocabulary."""
    layers = abacus.config.num_layers + NEW_LAYERS
    decoder = Decoder(dataclasses.replace(abacus.config, num_layers=layers, tied_head=False, labels=(LABEL,), head_bias=True), rngs=nnx.Rngs(seed))
    decoder.embed.embedding[...] = abacus.embed.embedding
    for own, known in ((decoder.norm, abacus.norm), *zip(decoder.layers, abacus.layers, strict=False)):
        nnx.update(own, jax.tree.map(jnp.copy, nnx.state(known)))  # copies, as training reuses the memory of what it starts from
    for layer in decoder.layers[-NEW_LAYERS:]:
        for last in (layer.output, layer.down):
            last.kernel[...] = jnp.zeros_like(last.kernel[...])
    return decoder


class Learner(nnx.Module):
    """The decoder with a second head, which training alone has use for."""

    def __init__(self, decoder: Decoder, *, rngs: nnx.Rngs):
        self.decoder, self.surprise = decoder, nnx.Linear(decoder.config.hidden_size, 2, rngs=rngs)


def is_trained(path: tuple, _: object, *, old: int) -> bool:
    """Whether a parameter is trained: those of the layers from number `old` on, of the norm after them, and of the heads. The rest stays Abacus'."""
    return path[0] == "surprise" or path[1] in ("norm", "head") or (path[1] == "layers" and path[2] >= old)


def surprises(abacus: Decoder, rollouts: Rollouts) -> np.ndarray:
    """What the second head learns, [texts, widest, 2], float32: how improbable Abacus found each token that it wrote, and all of them so far.

    In nats, at most 10 a token, as the logarithm of one plus that.
    """

    @nnx.jit
    def improbable(abacus, tokens):
        log_probs = jax.nn.log_softmax(abacus.logits(abacus(tokens[:, :-1])[0]))
        return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]

    found, widths = np.zeros((*rollouts.tokens.shape, 2), np.float32), np.array([width_of(int(length)) for length in rollouts.lengths])
    for width in WIDTHS:
        rows, size = np.flatnonzero(widths == width), BATCH_TOKENS // width
        for first in range(0, len(rows), size):
            some = np.resize(rows[first : first + size], size)  # the last batch repeats itself
            own = np.minimum(np.asarray(improbable(abacus, rollouts.tokens[some, :width])), 10.0) * (rollouts.counts[some, 1:width] > 0)
            found[some, 1:width] = np.log1p(np.stack([own, np.cumsum(own, axis=1)], axis=-1))
    return found


def train(decoder: Decoder, rollouts: Rollouts, surprise: np.ndarray, epochs: int, seed: int, work: Path) -> tuple[Decoder, dict]:
    """The trained decoder and a record of the run; goes on from the working directory's state, if it holds one of this very run."""
    learner = Learner(decoder, rngs=nnx.Rngs(seed + 1))
    graph, start, kept_as_is = nnx.split(learner, partial(is_trained, old=decoder.config.num_layers - NEW_LAYERS), ...)
    optimizer = optimizer_of(start)
    update = update_of(graph, optimizer, kept_as_is)
    plan = list(batches(rollouts.lengths, epochs, seed))
    run = f"{seed} {epochs} {len(rollouts.lengths)} {len(plan)}"
    kept = _restored(work / "state.npz", run, (start, optimizer.init(start)))
    record: dict[str, Any]
    (parameters, state), record = kept or ((start, optimizer.init(start)), {"steps": 0, "tokens": 0, "minutes": 0.0, "curve": []})
    began, saved, losses = time.perf_counter() - 60 * record["minutes"], time.perf_counter(), []
    for step in range(record["steps"], len(plan)):
        width, rows = plan[step]
        batch = tuple(jnp.asarray(x[rows, :width]) for x in (rollouts.tokens, rollouts.right, rollouts.counts, surprise))
        parameters, state, loss = update(parameters, state, batch, rate(step / len(plan)))
        losses.append(float(loss))
        record |= {"steps": step + 1, "tokens": record["tokens"] + width * len(rows), "minutes": (time.perf_counter() - began) / 60}
        if (step + 1) % 25 == 0 or step + 1 == len(plan):
            record["curve"] = [*record["curve"], (step + 1, round(record["minutes"], 2), round(float(np.mean(losses)), 5))]
            print(f"step {step + 1:5d} of {len(plan)}  {record['minutes']:5.2f} min  loss {np.mean(losses):.4f}", flush=True)
            losses = []
            if time.perf_counter() - saved > SAVE_EVERY:
                _keep(work / "state.npz", run, (parameters, state), record)
                saved = time.perf_counter()
    _keep(work / "state.npz", run, (parameters, state), record)
    return nnx.merge(graph, parameters, kept_as_is).decoder, record


def update_of(graph, optimizer: optax.GradientTransformation, others):
    """One compiled training step, which leaves the `others` among the weights as they are; `scale` multiplies the peak learning rates."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, others, batch: tuple[Array, ...], scale: Array):
        loss, gradient = jax.value_and_grad(lambda weights: loss_of(nnx.merge(graph, weights, others), *batch))(weights)
        change, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, jax.tree.map(lambda x: scale * x, change)), state, loss

    return lambda weights, state, batch, scale: update(weights, state, others, batch, scale)


def loss_of(learner: Learner, tokens: Array, right: Array, counts: Array, surprise: Array) -> Array:
    """Mean cross-entropy of the labels, nats, and a part of the mean squared error of the second task."""
    hidden, _ = learner.decoder(tokens)
    losses = optax.sigmoid_binary_cross_entropy(learner.decoder.logits(hidden)[..., 0], right)
    losses += AUXILIARY * jnp.sum((learner.surprise(learner.decoder.norm(hidden)) - surprise) ** 2, axis=-1)
    return jnp.sum(losses * counts) / jnp.sum(counts)


def batches(lengths: np.ndarray, epochs: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """A width, and which texts make a batch of it, epoch by epoch in random order; what does not fill a batch is left out of that epoch."""
    rng = np.random.default_rng(seed)
    widths = np.array([width_of(int(length)) for length in lengths])
    for _ in range(epochs):
        found = []
        for width in WIDTHS:
            rows, size = rng.permutation(np.flatnonzero(widths == width)), max(BATCH_TOKENS // width, 1)
            found += [(width, rows[first : first + size]) for first in range(0, len(rows) - size + 1, size)]
        yield from (found[i] for i in rng.permutation(len(found)))


def save(decoder: Decoder, record: dict, out: Path) -> None:
    """Writes the model directory and, beside the weights, the record of their training."""
    huggingface.save(out, decoder, tokenizer())
    settings = {"mixture": list(MIXTURE.items()), "batch_tokens": BATCH_TOKENS, "step_end": STEP_END, "auxiliary": AUXILIARY, "new_layers": NEW_LAYERS}
    _write(out / "training.json", json.dumps(record | {"minutes": round(record["minutes"], 1)} | settings | machine()) + "\n")


def _keep(path: Path, run: str, tree, record: dict) -> None:
    leaves: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    half = path.with_suffix(".half.npz")
    np.savez(half, run=run, record=json.dumps(record), **leaves)
    os.replace(half, path)


def _restored(path: Path, run: str, like) -> tuple | None:
    if not path.exists():
        return None
    with np.load(path) as kept:
        if str(kept["run"]) != run:
            raise ValueError(f"{path} is of another run ({kept['run']}, not {run}); give another --work, or remove it")
        leaves, tree = jax.tree.flatten(like)
        return jax.tree.unflatten(tree, [jnp.asarray(kept[f"leaf{i}"]) for i in range(len(leaves))]), json.loads(str(kept["record"]))


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(".half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


if __name__ == "__main__":
    typer.run(main)
