"""The model card of Abacus, written from the record of its training and the measurement that followed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posterity.models.lm.config import DecoderConfig
from posterity.models.programs.arithmetic import LARGEST, LEVELS, MAX_EXPRESSION, MAX_OPERATIONS, Level

if TYPE_CHECKING:
    from posterity.models.weights.evaluate_abacus import Accuracy

CARD = """\
# Abacus

A character-level language model of {parameters:,} parameters that solves integer arithmetic one reduction a line. It is
the model behind the first examples of Posterity: small enough to run anywhere, and imperfect on purpose, so that on hard
problems, where a single sample is often wrong, there is something for inference to do.

    47+6*(12-8)=        the prompt
    47+6*4
    47+24
    71                  then the end token

`posterity.load("abacus")` loads it. Its directory is an ordinary Hugging Face directory of a Llama (config.json,
model.safetensors, tokenizer.json), which other tools read too.

## Use
- **Input**: an expression of non-negative integers with `+ - *` and parentheses, then `=`. No spaces, at most
  {max_operations} operations and {max_expression} characters, every intermediate value in 0..{largest:,}.
  `posterity.models.programs.arithmetic.parse` says what is wrong with any other.
- **Output**: lines, each one legal reduction of the line before (the leftmost that precedence, associativity and
  parentheses allow), down to a number, then the end token.
- **Not for** arithmetic that must be right without a check. It has seen at most {trained_operations} operations on operands of up to
  2 digits, and single operations on up to 4 digits. On anything else it writes plausible nonsense.

## Accuracy
Of one sample at temperature 1, its whole text checked line by line and exactly; {count:,} problems a level (seed {seed}), 95%
intervals (Wilson).

| level | operations | operand digits | parentheses | largest value on the way | example | solved | 95% interval |
| ---: | ---: | ---: | :--- | :--- | :--- | ---: | :--- |
{accuracy}

Training never saw these prompts: an eighth of all, picked by the checksum of their text, is left out of it. Level 1 is the
exception. It has 255 prompts in all, every one of them trained on, so that its figure is recall, not generalisation. On the
other levels the prompt is new, but the single operations that it comes down to (such as `7*8`) are mostly not.

The levels were graded after the shipped model was trained: level 6 takes only problems that pass through a number of three
digits or more, because without that (as in training) 55% of 3,000 other held-out problems were solved, and with it 43%.

One sample for one problem of each level, drawn once:

{examples}

## Architecture
Llama: {layers} layers of width {hidden}, {heads} heads of {head_dim}, feed-forward width {intermediate}, RMSNorm, rotary positions
(theta {theta:,.0f}), the head tied to the embedding, a context of {context} tokens, a vocabulary of {vocabulary} (16 printable characters, line
break, end). Float32, {size:.2f} MB.

## Training
- **Data**: problems drawn at random as training went on, with their canonical solutions: {texts:,} problems, {tokens:,} tokens
  with padding. There is no data set. The mixture, by share of problems:
  {mixture}.
- **Objective**: cross-entropy of the characters after `=`. Muon on matrices (peak learning rate {muon:g}), AdamW on the rest
  (peak {adam:g}), gradients clipped at norm 1, batches of {batch:,} tokens, {warmup:.0%} warm-up, then a cosine to zero.
- **Run**: seed {training_seed}, {steps:,} steps in {minutes:g} minutes on {machine} ({cpu_minutes:g} minutes of
  processor time, {rate:,.0f} tokens a second). Python {python}, {versions}.
- **Again**: `python -m posterity.models.weights.train_abacus --minutes {minutes:.0f} --seed {training_seed} --out DIR`. The problems follow
  from the seed; how many are seen, and at which learning rate, follows the clock. So another run gives another model, of
  about the same ability on a like machine.

