"""Tasks: the same problems every time, answers scored as they deserve."""

import importlib.util
import re

import pytest

from posterity.models.programs import arithmetic
from posterity.models.programs.tasks import DIFFICULTIES, short_answer, task


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_problems_of_abacus_are_distinct_never_trained_on_and_the_same_every_time(name):
    found, again, other = task(f"abacus:{name}", count=20), task(f"abacus:{name}", count=20), task(f"abacus:{name}", count=20, seed=1)
    questions = [problem.question for problem in found.problems]
    assert questions == [problem.question for problem in again.problems] != [problem.question for problem in other.problems]
    assert len(set(questions)) == 20
    assert all(arithmetic.is_held_out(question) for question in questions)
    operations = arithmetic.LEVELS[DIFFICULTIES[name]].operations
    assert {sum(character in "+-*" for character in question) for question in questions} == {operations}


def test_fewer_problems_are_the_first_of_more():
    """So that a run on 100 problems speaks of the first 100 of a run on 300."""
    few, many = task("abacus:hard", count=5), task("abacus:hard", count=20)
    assert [p.question for p in few.problems] == [p.question for p in many.problems][:5]


def test_only_the_right_answer_scores():
    for problem in task("abacus:hard", count=10).problems:
        right = arithmetic.trace(problem.question)[-1]
        assert problem.score(right) == 1.0
        assert problem.score(right + "0") == problem.score("") == problem.score(" " + right) == 0.0


def test_levels_may_be_named_by_number_and_answers_are_last_lines():
    assert sum(c in "+-*" for c in task("abacus:6", count=1).problems[0].question) == 4
    assert task("abacus:3", count=1).extract("1+2\n3\n") == "3"


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("abacus:harder", 1, "no task is called 'abacus:harder'; known are abacus:easy"),
        ("abacus:7", 1, "no task is called"),
        ("reasoning-gym:", 1, "no task is called"),
        ("chess", 1, "no task is called"),
        ("abacus:hard", 0, "count must be at least 1"),
        ("abacus:1", 250, "has no 250 problems that were never trained on; it has about"),
    ],
)
def test_bad_names_and_counts_are_told_what_there_is(name, count, said, monkeypatch):
    monkeypatch.setattr("posterity.models.programs.tasks.PATIENCE", 20)
    with pytest.raises(ValueError, match=said):
        task(name, count=count)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No.", "No"),
        ("  Yes, because 'all' are", "Yes"),
        ("it is -4.5", "-4.5"),
        ("1. The letter appears 3 times.", "3"),
        ("1,000", "1000"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_answers_are_read_out_of_sentences(text, answer):
    assert short_answer(text) == answer


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is not None, reason="reasoning-gym is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ImportError, match=r"pip install 'posterity\[gym\]'"):
        task("reasoning-gym:leg_counting", count=1)


def test_reasoning_gym_scores_by_its_own_verifier():
    pytest.importorskip("reasoning_gym")
    found = task("reasoning-gym:basic_arithmetic", count=3)
    assert len({problem.question for problem in found.problems}) == 3
    for problem in found.problems:
        assert problem.score(problem.score.entry["answer"]) == 1.0
        assert problem.score("no number") < 1.0
    with pytest.raises(ValueError, match=r"reasoning-gym:nothing cannot be made"):
        task("reasoning-gym:nothing", count=1)


def test_options_say_how_problems_of_reasoning_gym_are_made():
    pytest.importorskip("reasoning_gym")
    found = task("reasoning-gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1", count=5)
    assert all(re.search(r": \d [+-] \d =", problem.question) for problem in found.problems)
    for wrong, said in (("max_terms", "options of .* are OPTION=VALUE, got 'max_terms'"), ("luck=1", "cannot be made"), ("max_terms=-1", "cannot be made")):
        with pytest.raises(ValueError, match=said):
            task(f"reasoning-gym:chain_sum,{wrong}", count=1)


def test_no_expression_of_a_level_is_longer_than_its_longest():
    for level in arithmetic.LEVELS:
        assert max(len(prompt) for prompt in arithmetic.generate(seed=1, level=level, count=300)) - 1 <= arithmetic.longest(level) <= arithmetic.MAX_EXPRESSION
