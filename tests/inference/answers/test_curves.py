"""Scaling curves: what was planted is found, within its intervals."""

import numpy as np
import pytest

from posterity.inference.answers.curves import Trials, accuracy_curve, budget_ratio, calibration, difference_curve

BUDGETS = 2 ** np.arange(8)


def planted(rng, problems=200, seeds=3, speedup=1.0, shift=0.0):
    """Trials whose chance of success is 1 - hardness (speedup budget)^-.4, with a hardness of each problem; and the mean over all problems there are."""
    hardness = rng.uniform(0.3, 1.0, size=problems)
    chance = 1 - hardness[:, None, None] * (speedup * BUDGETS) ** -0.4 + shift
    return Trials.of(BUDGETS, rng.random((problems, seeds, BUDGETS.size)) < chance)


def covered(hits: list[bool], level: float) -> bool:
    """Whether intervals hold the truth often enough: four standard errors and the percent by which percentiles of few problems are known to fall short."""
    allowed = 4 * np.sqrt(level * (1 - level) / len(hits)) + 0.02
    return np.mean(hits) > level - allowed


def test_intervals_hold_the_mean_as_often_as_they_say():
    """100 sets of trials at 8 budgets; a false alarm in 10,000 (fewer: budgets are averaged). Seeds resampled as well would reach .99 and more."""
    truth = 1 - 0.65 * BUDGETS**-0.4
    hits = []
    for number in range(100):
        curve = accuracy_curve(planted(np.random.default_rng(number), problems=60), level=0.9, resamples=200)
        hits.append(((curve.low <= truth) & (truth <= curve.high)).mean())
    assert covered(hits, 0.9)
    assert np.mean(hits) < 0.95


@pytest.mark.parametrize("speedup", [4.0, 16.0])
def test_the_ratio_of_planted_power_laws_is_recovered_within_its_interval(speedup):
    """60 pairs of curves, one ahead by a factor of the budget; a false alarm in 10,000."""
    found = []
    for number in range(60):
        rng = np.random.default_rng(number)
        found.append(budget_ratio(planted(rng, speedup=speedup), planted(rng), level=0.9, resamples=200))
    assert covered([ratio.interval[0] <= speedup <= ratio.interval[1] for ratio in found], 0.9)
    assert np.median([ratio.ratio for ratio in found]) == pytest.approx(speedup, rel=0.2)
    backwards = budget_ratio(planted(np.random.default_rng(0)), planted(np.random.default_rng(1), speedup=speedup))
    assert backwards.interval[1] < 1 < speedup


def test_equal_strategies_have_a_ratio_of_one():
    rng = np.random.default_rng(3)
    one = planted(rng)
    assert budget_ratio(one, one)[:2] == (1.0, (1.0, 1.0))
    low, high = budget_ratio(one, planted(rng)).interval
    assert low < 1 < high


def test_pairing_makes_differences_sharper():
    """The same problems, the same draws but for a tenth of them: the interval of the difference is less than half as wide as that of either."""
    rng = np.random.default_rng(4)
    one = planted(rng, seeds=1)
    changed = np.where(rng.random(one.right.shape) < 0.1, 1 - one.right, one.right)
    difference, alone = difference_curve(one, Trials.of(BUDGETS, changed)), accuracy_curve(one)
    assert ((difference.high - difference.low) < 0.75 * (alone.high - alone.low))[:4].all()
    assert difference.mean == pytest.approx(one.right.mean(axis=(0, 1)) - changed.mean(axis=(0, 1)))


def test_differences_are_taken_where_both_were_run():
    rng = np.random.default_rng(5)
    one = planted(rng)
    later = Trials.of(BUDGETS[2:], one.right[:, :, 2:])
    assert difference_curve(one, later).budgets.tolist() == BUDGETS[2:].tolist()
    assert difference_curve(later, one).mean == pytest.approx(0.0)


def test_the_accuracy_of_a_comparison_may_be_given_and_may_be_out_of_reach():
    steps = lambda *means: Trials.of([1, 4, 16], [[list(means)]] * 3)  # noqa: E731
    fast, slow = steps(0.2, 0.6, 0.8), steps(0.2, 0.4, 0.6)
    assert budget_ratio(fast, slow, accuracy=0.4).ratio == pytest.approx(2.0)  # 2 rollouts and 4
    assert budget_ratio(fast, slow, accuracy=0.7).ratio == np.inf
    assert budget_ratio(slow, fast, accuracy=0.7).ratio == 0.0
    assert budget_ratio(fast, slow, accuracy=0.1).needed == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"neither reaches an accuracy of 0.9: they get to 0.8 and 0.6"):
        budget_ratio(fast, slow, accuracy=0.9)


def test_a_curve_that_falls_again_counts_with_the_best_it_had():
    hacked, steady = Trials.of([1, 4, 16], [[[0.3, 0.6, 0.1]]] * 2), Trials.of([1, 4, 16], [[[0.3, 0.45, 0.6]]] * 2)
    found = budget_ratio(steady, hacked)
    assert (found.accuracy, found.needed) == (pytest.approx(0.6), pytest.approx((16.0, 4.0)))


def test_calibration_counts_gaps_by_bin():
    """Of .95: 80 of 100 right; of .45: half of 60. The error is (100 * .15 + 60 * .05) / 160."""
    sure = np.repeat([0.95, 0.45], [100, 60])[:, None]
    right = np.concatenate([np.arange(100) < 80, np.arange(60) < 30])[:, None]
    found = calibration(sure, right)
    assert found.error == pytest.approx((100 * 0.15 + 60 * 0.05) / 160)
    assert found.interval[0] < found.error < found.interval[1]
    assert found.share[[9, 4]].tolist() == [100 / 160, 60 / 160]
    assert found.accuracy[[9, 4]].tolist() == [0.8, 0.5]
    assert np.isnan(found.accuracy[0])


def test_confidence_one_belongs_to_the_last_bin():
    assert calibration(np.ones((2, 1)), np.ones((2, 1))).error == 0.0


def test_bad_input_is_named():
    good = planted(np.random.default_rng(0), problems=3)
    for wrong, said in [
        (lambda: Trials.of([2, 1], np.zeros((2, 1, 2))), "budgets must ascend"),
        (lambda: Trials.of([0, 1], np.zeros((2, 1, 2))), "from at least 1"),
        (lambda: Trials.of([1, 2], np.zeros((2, 1, 3))), r"\[problems, seeds, 2 budgets\], got \(2, 1, 3\)"),
        (lambda: Trials.of([1], np.full((2, 1, 1), np.nan)), r"right must lie in \[0, 1\]"),
        (lambda: accuracy_curve(good, level=1.0), "level must lie between 0 and 1"),
        (lambda: accuracy_curve(Trials.of([1], [[[1.0]]])), "at least two"),
        (lambda: budget_ratio(good, Trials.of(BUDGETS, good.right[:2])), "same problems, got 3 and 2"),
        (lambda: difference_curve(good, Trials.of([3], good.right[:, :, :1])), "no budget is in both"),
        (lambda: calibration(np.zeros((2, 1)), np.zeros((1, 2))), "must both be"),
        (lambda: calibration(np.full((2, 1), 1.5), np.zeros((2, 1))), "confidences lie in"),
    ]:
        with pytest.raises(ValueError, match=said):
            wrong()
