"""`posterity solve` and `posterity demo`."""

import json
import math
import re

import pytest

from posterity.cli import demo, views
from posterity.models.programs import arithmetic

PROMPTS = tuple(demo.EXAMPLES.values())
PROMPT = PROMPTS[0]
ANSWER = arithmetic.trace(PROMPT)[-1]
ABACUS = (PROMPT, "--n", demo.PARTICLES)  # of the demo's size, so that they share what is compiled


def rejected(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_one_object_with_just_the_promised_keys(posterity):
    result = posterity("solve", *ABACUS, "--json")
    assert (result.code, result.err) == (0, "")
    said = json.loads(result.out, parse_constant=rejected)
    assert list(said) == ["answers", "log_evidence", "ess", "tokens_per_second", "seed", "versions"]
    assert said["answers"] == [{"answer": ANSWER, "probability": pytest.approx(1.0), "error": pytest.approx(0.0, abs=1e-6)}]
    assert -1.0 < said["log_evidence"] <= 1e-6
    assert 1.0 <= said["ess"] <= demo.PARTICLES + 1e-3
    assert said["tokens_per_second"] > 0
    assert said["seed"] == 0
    assert set(said["versions"]) == {"posterity", "jax", "numpyro", "python"}


def test_the_model_alone_has_every_answer_with_its_probability(posterity):
    said = json.loads(posterity("solve", *ABACUS, "--potential", "none", "--json").out)
    probabilities = [answer["probability"] for answer in said["answers"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1.0)
    assert all(0 < p <= 1 for p in probabilities)
    assert said["log_evidence"] == pytest.approx(0.0, abs=1e-6)
    assert [answer["error"] for answer in said["answers"]] == pytest.approx([math.sqrt(p * (1 - p) / demo.PARTICLES) for p in probabilities], abs=1e-4)


def test_the_page_shows_answer_evidence_and_a_checked_solution(posterity):
    result = posterity("solve", *ABACUS)
    assert (result.code, result.err) == (0, "")
    lines = [line.strip() for line in result.out.splitlines()]
    assert lines[0] == f"{PROMPT}  given that every line is right"
    assert any(line.split()[:2] == [ANSWER, "1.000"] for line in lines)
    for name in ("log evidence", "effective sample size", "resampled", "speed"):
        assert any(line.startswith(name) for line in lines)
    solution = lines[lines.index("One draw from this posterior") + 2 :]
    assert solution[0] == PROMPT
    drawn = [line.split() for line in solution[1:] if line]
    assert {verdict for _, verdict in drawn} == {"right"}
    assert arithmetic.check(PROMPT, "\n".join(line for line, _ in drawn)) == [True] * len(drawn)


@pytest.mark.parametrize("method", ["smc", "importance"])
def test_a_seed_decides_the_result(posterity, random_model, method):
    def answers(seed):
        options = ("--potential", "none", "--model", random_model, "--method", method)
        return json.loads(posterity("solve", "1+2=", "--n", 8, "--seed", seed, *options, "--json").out)["answers"]

    assert answers(1) == answers(1) != answers(2)


def test_temperature_flattens_the_model(posterity):
    def best(temperature):
        return json.loads(posterity("solve", *ABACUS, "--potential", "none", "--temperature", temperature, "--json").out)["answers"][0]["probability"]

    assert best(0.01) > best(1.0) > best(3.0)


def test_evidence_zero_is_a_result_that_says_what_to_try(posterity):
    hopeless = (PROMPTS[-1], "--n", demo.PARTICLES, "--temperature", 10.0)
    page = posterity("solve", *hopeless)
    assert (page.code, page.err) == (0, "")
    said = (f"No particle of {demo.PARTICLES}", f"--n {8 * demo.PARTICLES}", "--potential none")
    assert all(part in " ".join(page.out.split()) for part in said)
    empty = json.loads(posterity("solve", *hopeless, "--json").out, parse_constant=rejected)
    assert (empty["answers"], empty["log_evidence"], empty["ess"]) == ([], None, 0.0)


def test_the_demo_shows_each_example_twice_and_its_evidence_agrees_with_counting(posterity):
    result = posterity("demo")
    assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    assert all(prompt in text for prompt in PROMPTS)
    assert text.count("the model alone") == text.count("given that every line is right") == len(PROMPTS)
    said = re.findall(r"Right in every line: (\d+) of (\d+) solutions alone \([0-9.]+\). Evidence: ([0-9.e-]+)[.]", text)
    assert len(said) == len(PROMPTS)
    for right, n, evidence in ((int(right), int(n), float(evidence)) for right, n, evidence in said):
        assert abs(right / n - evidence) < 4 * math.sqrt(2 * max(evidence * (1 - evidence), 1 / n) / n)


def test_what_the_model_writes_cannot_move_the_cursor():
    assert views.printable("a\x1b[2J\x7f\nb\t") == "a\\x1b[2J\\x7f\nb\t"
