"""What trials come to: curves, laws and ratios, as a table, as JSON, as pictures."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posterity.cli import pictures
from posterity.cli.strategies import STRATEGIES
from posterity.cli.trials import Log
from posterity.inference.answers.coverage import CoverageLaw
from posterity.inference.answers.curves import BudgetRatio, Calibration, Curve, Trials, accuracy_curve, budget_ratio, calibration

LEVEL = 0.95  # of all intervals


class Scaling(NamedTuple):
    """Of one strategy."""

    trials: Trials
    accuracy: Curve
    error: Curve  # of calibration, at each budget
    reliability: Calibration  # at the largest budget
    cost: dict[str, np.ndarray]  # [budgets], means over problems and seeds


def scaling(log: Log, strategy: str, budgets: Sequence[int], problems: int, seeds: int) -> Scaling:
    """What the log says of a strategy, at the budgets it can be given."""
    at = [budget for budget in budgets if budget >= STRATEGIES[strategy].least]
    trials = log.trials(strategy, at, problems, seeds)
    sure = log.column(strategy, at, problems, seeds, "confidence")
    by_budget = [calibration(sure[..., i], trials.right[..., i], level=LEVEL) for i in range(len(at))]
    error = Curve(trials.budgets, np.array([one.error for one in by_budget]), *np.array([one.interval for one in by_budget]).T)
    cost = {name: log.column(strategy, at, problems, seeds, name).mean(axis=(0, 1)) for name in ("generated", "calls", "rewards")}
    return Scaling(trials, accuracy_curve(trials, level=LEVEL), error, by_budget[-1], cost)


def ratios(found: Mapping[str, Scaling]) -> dict[tuple[str, str], BudgetRatio]:
    """How many times the budget of one strategy another needs, for every two of them."""
    names = [name for name in found if STRATEGIES[name].choose is not None]
    return {(one, other): budget_ratio(found[one].trials, found[other].trials, level=LEVEL) for one in names for other in names if one != other}


def law(found: Scaling) -> CoverageLaw | None:
    """How the share of problems that any rollout solves grows; None where no problem was solved, or all were at once."""
    n = int(found.trials.budgets[-1]) * found.trials.right.shape[1]  # the rollouts of all seeds together
    if found.trials.budgets[0] != 1 or not 0 < found.accuracy.mean[0] < 1:
        return None
    return CoverageLaw.fit(n, np.rint(found.trials.right[:, :, 0].mean(axis=1) * n).astype(int), ks=found.trials.budgets, level=LEVEL)


def write(folder: Path, title: str, found: Mapping[str, Scaling], about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `curves.csv`, `summary.json`, `accuracy.png` and `calibration.png` into a folder, and returns the summary."""
    compared = ratios(found)
    coverage = law(found["any"]) if "any" in found else None
    rows = [row for name, one in found.items() for row in _rows(name, one)]
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows)
    summary = {
        **about,
        "level": LEVEL,
        "curves": rows,
        "coverage_law": None if coverage is None else {**coverage._asdict(), "formula": "coverage(k) = exp(scale k^exponent)"},
        "budget_ratios": [{"of": one, "against": other, **_finite(ratio._asdict())} for (one, other), ratio in compared.items()],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    drawn = {name: one for name, one in found.items() if STRATEGIES[name].choose is not None}
    if drawn:
        lines = [pictures.Line(STRATEGIES[name].title, one.accuracy, one.error, one.cost["generated"]) for name, one in drawn.items()]
        pictures.curves(folder / "accuracy.png", title, lines, ceiling=found["any"].accuracy if "any" in found else None, level=LEVEL)
        reliability = {STRATEGIES[name].title: one.reliability for name, one in drawn.items()}
        pictures.reliability(folder / "calibration.png", f"{title}: calibration at the largest budget", reliability)
    return summary


def _rows(name: str, one: Scaling) -> list[dict[str, Any]]:
    return [
        {
            "strategy": name,
            "budget": int(budget),
            "accuracy": float(one.accuracy.mean[i]),
            "low": float(one.accuracy.low[i]),
            "high": float(one.accuracy.high[i]),
            "calibration_error": float(one.error.mean[i]),
            "calibration_low": float(one.error.low[i]),
            "calibration_high": float(one.error.high[i]),
            **{f"mean_{kind}": float(mean[i]) for kind, mean in one.cost.items()},
        }
        for i, budget in enumerate(one.trials.budgets)
    ]


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null stands for a budget that was not enough."""
    plain = lambda x: [plain(y) for y in x] if isinstance(x, tuple) else (x if np.isfinite(x) else None)  # noqa: E731
    return {name: plain(value) for name, value in fields.items()}
