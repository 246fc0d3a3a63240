"""`posterity map`: how many times the budget of a particle filter other strategies need, by how hard problems are and how mistaken the reward is."""

import csv
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.box import SIMPLE_HEAD
from rich.table import Table

from posterity.cli import pictures, running, views
from posterity.cli.machine import machine
from posterity.inference import search
from posterity.inference.answers.curves import BudgetRatio, Trials, budget_ratio
from posterity.models.programs.fallible import LINES, STEPS, fallible

TOGETHER = 2**17  # rollouts in one piece of a run: what memory holds


def best(result: Any, n: int) -> Array:
    """Whether the rollout with the best score, of the first n, is right; ties share."""
    scores, right = result.scores[:n], result.values.right[:n]
    top = scores >= jnp.max(scores)
    return jnp.sum(jnp.where(top, right, 0)) / jnp.sum(top)


def voted(result: Any, n: int, weights: Array | None = None) -> Array:
    """Whether the answer with the most weight (by default, of scores) among the first n is right; ties share."""
    votes = (result.scores if weights is None else weights)[:n]
    answer = jnp.sum(result.values.lines[:n] * LINES ** jnp.arange(STEPS), axis=-1)  # the right one is 0
    same = answer[:, None] == answer
    score = same @ votes
    top = (score >= jnp.max(score) * (1 - 1e-6)) & (jnp.argmax(same, axis=1) == jnp.arange(n))  # each answer once
    return jnp.sum(top & (answer == 0)) / jnp.sum(top)


def mode(result: Any, n: int) -> Array:
    """Whether the posterior's mode is right."""
    return voted(result, n, jnp.exp(result.log_weights))


# How rollouts are drawn, how their answer is chosen, whether the first of many are few, and the least budget.
FILTER = "particle filter"
STRATEGIES: dict[str, tuple[Callable[..., Any], Callable[..., Array], bool, int]] = {
    FILTER: (search.particle_filter, mode, False, 1),
    "best of n": (search.repeated_sampling, best, True, 1),
    "beam search": (search.beam, best, False, 4),
    "DVTS": (search.dvts, voted, False, 4),
}


def draw_map(
    *, out: Path, solved: Sequence[float], noises: Sequence[float], rule: str, budgets: Sequence[int], problems: int, seeds: int, as_json: bool
) -> None:
    """Runs the command: trials of every cell, the ratios, `map.csv`, `map.json` and `map.png`."""
    out.mkdir(parents=True, exist_ok=True)
    running.keep_compiled()
    start = time.perf_counter()
    found = {}
    for name in STRATEGIES:
        work = functools.partial(trials, name, solved, noises, rule == "telescoped", budgets, problems, seeds)
        found[name] = running.watch(name, work, quiet=as_json)
    compared = {
        rival: [[budget_ratio(found[FILTER][i][j], found[rival][i][j]) for j in range(len(noises))] for i in range(len(solved))]
        for rival in STRATEGIES
        if rival != FILTER
    }
    about = {"rule": rule, "solved": list(solved), "noises": list(noises), "budgets": list(budgets), "problems": problems, "seeds": seeds}
    cells = [
        {"rival": rival, "solved": solved[i], "noise": noises[j], **_plain(ratio), "filter": last(found[FILTER][i][j]), "other": last(found[rival][i][j])}
        for rival, rows in compared.items()
        for i, row in enumerate(rows)
        for j, ratio in enumerate(row)
    ]
    with (out / "map.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, cells[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{x:.5g}" if isinstance(x, float) else x for name, x in cell.items()} for cell in cells)
    summary = {**about, **machine(time.perf_counter() - start), "cells": cells}
    (out / "map.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    rows = [f"{chance:.3g}" for chance in solved]
    title = "Budget that other strategies need for the accuracy of a particle filter, over its own"
    pictures.ratio_map(out / "map.png", title, rows, [f"{noise:g}" for noise in noises], compared, largest=max(budgets))
    if as_json:
        print(json.dumps(summary, indent=2, allow_nan=False))
    else:
        views.show(title, *(table(rival, rows, noises, ratios) for rival, ratios in compared.items()), f"S: search surely wins. The map is {out / 'map.png'}.")


def trials(
    name: str, solved: Sequence[float], noises: Sequence[float], telescoped: bool, budgets: Sequence[int], problems: int, seeds: int
) -> list[list[Trials]]:
    """How right a strategy is: of each cell (difficulties, noises), over the same problems and seeds."""
    sampler, choose, independent, least = STRATEGIES[name]
    at = [budget for budget in budgets if budget >= least]
    cells = np.array(list(itertools.product(solved, noises)), np.float32)
    which = np.array(list(itertools.product(range(len(cells)), range(problems), range(seeds))))
    columns = [drawn(sampler, choose, n, tuple(at) if independent else (n,), cells, which, telescoped) for n in ([max(at)] if independent else at)]
    right = np.concatenate(columns, axis=1).reshape(len(solved), len(noises), problems, seeds, len(at))
    return [[Trials.of(np.array(at), right[i, j]) for j in range(len(noises))] for i in range(len(solved))]


def drawn(sampler: Callable, choose: Callable, n: int, counts: tuple[int, ...], cells: np.ndarray, which: np.ndarray, telescoped: bool) -> np.ndarray:
    """How right n rollouts are, or the first of them, [runs, counts]: a run for each cell, problem and seed of `which`, many in one compiled program."""

    def one(cell: Array, problem: Array, seed: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(n), seed), problem)
        result = sampler(key, fallible(cell[0], cell[1], problem.astype(jnp.uint32), telescoped), n=n)
        return jnp.stack([choose(result, count) for count in counts])

    together = min(max(1, TOGETHER // n), len(which))
    pieces = np.concatenate([which, np.repeat(which[-1:], -len(which) % together, axis=0)]).reshape(-1, together, 3)
    run = jax.jit(lambda piece: jax.vmap(one)(jnp.asarray(cells)[piece[:, 0]], piece[:, 1], piece[:, 2]))
    return np.concatenate([np.asarray(run(piece)) for piece in pieces])[: len(which)]


def last(one: Trials) -> float:
    """The accuracy at the largest budget."""
    return float(one.right[..., -1].mean())


def table(rival: str, rows: Sequence[str], noises: Sequence[float], ratios: Sequence[Sequence[BudgetRatio]]) -> Table:
    """Ratios by difficulty and noise, with an S where search wins and that is sure."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim", title=f"against {rival}", title_justify="left")
    for name in ("solved, noise", *(f"{noise:g}" for noise in noises)):
        shown.add_column(name, justify="right")
    for row, cells in zip(rows, ratios, strict=True):
        shown.add_row(row, *(f"{one.ratio:.2g}" + (" S" if one.interval[1] < 1 else "  ") for one in cells))
    return shown


def _plain(ratio: BudgetRatio) -> dict[str, Any]:
    return {"ratio": ratio.ratio, "low": ratio.interval[0], "high": ratio.interval[1], "accuracy": ratio.accuracy}
