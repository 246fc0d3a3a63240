"""`posterity bench`: how accurate strategies are at how many rollouts, on many problems, with intervals."""

import functools
import itertools
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jax import Array
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from posterity.cli import running, views
from posterity.cli.machine import machine
from posterity.cli.scaling import Scaling, ratios, scaling, write
from posterity.cli.strategies import SAMPLERS, STRATEGIES, Drawn, Rollouts, Strategy, drawing
from posterity.cli.trials import Log, Outcome, Place
from posterity.inference.answers import Choice, pass_at_k
from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.load import load, load_classifier
from posterity.models.potentials.arithmetic import Alphabet, Checker
from posterity.models.potentials.degraded import Degraded
from posterity.models.potentials.reward import Reward, as_reward
from posterity.models.programs.reason import reason
from posterity.models.programs.tasks import Problem, Task, Verifier, task, verifier

MODELS = {"abacus": "abacus"}  # by kind of task, where none is given
SIDE_BY_SIDE = 50  # problems in one batch, at most: of few texts each, more gain nothing
REFERENCE = "pf"  # what the others are compared with in print; the files compare every two
REWARDS = {"abacus": "abacus-prm", "reasoning-gym": "verifier"}


class Work(NamedTuple):
    """Rollouts that are still to be drawn: n of them for each problem and seed, for all strategies of one sampler."""

    sampler: str
    n: int
    places: list[Place]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Problems and seeds."""
        return sorted({(place.problem, place.seed) for place in self.places}, key=lambda pair: pair[::-1])


class Bench(NamedTuple):
    """All that a run needs to draw, and to judge what was drawn."""

    task: Task
    decode: Callable[[bytes], str]  # tokens to an answer
    draw: Callable[[str, int, Sequence[tuple[int, int]]], Drawn]  # by a sampler, so many rollouts, of each problem with a seed


def bench(
    *,
    task_name: str,
    strategies: str,
    budgets: Sequence[int],
    problems: int,
    seeds: int,
    out: Path,
    model: str | None,
    reward: str | None,
    noise: float,
    length_bias: float,
    options: Mapping[str, Any],
    particles: int,
    as_json: bool,
) -> None:
    """Runs the command: what the folder lacks is drawn, then all of it is summed up. `options` are those of `reason`.

    Raises:
      typer.BadParameter: for what cannot be used, naming the option.
    """
    names = chosen(strategies, max(budgets))
    with running.blaming("'--task'"):
        given = asked(task_name, problems)
    kind = task_name.partition(":")[0]
    if model is None and kind not in MODELS:
        raise typer.BadParameter(f"{kind} tasks need a model; name one.", param_hint="'--model'")
    model, reward = model or MODELS[kind], reward or REWARDS[kind]
    settings = {"task": task_name, "model": model, "reward": reward, "noise": noise, "length_bias": length_bias, **options}
    with running.blaming("'--out'"):
        log = Log(out, settings)
    lm = running.load_model(model, quiet=as_json)
    with running.blaming("'--reward'"):
        prepared = prepare(given, lm, reward, noise, length_bias, options)
    seconds = run(prepared, log, planned(log, names, budgets, problems, seeds), particles=particles, quiet=as_json)
    found = {name: scaling(log, name, budgets, problems, seeds) for name in names}
    about = {"settings": settings, "problems": problems, "seeds": seeds, **machine(seconds)}
    title = f"{task_name}, {problems} problems, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    summary = write(out, title, found, about)
    if as_json:
        print(json.dumps(summary, indent=2, allow_nan=False))
    else:
        show(title, found, out)


def chosen(strategies: str, largest: int) -> list[str]:
    """The names in a list of them, or all, that can be given at least one budget."""
    names = list(STRATEGIES) if strategies == "all" else list(dict.fromkeys(part.strip() for part in strategies.split(",")))
    if unknown := [name for name in names if name not in STRATEGIES]:
        raise typer.BadParameter(f"{unknown[0]!r} is no strategy; there are {', '.join(STRATEGIES)}.", param_hint="'--strategies'")
    if short := [name for name in names if STRATEGIES[name].least > largest]:
        raise typer.BadParameter(f"{short[0]} needs a budget of at least {STRATEGIES[short[0]].least}.", param_hint="'--budgets'")
    return names


def asked(name: str, problems: int) -> Task:
    """The task; a missing package is told as what it is."""
    try:
        return task(name, count=problems)
    except ImportError as error:
        raise typer.BadParameter(str(error).removeprefix("task: "), param_hint="'--task'") from error


def prepare(given: Task, lm: LanguageModel, reward: str, noise: float, length_bias: float, options: Mapping[str, Any]) -> Bench:
    """The problems as a model reads them, and the program of each."""
    tokenizer, kind = lm.tokenizer, dict(options)
    read = functools.lru_cache(maxsize=1_000_000)(lambda tokens: given.extract(tokenizer.decode(np.frombuffer(tokens, np.int32).tolist())))
    if reward == "verifier":
        judge, score_of = None, verifier(given, tokenizer)
    else:
        judge, score_of = load_reward(reward, lm), None
    worse_by = jnp.asarray([noise, length_bias], jnp.float32)

    def program_of(prompt: Prompt, problem: Array, lm: LanguageModel, judge: Any, worse: Array) -> Any:
        scored = Verifier(problem, score_of) if score_of is not None else judge
        if noise or length_bias:
            scored = Degraded(scored, worse[0], worse[1], jnp.uint32(0))
        return reason(lm, prompt, reward=scored, max_steps=given.steps, max_step_tokens=given.step_tokens, extract=given.extract, **kind)

    prompts, arguments = lm.prompts(given.prompts(tokenizer)), (lm, judge, worse_by)

    def draw(sampler: str, n: int, pairs: Sequence[tuple[int, int]]) -> Drawn:
        number = zlib.crc32(f"{sampler}/{n}".encode())
        # What is drawn for a problem depends on it, the seed, the sampler and n, not on what is drawn beside it.
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), problem) for problem, seed in pairs])
        which = np.array([problem for problem, _ in pairs])
        return drawing(SAMPLERS[sampler], n, program_of)(keys, jax.tree.map(lambda x: x[which], prompts), jnp.asarray(which), *arguments)

    return Bench(given, read, draw)


def load_reward(name: str, lm: LanguageModel) -> Reward:
    """The reward that `--reward` names."""
    kind, colon, sure = name.partition(":")
    if kind == "checker":
        try:
            odds = float(sure if colon else "inf")
        except ValueError:
            odds = -1.0
        if not odds > 0:
            raise ValueError(f"checker:NATS takes a positive number, got {sure!r}")
        return Checker(jnp.asarray(odds, jnp.float32), Alphabet.of(lm.tokenizer))
    loaded: Any = load_classifier(name) if ":" in name else load(name)
    try:
        return as_reward(loaded)
    except TypeError as error:
        raise ValueError(f"{name} is a language model, no reward") from error


def show(title: str, found: Mapping[str, Scaling], out: Path) -> None:
    """Prints accuracies by budget, and what budgets the strategies need of each other."""
    views.show(title, accuracies(found), ratio_table(found), f"Curves, laws and pictures are in {out}.")


def accuracies(found: Mapping[str, Scaling]) -> Table:
    """A row a strategy: its accuracy at each budget, in percent, and its interval at the largest."""
    budgets = sorted({int(budget) for one in found.values() for budget in one.trials.budgets})
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="dim")
    for name in ("accuracy, %", *map(str, budgets), "95% at last"):
        table.add_column(name, justify="left" if name == "accuracy, %" else "right", no_wrap=True)
    for name, one in found.items():
        at = dict(zip(one.trials.budgets.tolist(), one.accuracy.mean, strict=True))
        last = f"{100 * one.accuracy.low[-1]:.1f} to {100 * one.accuracy.high[-1]:.1f}"
        table.add_row(STRATEGIES[name].title, *(f"{100 * at[budget]:.1f}" if budget in at else "" for budget in budgets), last)
    return table


def ratio_table(found: Mapping[str, Scaling]) -> RenderableType:
    """How many times the budget of the particle filter the others need for the same accuracy."""
    compared = {other: ratio for (one, other), ratio in ratios(found).items() if one == REFERENCE}
    if not compared:
        return ""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for name in ("budget needed, over the particle filter's", "times", "95%", "at accuracy, %"):
        table.add_column(name, justify="left" if name.startswith("budget") else "right", no_wrap=True)
    for other, ratio in compared.items():
        low, high = ratio.interval
        table.add_row(STRATEGIES[other].title, f"{ratio.ratio:.2g}", f"{low:.2g} to {high:.2g}", f"{100 * ratio.accuracy:.1f}")
    return table


def planned(log: Log, strategies: Sequence[str], budgets: Sequence[int], problems: int, seeds: int) -> list[Work]:
    """What the log lacks: few rollouts first, and independent ones once, for all budgets."""
    work = []
    for sampler in dict.fromkeys(STRATEGIES[name].sampler for name in strategies):
        names = [name for name in strategies if STRATEGIES[name].sampler == sampler]
        for at in [list(budgets)] if SAMPLERS[sampler].independent else [[budget] for budget in budgets]:
            offered = [(name, budget) for name in names for budget in at if budget >= STRATEGIES[name].least]
            places = log.missing(Place(name, budget, problem, seed) for name, budget in offered for problem in range(problems) for seed in range(seeds))
            if places:
                work.append(Work(sampler, max(at), places))
    return sorted(work, key=lambda one: (not SAMPLERS[one.sampler].independent, one.n))


def run(bench: Bench, log: Log, work: Sequence[Work], *, particles: int, quiet: bool = False) -> float:
    """Draws and judges all of the work, in batches of about so many `particles`, each of which is in the log as soon as it is done; seconds that took."""
    start, console = time.perf_counter(), Console(stderr=True)
    columns = TextColumn("[dim]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        shown = bar.add_task("", total=sum(one.n * len(one.pairs) for one in work))
        for one in work:
            bar.update(shown, description=f"{one.sampler}, {one.n} rollouts a problem")
            wanted = _by_pair(one.places)
            for pairs in batched(one.pairs, max(1, min(particles // one.n, SIDE_BY_SIDE))):
                drawn = running.watch("", functools.partial(bench.draw, one.sampler, one.n, pairs), quiet=True)
                for place, pair in enumerate(dict.fromkeys(pairs)):
                    log.add(judged(bench, drawn, place, wanted[pair]))
                    bar.advance(shown, one.n)
    return time.perf_counter() - start


def batched(pairs: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """The pairs, so many at a time; the last batch is filled up by its last pair, so that all are of one shape."""
    size = min(size, len(pairs))
    for first in range(0, len(pairs), size):
        batch = pairs[first : first + size]
        yield batch + batch[-1:] * (size - len(batch))


def judged(bench: Bench, drawn: Drawn, row: int, places: Sequence[Place]) -> dict[Place, Outcome]:
    """The outcomes of one problem and seed."""
    found = drawn.rollouts(row, bench.decode)
    return {place: outcome(STRATEGIES[place.strategy], bench.task.problems[place.problem], drawn, row, found, place.budget) for place in places}


def outcome(strategy: Strategy, problem: Problem, drawn: Drawn, row: int, found: Rollouts, budget: int) -> Outcome:
    """What a strategy makes of the first `budget` rollouts, and what those cost."""
    right = lambda answer: problem.score(answer) >= 1.0  # noqa: E731 - a part of the credit is not right
    if SAMPLERS[strategy.sampler].independent:
        few = found.first(budget)
        cost = int(few.generated.sum()), int(few.generated.max()), int(few.scored.sum())
    else:
        few, cost = found, (int(drawn.generated[row]), int(drawn.calls[row]), int(drawn.reward_calls[row]))
    if strategy.choose is None:
        good = sum(map(right, found.answers))
        return Outcome(float(pass_at_k(len(found.answers), good, budget)), 0.0, *cost)
    if not few.weights.sum() > 0:
        return Outcome(0.0, 0.0, *cost)
    choice = strategy.choose(few)
    return Outcome(choice.accuracy(right), confidence(choice), *cost)


def confidence(choice: Choice) -> float:
    """The share of all score that the answer has, of answers that are not ruled out; 0 where no score is above zero."""
    share = Choice({answer: score for answer, score in choice.scores.items() if score > -math.inf}).confidence
    return 0.0 if math.isnan(share) else share


def _by_pair(places: Sequence[Place]) -> dict[tuple[int, int], list[Place]]:
    pair = lambda place: (place.problem, place.seed)  # noqa: E731
    return {key: list(group) for key, group in itertools.groupby(sorted(places, key=pair), key=pair)}
