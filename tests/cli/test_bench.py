"""`posterity bench`: trials of a law that is known, stopped and gone on with; and the command itself on a small model."""

import csv
import json
import math

import numpy as np
import pytest

from posterity.cli.bench import Bench, batched, confidence, planned, run
from posterity.cli.scaling import law, ratios, scaling, write
from posterity.cli.strategies import Drawn
from posterity.cli.trials import Log, Outcome, Place
from posterity.inference.answers import Choice
from posterity.models.programs.tasks import Problem, Task

CAPACITY = 3  # tokens: a prompt of one, then one that says right (1) or wrong (2, 3, ..)
CHANCES = np.linspace(0.05, 0.6, 30)  # of a right rollout, by problem
PLANTED = Task("planted", tuple(Problem(str(i), lambda answer: float(answer == "1")) for i in range(30)), chat=False, extract=str, steps=1, step_tokens=1)


def planted_draw(sampler: str, n: int, pairs) -> Drawn:
    """Independent rollouts, right by the problem's chance, of which the reward knows the truth; particle filters are told the truth as well."""
    rows = [np.random.default_rng([n, problem, seed]) for problem, seed in pairs]
    right = np.stack([rng.random(n) < CHANCES[problem] for rng, (problem, _) in zip(rows, pairs, strict=True)])
    wrong = np.stack([rng.integers(2, 50, size=n) for rng in rows])
    tokens = np.zeros((len(pairs), n, CAPACITY), np.int32)
    tokens[..., 1] = np.where(right, 1, wrong)
    one = np.ones((len(pairs), n), int)
    weights = np.where(right, 1.0, 1e-9)
    rewards = np.where(right, 0.9, 0.1)
    total = np.full(len(pairs), n)
    return Drawn(tokens, 2 * one, one, weights, rewards, np.log(np.where(right, 0.3, 0.01)), one, total, total, total)


def planted() -> Bench:
    return Bench(PLANTED, lambda path: str(np.frombuffer(path, np.int32)[0]), planted_draw)


def made(folder, names, budgets, problems=30, seeds=4, particles=64, bench=None) -> Log:
    log = Log(folder, {"task": "planted"})
    run(bench or planted(), log, planned(log, names, budgets, problems, seeds), particles=particles, quiet=True)
    return log


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Log:
    return made(tmp_path_factory.mktemp("bench"), ["any", "sc", "bon"], [1, 2, 4, 8, 16], seeds=8)


def test_best_of_n_with_a_reward_that_knows_is_as_accurate_as_its_law(finished):
    """1 - (1 - p)^n over problems; 240 trials a budget, within 4.4 standard errors (a false alarm in 20,000)."""
    for name in ("bon", "any"):
        found = scaling(finished, name, [1, 2, 4, 8, 16], 30, 8)
        for i, n in enumerate([1, 2, 4, 8, 16]):
            chance = 1 - (1 - CHANCES) ** n
            assert found.accuracy.mean[i] == pytest.approx(chance.mean(), abs=4.4 * np.sqrt((chance * (1 - chance)).mean() / 240))
            assert found.accuracy.low[i] <= found.accuracy.mean[i] <= found.accuracy.high[i]
        assert found.cost["generated"].tolist() == [1, 2, 4, 8, 16]


def test_votes_need_more_than_a_reward_that_knows_and_ratios_say_so(finished):
    found = {name: scaling(finished, name, [1, 2, 4, 8, 16], 30, 8) for name in ("sc", "bon")}
    compared = ratios(found)
    assert compared["bon", "sc"].interval[0] > 1
    assert compared["sc", "bon"].ratio == pytest.approx(1 / compared["bon", "sc"].ratio)


def test_coverage_follows_the_law_of_its_problems(finished):
    fitted = law(scaling(finished, "any", [1, 2, 4, 8, 16], 30, 8))
    assert fitted(np.array([1, 4, 16])) == pytest.approx(1 - ((1 - CHANCES[:, None]) ** [1, 4, 16]).mean(axis=0), abs=0.08)
    assert fitted.interval[0] < fitted.exponent < fitted.interval[1] < 0


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    """Killed in its fifth batch, and with a line half written: what is there in the end is what there would have been, and little is drawn twice."""
    names, budgets = ["bon", "pf"], [1, 2, 4]
    whole = made(tmp_path / "whole", names, budgets, problems=6, seeds=2, particles=8).known
    drawn = []

    def failing(*what) -> Drawn:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(what)
        return planted_draw(*what)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stopped", names, budgets, problems=6, seeds=2, particles=8, bench=planted()._replace(draw=failing))
    file = tmp_path / "stopped" / "trials.csv"
    before = file.read_text()
    file.write_text(before + "pf,4,0,1,0.5")
    again = Log(tmp_path / "stopped", {"task": "planted"})
    assert 0 < len(again.known) < len(whole)
    assert file.read_text() == before
    count = []
    bench = planted()._replace(draw=lambda *what: (count.append(what), planted_draw(*what))[1])
    run(bench, again, planned(again, names, budgets, 6, 2), particles=8, quiet=True)
    assert again.known == whole == Log(tmp_path / "stopped", {"task": "planted"}).known
    of = lambda calls: {(sampler, n, pair) for sampler, n, pairs in calls for pair in pairs}  # noqa: E731
    assert not of(drawn) & of(count)
    run(bench, again, planned(again, names, budgets, 6, 2), particles=8, quiet=True)
    assert not planned(again, names, budgets, 6, 2)


