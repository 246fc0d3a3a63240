"""Trials on disk: one line for each that was made, so that a run which was stopped goes on where it was."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posterity.inference.answers.curves import Trials

TRIALS, SETTINGS = "trials.csv", "settings.json"


class Place(NamedTuple):
    """What was tried, on what."""

    strategy: str
    budget: int  # rollouts
    problem: int
    seed: int


class Outcome(NamedTuple):
    """What came of it, and what it cost."""

    right: float  # in [0, 1]; ties are split
    confidence: float  # the share of all score that the answer had
    generated: int  # LM tokens
    calls: int  # forward passes of the LM over all its texts
    rewards: int  # texts that the reward scored


HEADER = [*Place._fields, *Outcome._fields]


class Log:
    """The trials in a folder: those that are there are known, new ones are added at the end of a file and flushed."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """Opens or begins the log of runs with these settings (numbers, strings, lists and dictionaries of them).

        Raises:
          ValueError: when the folder holds trials of other settings, or a line that is none.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _agree(folder / SETTINGS, json.loads(json.dumps(settings)))
        self.path = folder / TRIALS
        self.known = _read(self.path)

    def add(self, trials: Mapping[Place, Outcome]) -> None:
        """Writes trials, whole lines at once."""
        rounded = {place: _rounded(outcome) for place, outcome in trials.items()}  # what is known is what will be read again
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([*place, *outcome] for place, outcome in rounded.items())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines.getvalue())
        self.known.update(rounded)

    def missing(self, places: Iterable[Place]) -> list[Place]:
        """Those that no line tells of yet."""
        return [place for place in places if place not in self.known]

    def column(self, strategy: str, budgets: list[int], problems: int, seeds: int, field: str) -> np.ndarray:
        """A field of a strategy's outcomes, [problems, seeds, budgets]."""
        read = lambda p, s, b: getattr(self.known[Place(strategy, b, p, s)], field)  # noqa: E731
        return np.array([[[read(p, s, b) for b in budgets] for s in range(seeds)] for p in range(problems)], float)

    def trials(self, strategy: str, budgets: list[int], problems: int, seeds: int) -> Trials:
        """How right a strategy was."""
        return Trials.of(np.array(budgets), self.column(strategy, budgets, problems, seeds, "right"))


def _agree(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or compares them with those that are there."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # none yet, or a run that was killed while it wrote them, before any trial
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    if differing := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
        name = differing[0]
        raise ValueError(f"{path.parent} holds trials with {name} {before.get(name)!r}, this run has {settings.get(name)!r}; give another folder")


def _read(path: Path) -> dict[Place, Outcome]:
    """The trials of a file; the last line, where it was not written to its end, is cut off."""
    if not path.is_file():
        path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    known: dict[Place, Outcome] = {}
    rows = csv.reader(io.StringIO(whole.decode()))
    if (first := next(rows, HEADER)) != HEADER:
        raise ValueError(f"{path} is no file of trials: it begins with {','.join(first)!r}, not with {','.join(HEADER)!r}")
    for number, row in enumerate(rows, 2):
        try:
            strategy, budget, problem, seed, right, confidence, generated, calls, rewards = row
            outcome = Outcome(float(right), float(confidence), int(generated), int(calls), int(rewards))
            known[Place(strategy, int(budget), int(problem), int(seed))] = outcome
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {','.join(row)!r} is no trial") from error
    if not whole:
        path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
    return known


def _rounded(outcome: Outcome) -> Outcome:
    return Outcome(round(float(outcome.right), 6), round(float(outcome.confidence), 6), *map(int, outcome[2:]))
