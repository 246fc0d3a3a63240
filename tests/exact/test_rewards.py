"""Rewards of finished texts as potentials: the law that a plain sum gives, whoever judges."""

import math

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.programs.generate import generate

WRITER = po.tabular.ngram(["abb", "ba"], order=2)
READER = po.tabular.ngram([["x", "b", "yes"], ["b", "b", "no"], ["b", "yes"], ["a", "no"], ["x", "no", "b", "a"]], order=2)  # other tokens than the writer's


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def weighed(score):
    """The writer's masses of texts after an a, times a score of each."""
    free = po.exact(generate(WRITER, "a", max_tokens=2))
    return {text: estimate.value * score(text) for text, estimate in free.answers().items()}


def test_a_text_weighs_what_a_verifier_says_at_its_end(laws):
    scores = {"": 0.5, "a": 0.0, "b": 1.0}
    reward = po.potentials.verifier(lambda text: scores.get(text, 0.25))
    program = po.constrained(WRITER, "a", po.potentials.at_end(reward, WRITER, "a", max_tokens=2, sharpness=2.0), max_tokens=2)
    expected = {text: mass for text, mass in weighed(lambda text: scores.get(text, 0.25) ** 2).items() if mass > 0}
    laws.holds("at_end, verifier", po.check.same_meaning(program, expected))


def test_a_text_weighs_what_a_language_model_says_at_its_end(laws):
    judge = po.potentials.lm_judge(READER, "x {text}", answers={" yes": 1.0, " no": 0.0}, max_tokens=6)

    def score(text):
        reader, state = READER.model().reader, 0
        for token in READER.tokenizer.encode(f"x {text}"):
            state = reader.following[state, token]
        yes, no = (math.exp(reader.log_probs[state, READER.tokenizer.encode(answer)[-1]]) for answer in ("yes", "no"))
        return yes / (yes + no)

    words = {"": "", "a": "a", "b": "b"}
    one = po.constrained(WRITER, "a", po.potentials.at_end(judge, WRITER, "a", max_tokens=1), max_tokens=1)
    free = po.exact(generate(WRITER, "a", max_tokens=1)).answers()
    laws.holds("at_end, language model as judge", po.check.same_meaning(one, {text: free[text].value * score(words[text]) for text in free}))
    np.testing.assert_allclose(judge.scores(["", "a", "b"]), [score(text) for text in ("", "a", "b")], atol=1e-6)
