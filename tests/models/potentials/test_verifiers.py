"""Python functions as rewards: what they are asked, how often, and what happens when they raise, hang or talk nonsense."""

import math
import threading
import time

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.programs.reason import reason

LETTERS = po.tabular.ngram(["abca", "cab", "bba"], order=2)


def asked(verifier, texts):
    """Its scores of texts in the tokens of LETTERS."""
    rows = [LETTERS.tokenizer.encode_on(text) for text in texts]
    tokens = np.array([row + [0] * (8 - len(row)) for row in rows])
    return verifier.function(LETTERS.tokenizer, tokens, np.array(list(map(len, rows))), np.ones(len(rows), bool), np.ones(len(rows), bool)).tolist()


def test_texts_are_verified_at_once_and_only_once():
    calls, names = [], set()

    def half(text):
        calls.append(text)
        names.add(threading.current_thread().name)
        time.sleep(0.05)
        return 0.5

    verifier = po.potentials.verifier(half, workers=3)
    for _ in range(2):
        assert asked(verifier, ["ab", "ba", "c", "ab"]) == [0.5] * 4
    assert sorted(calls) == ["ab", "ba", "c"]
    assert len(names) == 3


def raises(text):
    raise KeyError(text)


def hangs(text):
    time.sleep(5)


@pytest.mark.parametrize(
    ("function", "kind", "says"),
    [
        (raises, KeyError, "KeyError for 'ab'"),
        (hangs, TimeoutError, "TimeoutError for 'ab': no answer within 0.1 seconds"),
        (lambda text: 1.5, ValueError, r"ValueError for 'ab': a score must lie in \[0, 1\], got 1.5"),
        (lambda text: math.nan, ValueError, r"a score must lie in \[0, 1\], got nan"),
        (lambda text: "right", ValueError, "could not convert"),
    ],
    ids=["raises", "hangs", "beyond one", "nan", "no number"],
)
def test_a_failure_is_an_error_or_a_stated_score(function, kind, says):
    with pytest.raises(RuntimeError, match=says):
        asked(po.potentials.verifier(function, seconds=0.1), ["ab"])
    some = po.potentials.verifier(lambda text: 1.0 if text == "c" else function(text), seconds=0.1, failed=0.25)
    assert asked(some, ["ab", "c", "ab"]) == [0.25, 1.0, 0.25]
    ((text, error),) = some.failures
    assert (text, type(error)) == ("ab", kind)


@pytest.mark.slow
def test_a_failure_ends_a_run_and_a_stated_score_does_not():
    def run(**options):
        reward = po.potentials.at_end(po.potentials.verifier(lambda text: 1 / (text.count("c") - 1) ** 2 / 4, **options), LETTERS, "a", max_tokens=2)
        return po.smc(jax.random.key(0), po.constrained(LETTERS, "a", reward, max_tokens=2), n=32)

    with pytest.raises(Exception, match="ZeroDivisionError"):
        run()
    answers = run(failed=0.0).answers()
    assert len(answers) > 1
    assert not any(text.count("c") == 1 for text in answers)


@pytest.mark.slow
def test_unfinished_texts_are_asked_about_only_when_wanted():
    seen = []

    def note(text):
        seen.append(text)
        return 1.0 if "b" in text else 0.5

    def scores(**options):
        program = reason(LETTERS, "a", reward=po.potentials.verifier(note, **options), delimiter="a", max_steps=3, max_step_tokens=2)
        posterior = po.smc(jax.random.key(0), program, n=8)
        return np.asarray(posterior.values.scores), np.asarray(posterior.values.steps), posterior

    found, steps, posterior = scores(unfinished=0.75)
    ended = np.asarray(posterior.values.text.ended)
    whole = {str(jax.tree.map(lambda x, i=i: x[i], posterior.values.text)) for i in range(8) if ended[i]}
    assert whole <= set(seen)
    assert ended.any()
    for row, count, is_over in zip(found, steps, ended, strict=True):
        assert (row[: count - is_over] == 0.75).all()
        assert not is_over or row[count - 1] in (0.5, 1.0)
    seen.clear()
    found, steps, posterior = scores(unfinished=None)
    assert any(text not in whole for text in seen)
    assert (found[np.arange(3) < steps[:, None]] >= 0.5).all()


@pytest.mark.parametrize(
    ("text", "score"), [("1/2", 1.0), ("so\n0.50", 1.0), (r"\frac{2}{4}", 1.0), ("0.51", 0.0), ("", 0.0), ("a half", 0.0), ("__import__('os')", 0.0)]
)
def test_answers_are_equal_when_sympy_says_so(text, score):
    assert po.potentials.equals("1/2").function.score(text) == score


def test_equal_expressions_need_not_be_written_alike():
    square = po.potentials.equals("(x+1)^2", extract="boxed")
    assert [square.function.score(text) for text in (r"\boxed{x^2 + 2*x + 1}", r"\boxed{x^2 + 1}", "x^2 + 2*x + 1")] == [1.0, 0.0, 0.0]


def test_tasks_of_reasoning_gym_are_verified_by_their_own_verifier():
    pytest.importorskip("reasoning_gym")
    task = po.potentials.gym("chain_sum", 2, seed=1)
    assert task.question
    assert task.verifier.function.score(f"I add them up.\n{task.answer}") == 1.0
    assert task.verifier.function.score(f"{int(task.answer) + 1}") < 1.0
    assert po.potentials.gym("chain_sum", 2, seed=1).question == task.question
    with pytest.raises(ValueError, match="gym: reasoning-gym cannot make 'no such'"):
        po.potentials.gym("no such")


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r'pip install "posterity\[gym\]"'):
        po.potentials.gym("chain_sum")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: po.potentials.verifier("right"), TypeError, "give a function of a text, got str"),
        (lambda: po.potentials.verifier(len, seconds=0.0), ValueError, "seconds must be positive and finite"),
        (lambda: po.potentials.verifier(len, workers=0), ValueError, "workers at least 1, got 10.0 and 0"),
        (lambda: po.potentials.verifier(len, failed=2.0), ValueError, r"failed must be a score in \[0, 1\]"),
        (lambda: po.potentials.verifier(len, unfinished=-1.0), ValueError, r"unfinished must be a score in \[0, 1\]"),
        (lambda: po.potentials.equals(" "), ValueError, "expected must not be empty"),
        (lambda: po.potentials.gym("chain_sum", -1), (ValueError, ImportError), "gym"),
        (lambda: po.potentials.at_end(3, LETTERS, "a"), TypeError, "reward must be a Reward"),
        (lambda: po.potentials.at_end(po.potentials.verifier(len), LETTERS, "a", max_tokens=0), ValueError, "max_tokens must be at least 1"),
        (lambda: po.potentials.at_end(po.potentials.verifier(len), LETTERS, "a", sharpness=0.0), ValueError, "sharpness must be positive"),
    ],
)
def test_options_are_looked_at(make, error, says):
    with pytest.raises(error, match=says):
        make()
