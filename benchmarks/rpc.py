"""How many samples the probabilities of texts save: perplexity consistency (RPC) beside votes (`python benchmarks/rpc.py DIR`).

DIR holds what `posterity bench --strategies sc,rpc --out DIR` found. For each number of samples that votes were given: how many RPC needs for the
best accuracy that both reach, and how many times fewer that is, with a 95% interval over problems (`answers.budget_ratio`, paired).
"""

import argparse
import json
from pathlib import Path

from posterity.cli.trials import SETTINGS, TRIALS, Log
from posterity.inference.answers.curves import Trials, budget_ratio


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder
    if not (folder / TRIALS).exists():
        options.error(f"{folder} holds no {TRIALS}: run `posterity bench --strategies sc,rpc --out {folder}` first")
    log = Log(folder, json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    places = [place for place in log.known if place.strategy == "rpc"]
    budgets, problems, seeds = sorted({place.budget for place in places}), 1 + max(p.problem for p in places), 1 + max(p.seed for p in places)
    votes, rpc = (log.trials(name, budgets, problems, seeds) for name in ("sc", "rpc"))
    print(f"{folder.name}: {problems} problems, {seeds} seeds\n\nvotes of  accuracy, %  RPC, %  RPC needs  times fewer  95%")
    for i, budget in enumerate(budgets):
        found = budget_ratio(rpc, Trials.of(votes.budgets[: i + 1], votes.right[..., : i + 1]))
        accuracies = f"{100 * votes.right[..., i].mean():11.1f}  {100 * rpc.right[..., i].mean():6.1f}"
        print(f"{budget:8}  {accuracies}  {found.needed[0]:9.1f}  {found.ratio:11.2f}  {found.interval[0]:.2f} to {found.interval[1]:.2f}")


if __name__ == "__main__":
    main()