def test_more_problems_seeds_and_budgets_add_to_what_is_there(tmp_path):
    made(tmp_path, ["bon", "pf"], [1, 2], problems=4, seeds=1)
    log = Log(tmp_path, {"task": "planted"})
    work = planned(log, ["bon", "pf"], [1, 2, 4], 5, 2)
    assert {(one.sampler, one.n): len(one.pairs) for one in work} == {("rollouts", 4): 10, ("particles", 1): 6, ("particles", 2): 6, ("particles", 4): 10}


def test_answers_that_are_ruled_out_take_no_confidence():
    ruled_out = Choice({"a": 0.6, "b": 0.2, "c": -math.inf})
    assert confidence(ruled_out) == pytest.approx(0.75)
    assert confidence(Choice({"a": 0.0, "b": 0.0})) == 0.0


def test_the_last_batch_is_filled_up_to_the_shape_of_the_others():
    assert list(batched([(i, 0) for i in range(5)], 2)) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0), (4, 0)]]
    assert list(batched([(0, 0)], 100)) == [[(0, 0)]]


def test_a_folder_of_other_settings_or_with_other_lines_is_refused(tmp_path):
    log = Log(tmp_path, {"task": "planted", "noise": 0.0})
    log.add({Place("bon", 1, 0, 0): Outcome(1.0, 0.5, 1, 1, 1)})
    with pytest.raises(ValueError, match=r"holds trials with noise 0.0, this run has 1.0; give another folder"):
        Log(tmp_path, {"task": "planted", "noise": 1.0})
    with (tmp_path / "trials.csv").open("a") as file:
        file.write("bon,1,0\n")
    with pytest.raises(ValueError, match=r"line 3: 'bon,1,0' is no trial"):
        Log(tmp_path, {"task": "planted", "noise": 0.0})


def test_files_hold_what_was_found(finished, tmp_path):
    names = ["any", "sc", "bon", "pf"]
    found = {name: scaling(made(tmp_path, names, [1, 4], problems=5, seeds=2), name, [1, 4], 5, 2) for name in names}
    write(tmp_path, "planted", found, {"machine": "this"})
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["strategy"], row["budget"]) for row in rows] == [(name, budget) for name in names for budget in "14"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["machine"] == "this"
    assert {(one["of"], one["against"]) for one in summary["budget_ratios"]} >= {("pf", "bon"), ("bon", "pf"), ("sc", "pf")}
    for name in ("accuracy.png", "calibration.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_runs_on_a_small_model(posterity, random_model, tmp_path):
    options = ("--strategies", "pf,pf-best", "--budgets", "2", "--problems", 2, "--seeds", 1, "--reward", "checker:2", "--rule", "product")
    command = ("bench", "--task", "abacus:1", "--model", random_model, "--potential", "identity", *options, "--out", tmp_path)
    result = posterity(*command, "--json")
    assert (result.code, result.err) == (0, "")
    said = json.loads(result.out)
    assert [(row["strategy"], row["budget"]) for row in said["curves"]] == [("pf", 2), ("pf-best", 2)]
    assert all(row["mean_generated"] > 0 and 0 < row["mean_rewards"] <= 2 for row in said["curves"])
    before = (tmp_path / "trials.csv").read_text()
    page = posterity(*command)
    assert page.code == 0
    assert "particle filter, best" in page.out
    assert (tmp_path / "trials.csv").read_text() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "chess"), "no task is called 'chess'"),
        (("--task", "abacus:hard", "--strategies", "luck"), "'luck' is no strategy; there are"),
        (("--task", "abacus:hard", "--budgets", "1,two"), "'two' is not a whole number"),
        (("--task", "abacus:hard", "--problems", "1"), "'1' is not a whole number from 2 on"),
        (("--task", "abacus:hard", "--noise", "-1"), "'-1' is below 0"),
        (("--task", "abacus:hard", "--length-bias", "nan"), "'nan' is not a number"),
        (("--task", "abacus:hard", "--reward", "luck"), "luck"),
        (("--task", "abacus:hard", "--reward", "checker:-2"), "checker:NATS takes a positive number, got '-2'"),
        (("--task", "abacus:hard", "--reward", "abacus"), "abacus is a language model, no reward"),
    ],
)
def test_bad_options_are_named(posterity, tmp_path, options, said):
    result = posterity("bench", *options, "--out", tmp_path)
    assert result.code == 2
    assert said in " ".join(result.err.split())
    assert not (tmp_path / "trials.csv").exists() or (tmp_path / "trials.csv").read_text().count("\n") == 1
