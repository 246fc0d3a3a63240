"""Models that judge: their scores are those of a plain reading, whoever asks, and whatever the writer's tokens."""

import math

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.heads import Classifier
from posterity.models.potentials.judges import QUESTIONS
from posterity.models.potentials.reading import Reader
from posterity.models.programs.reason import reason
from posterity.tests.fixtures.families import CLASSIFIERS, write

WRITER = po.tabular.ngram(["ACAC", "CAB", "ABCB"], order=2)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Classifier:
    """Of one label; its tokens are other letters in another order than the writer's."""
    return po.load_classifier(f"hf:{write(tmp_path_factory.mktemp('reward'), CLASSIFIERS['Qwen2, one reward'])}")


def logistic(x):
    return 1 / (1 + np.exp(-x))


REDUCED = {"last": lambda p: p[-1], "min": min, "product": math.prod, "mean": lambda p: sum(p) / len(p)}


@pytest.mark.parametrize("reduction", REDUCED)
def test_steps_are_scored_at_their_ends_and_reduced(classifier, reduction):
    judge = po.potentials.reward_model(classifier, reduction=reduction, delimiter="C", max_tokens=16)
    texts, prompts = ["ABCBCA", "B", "CCAC"], "AB"
    ends = [[4, 6, 8], [3], [3]]  # places after AB, with a C behind every step that is not empty
    written = ["ABABCBCAC", "ABBC", "ABAC"]
    by_token = [logistic(rows[:, 0]) for rows in classifier.scores_by_token(written)]
    expected = [REDUCED[reduction]([p[end] for end in places]) for p, places in zip(by_token, ends, strict=True)]
    np.testing.assert_allclose(judge.scores(texts, prompts), expected, atol=1e-5)


def test_a_marker_stands_in_the_delimiters_place_and_a_whole_answer_is_one_step(classifier):
    marked = po.potentials.reward_model(classifier, delimiter="C", marker="DE", max_tokens=16)
    whole = po.potentials.reward_model(classifier, delimiter=None, max_tokens=16)
    by_hand = logistic(classifier.scores(["AABDEADE", "AABCA"])[:, 0])
    np.testing.assert_allclose([marked.scores(["ABCA"], "A")[0], whole.scores(["ABCA"], "A")[0]], by_hand, atol=1e-5)


@pytest.mark.slow
def test_a_program_is_rewarded_by_what_the_judge_says_of_its_texts(classifier):
    judge = po.potentials.reward_model(classifier, reduction="min", delimiter="C", max_tokens=16)
    program = reason(WRITER, "A", reward=judge, delimiter="C", max_steps=2, max_step_tokens=2)
    posterior = po.smc(jax.random.key(0), program, n=6)
    texts = [str(jax.tree.map(lambda x, i=i: x[i], posterior.values.text)) for i in range(6)]
    np.testing.assert_allclose(posterior.values.reward, judge.scores(texts, "A"), atol=1e-5)
    assert len(set(texts)) > 2


def test_a_template_is_filled_and_its_text_split_into_steps():
    reader = Reader("test", WRITER.tokenizer, "A{prompt}B{text}C", 32, "A")
    ids, ends = reader.encoded("CC", "BAB")
    assert WRITER.tokenizer.decode(ids) == "ACCBBABAC"
    assert [WRITER.tokenizer.decode(ids[: end + 1]) for end in ends] == ["ACCBBA", "ACCBBABA"]


def test_answers_are_expected_values_among_the_answers():
    lm = po.tabular.ngram(["A0", "A1", "A1", "A9", "B0"], order=2, smoothing=0)
    digits = po.potentials.lm_judge(lm, "{text}", answers={"0": 0.0, "1": 1 / 9, "9": 1.0}, max_tokens=4)
    np.testing.assert_allclose(digits.scores(["A", "B"]), [(2 / 9 + 1) / 4, 0.0], atol=1e-6)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_the_questions_that_come_with_it_are_asked(kind):
    question, answers = QUESTIONS[kind]
    best, worst = max(answers, key=answers.get), min(answers, key=answers.get)
    asked = question.format(prompt="Two? ", text="2")
    lm = po.tabular.ngram([*[f"{asked} {best}"] * 3, f"{asked} {worst}", " ".join(answers)], order=2, smoothing=0, words=True)
    np.testing.assert_allclose(po.potentials.lm_judge(lm, answers=kind).scores(["2"], "Two? "), [0.75], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda lm: po.potentials.lm_judge(lm, "A", answers={"A": 1.0, "B": 0.0}), r"must hold \{text\} once"),
        (lambda lm: po.potentials.lm_judge(lm), "the vocabulary of ngram has no answer 'Yes'"),
        (lambda lm: po.potentials.lm_judge(lm, "{text}", answers="maybe"), "answers must be one of 'true', 'yes', 'digits', or texts"),
        (lambda lm: po.potentials.lm_judge(lm, answers={"A": 1.0, "B": 0.0}), "answers of one's own need a template"),
        (lambda lm: po.potentials.lm_judge(lm, "{text}", answers={"AB": 1.0, "B": 0.0}), "an answer must be one token; 'AB' is 2"),
        (lambda lm: po.potentials.lm_judge(lm, "{text}", answers={"A": 1.0}), "at least two texts with values in"),
        (lambda lm: po.potentials.lm_judge(lm, "{text}", answers={"A": 2.0, "B": 0.0}), "at least two texts with values in"),
        (lambda lm: po.potentials.lm_judge(lm, "{text}", answers={"A": 1.0, "B": 0.0}, max_tokens=10**6), "max_tokens must be at most the context of ngram"),
        (
            lambda lm: po.potentials.lm_judge(lm, "{text}", answers={"A": 1.0, "B": 0.0}, max_tokens=2).scores(["ABC"]),
            "1 to 2 tokens; 'ABC' in its template has 4",
        ),
    ],
)
def test_judges_that_cannot_judge_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make(WRITER)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reduction": "max"}, "reduction must be one of 'last', 'min', 'product', 'mean', got 'max'"),
        ({"delimiter": ""}, "delimiter must not be empty"),
        ({"label": 1}, "label must be one of the 1 of"),
        ({"max_tokens": 65}, "max_tokens must be at most the context of .*, 64; got 65"),
    ],
)
def test_reward_models_that_cannot_be_read_are_refused(classifier, options, says):
    with pytest.raises(ValueError, match=says):
        po.potentials.reward_model(classifier, **options)
