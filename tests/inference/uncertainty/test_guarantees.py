"""Conformal sets and anytime-valid intervals keep their promises: over every order and every sequence of draws, not by simulation."""

import itertools
import math

import numpy as np
import pytest

import posterity as po
from posterity.inference import uncertainty as u
from posterity.inference.queries import Estimate

QUESTION = {"a": 0.6, "b": 0.3, "c": 0.1}


def test_few_questions_rule_nothing_out():
    """Published code takes the largest score instead, and covers n / (n + 1) < level."""
    assert u.conformal_quantile([0.1, 0.2, 0.3], 0.9) == math.inf
    sets = u.conformal([QUESTION] * 3, "aab")
    assert sets.set(QUESTION).everything
    assert "never heard of" in sets.set(QUESTION)
    assert sets.coverage == (1.0, 0.0)


def test_the_coverage_of_one_calibration_has_its_golden_law():
    coverage = u.conformal([QUESTION] * 100, "a" * 100, level=0.9).coverage
    assert coverage == pytest.approx((0.90099, 0.02957), abs=1e-5)


def test_levels_that_are_whole_ranks_are_not_rounded_up():
    for n, level in ((9, 0.9), (19, 0.9), (99, 0.7), (9, 0.3)):
        assert u.conformal_quantile(range(1, n + 1), level) == round((n + 1) * level)


def test_truths_that_nobody_proposed_make_sets_everything():
    assert not u.conformal([QUESTION] * 20, ["z"] + ["a"] * 19, level=0.9).set(QUESTION).everything
    assert u.conformal([QUESTION] * 20, ["z"] * 5 + ["a"] * 15, level=0.9).set(QUESTION).everything


@pytest.mark.parametrize(("score", "expected"), [("probability", ("a", "b")), ("cumulative", ("a", "b"))])
def test_sets_hold_the_answers_up_to_the_threshold(score, expected):
    sets = u.conformal([QUESTION] * 9, "aaaaaaaab", level=0.9, score=score)
    assert sets.set(QUESTION).answers == expected
    assert ("c" in sets.set(QUESTION)) is False


def test_cumulative_sets_grow_with_the_question():
    sets = u.conformal([QUESTION] * 9, "aaaaaaaab", level=0.9, score="cumulative")
    assert sets.set({"x": 0.9, "y": 0.1}).answers == ("x",)
    assert sets.set(dict.fromkeys(range(20), 0.05)).answers == ()  # all tie, and together they are more than .9
    assert sets.set({k: 0.1 - 0.001 * k for k in range(10)}).answers == tuple(range(9))


def test_sets_take_the_answers_of_a_posterior():
    estimates = {"a": Estimate(0.6, 0.01), "b": Estimate(0.4, 0.01)}
    assert u.conformal([estimates] * 9, "aaaaaaaaa").set(estimates).answers == ("a",)


@pytest.mark.parametrize(
    ("n", "m", "place", "rank", "coverage"), [(20, 5, 3, 17, 0.93015), (50, 10, 5, 34, 0.90463), (100, 20, 10, 64, 0.90857), (19, 1, 1, 18, 0.9)]
)
def test_the_rank_of_a_batch_is_golden(n, m, place, rank, coverage):
    assert u.batch_rank(n, m, place, 0.9) == rank
    assert u.rank_law(n, m, place)[:rank].sum() == pytest.approx(coverage, abs=5e-6)
    assert u.rank_law(n, m, place).sum() == pytest.approx(1)


def test_the_rank_law_is_that_of_all_orders():
    """4 calibration scores and 3 of the batch: where the second smallest of the batch lies."""
    counts = np.zeros(5)
    for batch in itertools.combinations(range(7), 3):
        counts[batch[1] - 1] += 1  # of the scores below the batch's second, all but one are calibration scores
    np.testing.assert_allclose(u.rank_law(4, 3, 2), counts / math.comb(7, 3))


def test_confidence_sequences_shrink_to_the_truth():
    hits = np.arange(2_000) % 4 == 0
    low, high = u.confidence_sequence(hits)
    assert low[-1] < 0.25 < high[-1]
    assert high[-1] - low[-1] < 0.09
    assert (u.confidence_sequence(hits, level=0.5).high[1:] < high[1:]).all()
    assert u.confidence_sequence(~hits).low == pytest.approx(1 - high)


def test_the_ends_of_an_interval_are_where_the_mixture_reaches_its_bound():
    hits = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1])
    low, high = u.confidence_sequence(hits, level=0.8)
    for end in (low[-1], high[-1]):
        assert float(u.log_mixture(6, 4, end)) == pytest.approx(math.log(5))


def test_betting_is_narrow_where_values_lie_close():
    values = 0.7 + 0.02 * np.sin(np.arange(60))
    bet = u.betting_sequence(values)
    assert bet.low[-1] < 0.7 < bet.high[-1]
    assert bet.high[-1] - bet.low[-1] < 0.2
    assert bet.low[0] < 0.02
    assert bet.high[0] > 0.98  # one draw says next to nothing


def test_deciding_asks_for_no_more_draws_than_it_needs():
    asked = []

    def draws():
        for k in itertools.count():
            asked.append(k)
            yield "b" if k % 5 == 2 else "a"

    decision = u.decide(draws(), level=0.99)
    assert decision.answer == "a"
    assert decision.draws == len(asked) < 60
    assert decision.counts["a"] > decision.counts["b"]
    assert min(decision.evidence["b"], decision.unseen) >= 100 * (1 - 1e-9)
    assert decision.evidence["a"] < 100


def test_a_tie_stays_open():
    decision = u.decide(itertools.islice(itertools.cycle("ab"), 200))
    assert decision.answer is None
    assert decision.draws == 200


def test_no_draws_decide_nothing():
    assert u.decide([]) == (None, 0, {}, {}, 1.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: u.conformal_quantile([], 0.9), "shape"),
        (lambda: u.conformal_quantile([math.nan], 0.9), "NaN"),
        (lambda: u.conformal_quantile([1.0], 1.0), "level"),
        (lambda: u.conformal([QUESTION], "ab"), "1 questions, 2 truths"),
        (lambda: u.conformal([{"a": 0.9, "b": 0.9}], "a"), "sum to at most 1"),
        (lambda: u.conformal([{"a": -0.1}], "a"), "negative"),
        (lambda: u.conformal([QUESTION], "a", score="aps"), "probability, cumulative"),
        (lambda: u.batch_rank(5, 3, 4), "place"),
        (lambda: u.confidence_sequence([0.5]), "betting_sequence"),
        (lambda: u.confidence_sequence([1], prior=0), "prior"),
        (lambda: u.betting_sequence([1.5]), r"\[0, 1\]"),
        (lambda: u.betting_sequence([0.5], grid=1), "grid"),
        (lambda: u.decide("ab", level=1), "level"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_package_is_found_under_the_name_of_the_house():
    assert po.uncertainty is u
