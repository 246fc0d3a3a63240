"""How many samples the probabilities of texts save: perplexity consistency (RPC) beside votes (`python benchmarks/rpc.py DIR`).

DIR holds what `posterity bench --strategies sc,rpc --out DIR` found. For each number of samples that votes were given: how many RPC needs for the
same accuracy (linear in the logarithm of the number between two budgets), and how many times fewer that is, with a 95% interval from 1,000
resamples of the problems, each with all its seeds. Curves share their samples, so that the comparison is paired.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from posterity.cli.trials import SETTINGS, TRIALS, Log


def needed(curve: np.ndarray, budgets: np.ndarray, accuracy: float) -> float:
    """The samples at which a curve of accuracies first reaches `accuracy`; inf where it never does."""
    above = np.flatnonzero(curve >= accuracy)
    if not above.size:
        return np.inf
    i = above[0]
    before = np.log(budgets[max(i - 1, 0) : i + 1])
    share = (accuracy - curve[i - 1]) / (curve[i] - curve[i - 1]) if i else 1.0
    return float(np.exp(before[0] + share * (before[-1] - before[0])))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder
    if not (folder / TRIALS).exists():
        options.error(f"{folder} holds no {TRIALS}: run `posterity bench --strategies sc,rpc --out {folder}` first")
    log = Log(folder, json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    places = [place for place in log.known if place.strategy == "rpc"]
    budgets, problems, seeds = sorted({place.budget for place in places}), 1 + max(p.problem for p in places), 1 + max(p.seed for p in places)
    votes, rpc = (log.trials(name, budgets, problems, seeds).right.mean(axis=1) for name in ("sc", "rpc"))  # [problems, budgets]
    draws, at = np.random.default_rng(0).integers(problems, size=(1000, problems)), np.array(budgets)
    print(f"{folder.name}: {problems} problems, {seeds} seeds\n\nvotes of  accuracy, %  RPC, %  RPC needs  times fewer  95%")
    for i, budget in enumerate(budgets[1:], 1):
        fewer = lambda rows, i=i: at[i] / needed(rpc[rows].mean(axis=0), at, votes[rows, i].mean())  # noqa: E731
        low, high = np.quantile([fewer(rows) for rows in draws], [0.025, 0.975])
        times = fewer(np.arange(problems))
        accuracies = f"{100 * votes[:, i].mean():11.1f}  {100 * rpc[:, i].mean():6.1f}"
        print(f"{budget:8}  {accuracies}  {budget / times:9.1f}  {times:11.2f}  {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