Training loss, in nats a character (mean since the row before):
{picture}
| minutes | step | loss |
| ---: | ---: | ---: |
{curve}
"""


def card(
    config: DecoderConfig,
    parameters: int,
    size: int,
    record: Mapping,
    results: Mapping[int, "Accuracy"],
    seed: int,
    examples: Sequence[tuple[str, str | None, bool]],
    picture: str | None,
) -> str:
    """The card's text. `size` is in bytes, `record` is training.json, `seed` that of the measurement, `picture` the loss curve's file name."""
    return CARD.format(
        parameters=parameters,
        max_operations=MAX_OPERATIONS,
        max_expression=MAX_EXPRESSION,
        largest=LARGEST,
        trained_operations=max(level.operations for level in LEVELS.values()),
        count=next(iter(results.values())).count,
        seed=seed,
        accuracy="\n".join(_accuracy_row(level, result, example[0]) for (level, result), example in zip(results.items(), examples, strict=True)),
        examples="\n\n".join(_sample(*example) for example in examples),
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        theta=config.rope_theta,
        context=config.context_length,
        vocabulary=config.vocab_size,
        size=size / 1e6,
        mixture=",\n  ".join(f"{share:.0%} {_level_in_words(Level(*level))}" for level, share in record["mixture"]),
        batch=record["batch_tokens"],
        muon=record["peak_muon"],
        adam=record["peak_adam"],
        warmup=record["warmup"],
        texts=record["texts"],
        tokens=record["tokens"],
        training_seed=record["seed"],
        steps=record["steps"],
        minutes=record["minutes"],
        cpu_minutes=record["cpu_minutes"],
        machine=record["machine"],
        rate=record["tokens"] / record["minutes"] / 60,
        python=record["python"],
        versions=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        picture=f"\n![Training loss]({picture})\n" if picture else "",
        curve="\n".join(f"| {minutes:.1f} | {step:,} | {loss:.4f} |" for step, minutes, loss in thinned(record["curve"], 12)),
    )


def thinned(curve: Sequence[Sequence[float]], rows: int) -> list[tuple[int, float, float]]:
    """At most about `rows` points of a loss curve [(step, minutes, mean loss since the point before)], the means still over all steps between."""
    out, before, span = [], 0, -(-len(curve) // rows)
    for first in range(0, len(curve), span):
        steps, minutes, losses = zip(*curve[first : first + span], strict=True)
        counts = [stop - start for start, stop in zip((before, *steps), steps, strict=False)]
        out.append((steps[-1], minutes[-1], sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)))
        before = steps[-1]
    return out


def plot_loss(curve: Sequence[Sequence[float]], path: Path) -> None:
    """The loss curve as a small picture; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([minutes for _, minutes, _ in curve], [loss for _, _, loss in curve], color="#2b6cb0")
    axes.set(xlabel="minutes", ylabel="loss, nats a character", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    figure.savefig(path)


def _accuracy_row(level: int, result: "Accuracy", example: str) -> str:
    grade, (low, high) = LEVELS[level], result.interval()
    parentheses = "yes" if grade.parentheses else "no"
    row = (level, grade.operations, grade.digits, parentheses, value_range(grade), f"`{example}`", f"{result.rate:.3f}", f"{low:.3f} to {high:.3f}")
    return "| " + " | ".join(map(str, row)) + " |"


def _sample(prompt: str, text: str | None, right: bool) -> str:
    lines = [prompt, *("(no end)" if text is None else text).split("\n")]
    return "\n".join(f"    {line}" for line in lines) + f"  ({'right' if right else 'wrong'})"


def value_range(level: Level) -> str:
    """Between what the largest intermediate value of a level's problems lies."""
    return f"{level.reach:,} to {level.largest:,}"


def _level_in_words(level: Level) -> str:
    for number, known in LEVELS.items():
        if known == level:
            return f"level {number}"
    plural, brackets = "" if level.operations == 1 else "s", " and parentheses" if level.parentheses else ""
    return f"{level.operations} operation{plural} on up to {level.digits} digits{brackets} (values to {level.largest:,})"
