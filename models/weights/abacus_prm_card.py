"""The model card of the reward model of Abacus, written from the record of its training and the measurement that followed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posterity.models.lm.config import DecoderConfig
from posterity.models.weights.abacus_card import thinned

if TYPE_CHECKING:
    from posterity.models.weights.evaluate_abacus_prm import Level

CARD = """\
# Abacus' reward model

A process reward model of {parameters:,} parameters for the texts of [Abacus](abacus.md): after every token a number in [0, 1],
its probability that the text so far is right. It is imperfect, by the amount that this card measures: so it can be followed too far.

    posterior = po.smc(key, po.reason(po.load("abacus"), "47+6*(12-8)=", reward=po.load("abacus-prm")), n=64)

`po.load("abacus-prm")` loads it as a reward, `po.load_classifier("hf:DIR")` its directory as a classifier. That is an ordinary
Hugging Face directory of a Llama for token classification with the one label `right` (config.json, model.safetensors, tokenizer.json).

## What a score means
**Right so far**, not success to go. The label of a beginning of a text is 1 if some right solution begins like that: at the end of
a line, if every line is one legal reduction of the line before; at the end token, if the last one is a number too. How likely Abacus is to
go wrong later is no part of it. So a score says what an exact checker would, as well as the model can tell; at the end of a text both
meanings are the same; and once a text is wrong, it stays wrong.

- **Input**: Abacus' prompt and text, in its tokens. It is read at the end of a step (a line break or the end token), and was trained,
  less, on what lies within a step, so that a step cut short by a limit has a score too.
- **Not for** texts of another model, or in another notation.

