"""Python functions of text as potentials: the law they give, and what is said when they fail."""

import math
import threading
import time

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.potentials import judge

LETTERS = po.tabular.ngram(["abca", "cab", "bba"], order=2)


def likes_b(text, whole):
    """A b is worth one nat; an unfinished text is guessed at, and one with cc given up."""
    return -math.inf if "cc" in text else text.count("b") + (0.0 if whole else 0.25 * len(text))


def test_the_posterior_is_the_models_times_the_functions():
    free = po.exact(po.constrained(LETTERS, "a", po.potentials.over(po.potentials.regex(".*"), LETTERS.tokenizer), max_tokens=3))
    masses = {text: estimate.value * math.exp(free.log_evidence + likes_b(text, True)) for text, estimate in free.answers().items() if "cc" not in text}
    assert po.check.same_meaning(po.constrained(LETTERS, "a", judge(likes_b, LETTERS.tokenizer, max_tokens=3), max_tokens=3), masses)


def test_texts_are_judged_at_once_and_only_once():
    calls, most, under_way, lock = [], 0, 0, threading.Lock()

    def slow(text, whole):
        nonlocal most, under_way
        with lock:
            calls.append((text, whole))
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return 0.0

    potential = judge(slow, LETTERS.tokenizer, max_tokens=2, workers=3)
    tokens = np.array([[0, 1], [1, 0], [2, 2], [0, 1], [1, 1]])
    for _ in range(2):
        assert potential.function(tokens, np.full(5, 2), np.zeros(5, bool)).tolist() == [0.0] * 5
    assert len(calls) == len(set(calls)) == 4
    assert most == 3


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda text, whole: 1 / 0, RuntimeError, "ZeroDivisionError for 'ab'"),
        (lambda text, whole: math.nan, ValueError, "nan for 'ab'"),
        (lambda text, whole: time.sleep(5), TimeoutError, "within 0.1 seconds for 'ab'"),
    ],
)
def test_a_function_that_fails_is_named_with_its_text(function, error, says):
    asked = judge(function, LETTERS.tokenizer, max_tokens=2, seconds=0.1).function
    with pytest.raises(error, match=says):
        asked(np.array([0, 1]), np.array(2), np.array(False))


def test_a_failure_ends_the_run():
    program = po.constrained(LETTERS, "a", judge(lambda text, whole: 1 / 0, LETTERS.tokenizer, max_tokens=2), max_tokens=2)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        po.smc(jax.random.key(0), program, n=2)


def test_options_are_looked_at():
    with pytest.raises(ValueError, match="workers must be"):
        judge(likes_b, LETTERS.tokenizer, workers=0)
