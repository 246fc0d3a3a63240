"""Pictures of scaling curves, with matplotlib: accuracy and calibration against budget, and the map of budget ratios."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posterity.inference.answers.curves import BudgetRatio, Calibration, Curve

# Okabe and Ito's colours, which colour-blind readers tell apart, the strongest first; then again, dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)))
DOTS = 150  # an inch


class Line(NamedTuple):
    """What is drawn of one strategy."""

    title: str
    accuracy: Curve
    error: Curve  # of calibration
    tokens: np.ndarray  # [budgets], generated for a problem


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'posterity[plot]'") from error
    matplotlib.use("Agg")  # files only: no window system is needed
    from matplotlib import pyplot

    return pyplot


def curves(path: Path, title: str, lines: Sequence[Line], *, ceiling: Curve | None, level: float) -> None:
    """Accuracy against rollouts and against tokens, and calibration error against rollouts, each with its interval as a band."""
    pyplot = _pyplot()
    figure, (by_budget, by_tokens, errors) = pyplot.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    if ceiling is not None:
        by_budget.plot(ceiling.budgets, ceiling.mean, color="0.6", linestyle=":", label="any rollout right", zorder=1)
    for place, line in enumerate(lines):
        budgets = line.accuracy.budgets
        look = {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place // len(COLOURS) % len(STYLES)], "marker": "o", "markersize": 3.5}
        for axes, x, curve in ((by_budget, budgets, line.accuracy), (by_tokens, line.tokens, line.accuracy), (errors, budgets, line.error)):
            axes.fill_between(x, curve.low, curve.high, color=look["color"], alpha=0.1, linewidth=0)
            axes.plot(x, curve.mean, label=line.title, linewidth=1.8, **look)
    budgets = sorted({int(budget) for line in lines for budget in line.accuracy.budgets})
    for axes, x, y in (
        (by_budget, "rollouts a problem", "accuracy"),
        (by_tokens, "tokens generated a problem", "accuracy"),
        (errors, "rollouts a problem", "expected calibration error"),
    ):
        axes.set_xscale("log", base=2 if axes is not by_tokens else 10)
        axes.set(xlabel=x, ylabel=y)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (by_budget, errors):
        axes.set_xticks(budgets, map(str, budgets))
        axes.minorticks_off()
    errors.set_ylim(bottom=0)
    handles, labels = by_budget.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7), frameon=False)
    figure.suptitle(f"{title}; bands hold {level:.0%} over problems", fontsize=12)
    _save(figure, path)


def reliability(path: Path, title: str, found: Mapping[str, Calibration]) -> None:
    """Of answers with some confidence, how many are right: one small panel a strategy, the area of a dot the share of its answers."""
    pyplot = _pyplot()
    columns = min(len(found), 4)
    rows = math.ceil(len(found) / columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(3.1 * columns, 3.1 * rows + 0.5), layout="constrained", sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for place, (axes, (name, one)) in enumerate(zip(grid.flat, found.items(), strict=False)):
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=1)
        seen = one.share > 0
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(one.confidence[seen], one.accuracy[seen], color=colour, linewidth=1.2)
        axes.scatter(one.confidence[seen], one.accuracy[seen], s=12 + 220 * one.share[seen], color=colour, alpha=0.6, linewidths=0)
        axes.set_title(f"{name}: error {one.error:.3f}", fontsize=10)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("confidence in the answer", fontsize=10)
    figure.supylabel("share of answers that are right", fontsize=10)
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


Ratios = Mapping[str, Sequence[Sequence[BudgetRatio]]]  # by rival: difficulties, noises


def ratio_map(path: Path, title: str, rows: Sequence[str], columns: Sequence[str], found: Ratios, *, largest: float) -> None:
    """Heat maps of budget ratios, one a rival. Below 1, where the rival wins, cells are red, and framed where that is sure."""
    pyplot = _pyplot()
    figure, grid = pyplot.subplots(1, len(found), figsize=(1.5 + 4.6 * len(found), 1.7 + 0.62 * len(rows)), layout="constrained", squeeze=False, sharey=True)
    limit = math.log2(largest)
    for axes, (rival, ratios) in zip(grid.flat, found.items(), strict=True):
        logs = np.clip([[math.log2(max(one.ratio, 1e-9)) for one in row] for row in ratios], -limit, limit)
        image = axes.imshow(logs, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for i, row in enumerate(ratios):
            for j, one in enumerate(row):
                low, high = one.interval
                sure = low > 1 or high < 1
                colour = "white" if abs(logs[i, j]) > 0.62 * limit else "black"
                axes.text(j, i - 0.14, f"{one.ratio:.2g}", ha="center", va="center", color=colour, fontweight="bold" if sure else "normal", fontsize=10)
                axes.text(j, i + 0.24, f"{low:.2g} to {high:.2g}", ha="center", va="center", color=colour, fontsize=6.5)
                if high < 1:
                    axes.add_patch(pyplot.Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor="#67001f", linewidth=2.2))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(f"against {rival}", fontsize=11)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel("noise of the reward (standard deviation of its log odds)", fontsize=10)
    figure.supylabel("how often one rollout is right", fontsize=10)
    bar = figure.colorbar(image, ax=grid, shrink=0.9, pad=0.015)
    ticks = np.arange(-math.floor(limit), math.floor(limit) + 1, 2 if limit > 4 else 1)
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" if tick >= 0 else f"1/{2**-tick:g}" for tick in ticks.tolist()])
    bar.set_label("budget that the rival needs, over the particle filter's")
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DOTS)
    _pyplot().close(figure)