## How well it tells right from wrong
AUROC: the chance that what is right scores above what is wrong, of the same level. {count:,} texts of a level, eight for each problem, sampled at
temperature 1 (seed {seed}); no prompt was trained on (but for level 1, see Abacus' card). *After a right step* leaves out the steps of texts
that had gone wrong before. *Rivals* are whole texts for the same problem, which is what a search has to choose between: there the difficulty
of the problem gives nothing away, and a figure near one half means that the model knows which problems Abacus fails at rather than which of
two texts is right. 95% intervals over problems. A dash stands where there are fewer than {fewest} wrong ones.

| level | right texts | steps after a right step | 95% interval | all steps | whole texts | rivals | 95% interval | mean score of right texts | of wrong |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{levels}

## Calibration
The ends of steps of levels 2 to 6 together, by score. The expected calibration error over these bins is {error:.3f}.
{picture}
| steps | mean score | right |
| ---: | ---: | ---: |
{bins}

## Made worse
`po.degraded(reward, noise=..., length_bias=...)` shifts the logit by a normal number of standard deviation `noise` (nats), which belongs to the text once
and for all, and by `length_bias` nats a generated token. AUROC after a right step:

| level | {noises} |
| ---: |{rule}
{degraded}

and with a bias by length alone:

| level | {biases} |
| ---: |{bias_rule}
{biased}

## Architecture
Llama: {layers} layers of width {hidden} (the first {old}, and the embedding, are Abacus'), {heads} heads of {head_dim}, feed-forward width {intermediate},
RMSNorm, rotary positions, a context of {context} tokens, a vocabulary of {vocabulary}, a linear head with bias for one label. Float32, {size:.2f} MB.

## Training
- **Data**: {texts:,} texts that Abacus wrote at temperature 1 for random problems, none of them held out ({sampling:.1f} minutes of sampling); by
  level {mixture}. Labels are the exact checker's. There is no data set.
- **Objective**: cross-entropy of the label after every token of a text; the end of a step counts {step_end:g} times.
- **What is trained**: the last {new} layers, the norm and the head; what lies below stays Abacus'. A layer above Abacus' last can see both what Abacus
  expected in a token's place and what it then wrote. So that it soon does, a second head, thrown away afterwards, learns how improbable Abacus found each
  token and all of them so far (squared error in the logarithm, weight {auxiliary:g}). Muon on matrices, AdamW on the rest, as for Abacus; batches of
  {batch:,} tokens, 2% warm-up, then a cosine to zero.
- **Run**: seed {training_seed}, {steps:,} steps over {tokens:,} tokens with padding ({epochs} {epoch_word}), {minutes:g} minutes on one core of
  {machine}. Python {python}, {versions}.
- **Again**: `python -m posterity.models.weights.train_abacus_prm --texts {texts} --epochs {epochs} --seed {training_seed} --out DIR --work DIR`;
  all of it follows from the seed.

Training loss, with that of the second task (mean since the row before):

| minutes | step | loss |
| ---: | ---: | ---: |
{curve}
"""


def card(
    config: DecoderConfig,
    parameters: int,
    size: int,
    record: Mapping,
    levels: Mapping[int, "Level"],
    bins: Sequence[tuple[int, float, float]],
    error: float,
    noise: tuple[Sequence[float], Mapping[int, Sequence[float | None]]],
    bias: tuple[Sequence[float], Mapping[int, Sequence[float | None]]],
    run: tuple[int, int, int],
    picture: str | None,
) -> str:
    """The card's text. `size` is in bytes, `record` is training.json, `run` texts a level, seed and fewest wrong ones of the measurement."""
    count, seed, fewest = run
    return CARD.format(
        parameters=parameters,
        count=count,
        seed=seed,
        fewest=fewest,
        levels="\n".join(_level_row(number, level) for number, level in levels.items()),
        error=error,
        picture=f"\n![Training loss, calibration, and AUROC against noise]({picture})\n" if picture else "",
        bins="\n".join(f"| {n:,} | {score:.3f} | {right:.3f} |" for n, score, right in bins),
        noises=" | ".join(f"noise {x:g}" for x in noise[0]),
        rule=" ---: |" * len(noise[0]),
        degraded=_rows(noise[1]),
        biases=" | ".join(f"{x:+g}" for x in bias[0]),
        bias_rule=" ---: |" * len(bias[0]),
        biased=_rows(bias[1]),
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        context=config.context_length,
        vocabulary=config.vocab_size,
        size=size / 1e6,
        texts=record["texts"],
        sampling=record["sampling_seconds"] / 60,
        mixture=", ".join(f"{number}: {share:.0%}" for number, share in record["mixture"]),
        step_end=record["step_end"],
        auxiliary=record["auxiliary"],
        new=record["new_layers"],
        old=config.num_layers - record["new_layers"],
        batch=record["batch_tokens"],
        training_seed=record["seed"],
        steps=record["steps"],
        tokens=record["tokens"],
        epochs=record["epochs"],
        epoch_word="time" if record["epochs"] == 1 else "times",
        minutes=record["minutes"],
        machine=record["machine"],
        python=record["python"],
        versions=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        curve="\n".join(f"| {minutes:.1f} | {step:,} | {loss:.4f} |" for step, minutes, loss in thinned(record["curve"], 10)),
    )


def plot(
    curve: Sequence[Sequence[float]],
    bins: Sequence[tuple[int, float, float]],
    noises: Sequence[float],
    noise: Mapping[int, Sequence[float | None]],
    path: Path,
) -> None:
    """Training loss, calibration, and AUROC against noise, side by side as one small picture; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), dpi=100, layout="constrained")
    loss, reliability, worse = figure.subplots(1, 3)
    loss.plot([minutes for _, minutes, _ in curve], [value for _, _, value in curve], color="#2b6cb0")
    loss.set(xlabel="minutes", ylabel="loss", yscale="log", title="training")
    reliability.plot([0, 1], [0, 1], color="#a0aec0", linestyle="--", linewidth=1)
    reliability.plot([score for _, score, _ in bins], [right for _, _, right in bins], "o-", color="#2b6cb0")
    reliability.set(xlabel="score", ylabel="share that is right", title="calibration, levels 2 to 6")
    for level, values in noise.items():
        known = [(x, value) for x, value in zip(noises, values, strict=True) if value is not None]
        worse.plot(*zip(*known, strict=True), "o-", label=f"level {level}")
    worse.axhline(0.5, color="#a0aec0", linestyle="--", linewidth=1)
    worse.set(xlabel="noise, nats", ylabel="AUROC after a right step", title="degraded")
    worse.legend(fontsize="small")
    for axes in (loss, reliability, worse):
        axes.grid(True, which="both", alpha=0.3)
    figure.savefig(path)


def shown(x: float | None) -> str:
    """A figure of a table, or a dash."""
    return "–" if x is None or x != x else f"{x:.3f}"


def _level_row(number: int, level: "Level") -> str:
    aurocs = shown(level.hard), _span(level.hard, level.interval), shown(level.steps), shown(level.texts), shown(level.rivals)
    aurocs = *aurocs, _span(level.rivals, level.rivals_interval)
    figures = f"{level.solved:.3f}", *aurocs, *map(shown, level.means)
    return f"| {number} | " + " | ".join(figures) + " |"


def _span(figure: float | None, interval: tuple[float, float]) -> str:
    return "–" if figure is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _rows(levels: Mapping[int, Sequence[float | None]]) -> str:
    return "\n".join(f"| {level} | " + " | ".join(map(shown, values)) + " |" for level, values in levels.items())
