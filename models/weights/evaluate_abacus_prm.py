"""Measures the reward model of Abacus and writes its card: `python -m posterity.models.weights.evaluate_abacus_prm DIR`, which training ends with.

What is measured: how well its score tells right from wrong on texts that Abacus writes for problems which training left out, how often a
score means what it says, and how both suffer when `degraded` makes it worse.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from flax import nnx
from jaxtyping import Bool, Float

from posterity.models import weights
from posterity.models.lm import huggingface
from posterity.models.lm.heads import token_scores
from posterity.models.potentials.degraded import normal_of, shifted
from posterity.models.programs.arithmetic import LEVELS
from posterity.models.weights.abacus_prm_card import card, plot, shown
from posterity.models.weights.abacus_rollouts import labelled, sampled, step_ends
from posterity.models.weights.evaluate_abacus import unseen_prompts

NOISES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # nats
BIASES = (-0.3, -0.1, 0.1, 0.3)  # nats a token
BINS = 10
FEWEST = 10  # wrong ones: an AUROC of fewer says nothing
BATCH = 128  # texts
TEXTS = 8  # for each problem


class Steps(NamedTuple):
    """The ends of the steps of many texts, one after the other."""

    scores: Float[np.ndarray, " steps"]
    right: Bool[np.ndarray, " steps"]  # the text up to here is the beginning of a right solution
    before: Bool[np.ndarray, " steps"]  # it was at the end of the step before
    last: Bool[np.ndarray, " steps"]  # the text ends here
    problem: np.ndarray  # [steps]: which problem its text is for; in order
    normal: Float[np.ndarray, " steps"]  # what `degraded` makes noise of
    generated: np.ndarray  # [steps]: tokens so far, without the prompt

    def where(self, which: Bool[np.ndarray, " steps"]) -> "Steps":
        return Steps(*(x[which] for x in self))

    def degraded(self, noise: float, length_bias: float = 0.0) -> "Steps":
        """The same steps by the scores of the degraded reward."""
        return self._replace(scores=np.asarray(shifted(jnp.asarray(self.scores), jnp.asarray(noise * self.normal + length_bias * self.generated))))


class Level(NamedTuple):
    """What was measured on one level."""

    solved: float  # share of texts that are right as a whole
    steps: float | None  # AUROC over all steps; None where there are too few wrong ones
    hard: float | None  # over steps that go on from a text that was still right
    interval: tuple[float, float]  # 95%, of `hard`, over problems
    texts: float | None  # over the ends of texts
    rivals: float | None  # over the ends of texts for the same problem, which a search has to tell apart
    rivals_interval: tuple[float, float]
    means: tuple[float, float]  # the mean score at the ends of right texts and of wrong ones


def main(
    directory: Annotated[Path, typer.Argument(help="the model directory that training wrote")],
    count: Annotated[int, typer.Option(min=80, help="texts of each level, eight for a problem")] = 800,
    seed: Annotated[int, typer.Option(help="of problems and texts")] = 1,
):
    """Measures, and writes the card, and its picture if matplotlib is installed, beside the directory."""
    decoder, _ = huggingface.load(directory)
    abacus, _ = huggingface.load(Path(weights.__file__).parent / "abacus")
    steps = {level: steps_of(decoder, abacus, level=level, count=count, seed=seed) for level in LEVELS}
    levels = {level: measured(steps[level]) for level in LEVELS}
    for level, found in levels.items():
        figures = f"AUROC after a right step {shown(found.hard)}, of texts {shown(found.texts)}, for one problem {shown(found.rivals)}"
        print(f"level {level}: {found.solved:.3f} solved; {figures}", flush=True)
    together = pooled([steps[level] for level in LEVELS if level > 1])
    noise = {level: [auroc_of(steps[level].degraded(noise)) for noise in NOISES] for level in LEVELS if levels[level].hard is not None}
    bias = {level: [auroc_of(steps[level].degraded(0.0, bias)) for bias in BIASES] for level in noise}
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(decoder, nnx.Param)))
    size = (directory / "model.safetensors").stat().st_size
    picture = directory.with_name(f"{directory.name}.png") if importlib.util.find_spec("matplotlib") else None
    bins = calibration(together)
    if picture:
        plot(record["curve"], bins, NOISES, noise, picture)
    worse, run = ((NOISES, noise), (BIASES, bias)), (count, seed, FEWEST)
    text = card(decoder.config, parameters, size, record, levels, bins, error(bins), *worse, run, picture and picture.name)
    directory.with_name(f"{directory.name}.md").write_text(text, encoding="utf-8")


def steps_of(decoder, abacus, *, level: int, count: int, seed: int) -> Steps:
    """The steps of `count` texts of Abacus, TEXTS of them for each problem, of problems of a level that training left out."""
    prompts = [prompt for prompt in unseen_prompts(seed, level, count // TEXTS) for _ in range(TEXTS)]
    rollouts = labelled(list(zip(prompts, sampled(jax.random.fold_in(jax.random.key(seed), level), abacus, prompts), strict=True)))
    tokens, (n, width) = rollouts.tokens, rollouts.tokens.shape
    read = nnx.jit(lambda decoder, tokens: jax.nn.sigmoid(token_scores(decoder, tokens)[..., 0]))
    padded = np.pad(tokens, ((0, -n % BATCH), (0, 0)))
    scores = np.concatenate([np.asarray(read(decoder, jnp.asarray(padded[i : i + BATCH]))) for i in range(0, n, BATCH)])[:n]
    last = np.arange(width) == rollouts.lengths[:, None] - 1
    ends = (rollouts.counts > 0) & (step_ends(tokens) | last)
    text, place = np.nonzero(ends)
    right = rollouts.right[text, place]
    first = np.r_[True, text[1:] != text[:-1]]
    prompt_lengths = np.array([len(prompt) for prompt in prompts])
    normal = np.asarray(normal_of(jnp.asarray(tokens[text]), jnp.asarray(place + 1), jnp.zeros((), jnp.uint32)))
    return Steps(scores[text, place], right, first | np.r_[True, right[:-1]], last[text, place], text // TEXTS, normal, place + 1 - prompt_lengths[text])


def measured(steps: Steps) -> Level:
    """The figures of one level."""
    ends, hard = steps.where(steps.last), steps.where(steps.before)
    of_right, of_wrong = (float(np.mean(ends.scores[ends.right == right])) if (ends.right == right).any() else float("nan") for right in (True, False))
    return Level(
        solved=float(np.mean(ends.right)),
        steps=auroc(steps.scores, steps.right),
        hard=auroc_of(steps),
        interval=interval(hard, auroc_of),
        texts=auroc(ends.scores, ends.right),
        rivals=auroc_of_rivals(ends),
        rivals_interval=interval(ends, auroc_of_rivals),
        means=(of_right, of_wrong),
    )


def auroc_of(steps: Steps) -> float | None:
    """The AUROC over steps that go on from a text that was still right: only there is something to find out."""
    return auroc(steps.scores[steps.before], steps.right[steps.before])


def auroc(scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> float | None:
    """The chance that a right one scores above a wrong one, ties half; None when there are fewer than `FEWEST` of either.

    >>> auroc(np.array([0.9] * 10 + [0.1] * 5 + [0.9] * 5), np.array([True] * 10 + [False] * 10))
    0.75
    """
    wrong = np.sort(scores[~right])
    if min(len(wrong), int(right.sum())) < FEWEST:
        return None
    below = np.searchsorted(wrong, scores[right], "left") + np.searchsorted(wrong, scores[right], "right")
    return float(np.mean(below) / (2 * len(wrong)))


def auroc_of_rivals(ends: Steps) -> float | None:
    """The chance that a right text scores above a wrong one for the same problem, over all such pairs; None for too few."""
    won, pairs, wrong = 0.0, 0, 0
    borders = np.flatnonzero(np.diff(ends.problem)) + 1
    for scores, right in zip(np.split(ends.scores, borders), np.split(ends.right, borders), strict=True):
        each = scores[right][:, None] - scores[~right]
        won, pairs, wrong = won + np.sum((each > 0) + 0.5 * (each == 0)), pairs + each.size, wrong + (each.size > 0) * int(np.sum(~right))
    return float(won / pairs) if wrong >= FEWEST else None


def interval(steps: Steps, figure: Callable[[Steps], float | None], draws: int = 200) -> tuple[float, float]:
    """95% of a figure over resamples of the problems: what belongs to one problem goes together."""
    rng, n = np.random.default_rng(0), int(steps.problem.max()) + 1
    first, found = np.searchsorted(steps.problem, np.arange(n + 1)).tolist(), []
    for _ in range(draws):
        rows = [np.arange(first[i], first[i + 1]) for i in rng.integers(n, size=n).tolist()]
        again = steps.where(np.concatenate(rows))._replace(problem=np.repeat(np.arange(n), [len(own) for own in rows]))
        found.append(figure(again))
    known = [x for x in found if x is not None]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
    return float(low), float(high)


def pooled(steps: Sequence[Steps]) -> Steps:
    """Steps of several levels as one."""
    return Steps(*(np.concatenate(parts) for parts in zip(*steps, strict=True)))


def calibration(steps: Steps) -> list[tuple[int, float, float]]:
    """Of each tenth of the scores' range that has any: how many steps, their mean score, and the share of them that are right."""
    place = np.minimum((steps.scores * BINS).astype(int), BINS - 1)
    inside: Callable[[int], np.ndarray] = lambda i: place == i  # noqa: E731
    return [(int(inside(i).sum()), float(steps.scores[inside(i)].mean()), float(steps.right[inside(i)].mean())) for i in range(BINS) if inside(i).any()]


def error(bins: Sequence[tuple[int, float, float]]) -> float:
    """The expected calibration error: how far the scores of a bin are from the share that is right, on average over steps."""
    total = sum(n for n, _, _ in bins)
    return sum(n * abs(score - right) for n, score, right in bins) / total


if __name__ == "__main__":
    typer.run(main)
