"""Rules that choose among answers: golden numbers, fair ties, and the errors that theory promises."""

import itertools
import math

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.optimize import least_squares

import posterity as po
from posterity.inference import answers as rules

PATHS = {"a1": ("A", 0.35), "a2": ("A", 0.2), "b1": ("B", 0.3), "b2": ("B", 0.1), "c": ("C", 0.05)}  # answer and probability of each path


def test_votes_are_shares_and_ties_are_split_fairly():
    tied = rules.majority(["x", "y", "y", "x", "z"])
    assert tied.scores == {"x": 0.4, "y": 0.4, "z": 0.2}
    assert tied.winners == ["x", "y"]
    assert tied.answer == "x"
    assert tied.confidence == pytest.approx(0.4)
    assert [tied.accuracy(lambda answer, right=right: answer == right) for right in "xyz"] == [0.5, 0.5, 0.0]


def test_weights_that_round_differently_still_tie():
    assert rules.majority(["x", "y", "x", "y", "x"], weights=[0.1, 0.6, 0.2, 0.0, 0.3]).winners == ["x", "y"]


def test_best_takes_the_largest_score_whatever_its_sign():
    assert rules.best(["x", "y", "x"], [-3.0, -2.0, -math.inf]).scores == {"y": -2.0, "x": -3.0}
    assert rules.best(["x", "y"], [-math.inf, -math.inf]).winners == ["x", "y"]


def test_best_of_majority_does_not_get_worse_with_more_answers_as_best_of_n_does():
    """A wrong answer that is rare and loved by the reward wins best-of-n as soon as it is met."""
    rng = np.random.default_rng(0)
    right = {"bon": {}, "bom": {}}
    scores = {"right": 0.8, "wrong": 0.3, "hack": 1.0}

    def accuracy(rule, runs):
        return np.mean([rule(run, [scores[answer] for answer in run]).accuracy(lambda answer: answer == "right") for run in runs])

    for n in (8, 512):
        runs = rng.choice(["right", "wrong", "hack"], p=[0.35, 0.64, 0.01], size=(200, n)).tolist()
        right["bon"][n], right["bom"][n] = accuracy(rules.best, runs), accuracy(lambda a, s: rules.best_of_majority(a, s, share=0.2), runs)
    assert right["bon"][512] < 0.1 < 0.8 < right["bon"][8]  # 99.4% of runs of 512 meet it
    assert right["bom"][512] == 1.0
    assert right["bom"][8] > 0.8


def test_no_share_is_best_by_answer_and_a_share_that_no_answer_has_leaves_those_with_the_most_votes():
    given = (["x", "x", "y", "z"], [0.1, 0.3, 0.4, 0.3])
    assert rules.best_of_majority(*given, share=0.0).scores == pytest.approx({"y": 0.4, "z": 0.3, "x": 0.2})
    assert rules.best_of_majority(*given, share=0.9).winners == ["x"]
    assert rules.best_of_majority(*given, share=0.0).top(2) == ["y", "z"]


def test_risk_under_equality_is_the_vote():
    given = ["x", "y", "y", "z"]
    assert rules.minimum_bayes_risk(given, lambda a, b: a == b).scores == rules.majority(given).scores


def test_answers_that_are_the_same_by_way_of_a_third_are_merged():
    near = lambda a, b: abs(a - b) <= 1  # noqa: E731
    assert rules.merged([5, 1, 3, 2, 9], near) == [5, 1, 1, 1, 9]
    assert rules.merged([], near) == []


def errors_of_consistency(n: int) -> tuple[float, float]:
    """E[(estimate - p(A))^2] of perplexity consistency and of votes with n draws, exactly: summed over which paths are drawn, and over counts."""
    p_of = {path: p for path, (_, p) in PATHS.items()}
    truth = sum(p for answer, p in PATHS.values() if answer == "A")
    of_a = [path for path, (answer, _) in PATHS.items() if answer == "A"]
    mean = 0.0
    for seen in itertools.product([False, True], repeat=len(of_a)):
        # inclusion and exclusion over the paths of A: exactly those that are marked were drawn
        marked = [path for path, s in zip(of_a, seen, strict=True) if s]
        missing = 1 - truth + sum(p_of[path] for path in marked)
        chance = sum(
            (-1) ** (len(marked) - len(some)) * (missing - sum(p_of[path] for path in marked) + sum(p_of[path] for path in some)) ** n
            for size in range(len(marked) + 1)
            for some in itertools.combinations(marked, size)
        )
        mean += chance * (sum(p_of[path] for path in marked) - truth) ** 2
    return mean, truth * (1 - truth) / n


def test_the_error_of_consistency_falls_exponentially_and_that_of_votes_linearly():
    ours, votes = np.array([errors_of_consistency(n) for n in (20, 40, 80)]).T
    assert votes[0] / votes[2] == pytest.approx(4)
    assert np.log(ours[1] / ours[2]) == pytest.approx(2 * np.log(ours[0] / ours[1]), rel=0.05)  # twice the draws, twice the logarithm
    assert ours[2] < 1e-4 * votes[2]


def test_consistency_adds_up_the_paths_that_were_drawn_each_once():
    """The exact error above is that of `rpc` itself: 2,000 runs of 10 draws agree within 4.4 standard errors (a false alarm in 100,000)."""
    rng, names, p = np.random.default_rng(1), list(PATHS), [p for _, p in PATHS.values()]
    found = []
    for _ in range(2_000):
        drawn = rng.choice(names, p=p, size=10).tolist()
        scores = rules.rpc([PATHS[path][0] for path in drawn], drawn, np.log([PATHS[path][1] for path in drawn]), prune=False).scores
        found.append((scores.get("A", 0.0) - 0.55) ** 2)
    expected, _ = errors_of_consistency(10)
    assert abs(np.mean(found) - expected) < 4.4 * np.std(found) / math.sqrt(2_000)


def test_the_weibull_mixture_is_recovered():
    """3,000 draws: shares within .05 and means within 8% (over seeds their spread is .01 and 2%: five standard deviations and four)."""
    rng = np.random.default_rng(2)
    low = rng.random(3_000) < 0.4
    x = np.where(low, 0.05 * rng.weibull(2.0, 3_000), 0.6 * rng.weibull(6.0, 3_000))
    law = rules.Weibulls.fit(x)
    share = law.share if law.means[0] < law.means[1] else 1 - law.share
    assert share == pytest.approx(0.4, abs=0.05)
    assert sorted(law.means) == pytest.approx([0.05 * math.gamma(1.5), 0.6 * math.gamma(1 + 1 / 6)], rel=0.08)


def test_pruning_drops_the_improbable_part_and_nothing_where_all_are_alike():
    rng = np.random.default_rng(3)
    low, high = rng.uniform(0.001, 0.02, 40), rng.uniform(0.5, 0.9, 40)
    kept = rules.pruned(np.concatenate([low, high]))
    assert kept[40:].all()
    assert kept[:40].mean() < 0.1
    assert rules.pruned(np.full(5, 0.2)).all()
    assert rules.pruned([0.3]).all()


def test_long_paths_do_not_underflow():
    assert rules.rpc(["x", "y", "y"], ["p", "q", "r"], [-2_000.0, -2_001.0, -2_002.0], prune=False).answer == "x"
    assert rules.rpc(["x", "y"], ["p", "q"], [-math.inf, -5.0]).answer == "y"


@pytest.mark.parametrize(("n", "right", "k", "expected"), [(10, 3, 5, 0.916667), (100, 1, 10, 0.1), (100, 5, 50, 0.971858), (4, 1, 2, 0.5), (3, 0, 3, 0.0)])
def test_pass_at_k_golden_numbers(n, right, k, expected):
    assert float(rules.pass_at_k(n, right, k)) == pytest.approx(expected, abs=1e-6)


def test_pass_at_k_is_unbiased():
    p, n, k = 0.3, 7, 3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert np.dot(chances, rules.pass_at_k(n, np.arange(n + 1), k)) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def exponent_of(planted: rules.BetaLaw, ks: np.ndarray) -> float:
    """That of the power law nearest to the planted law's exact coverage, in squares of its logarithm."""
    return least_squares(lambda theta: -np.exp(theta[0] + theta[1] * np.log(ks)) - np.log(planted(ks)), [0.5, -0.4]).x[1]


@pytest.mark.slow
def test_the_interval_of_the_coverage_law_holds_the_planted_exponent_as_often_as_it_says():
    """12 data sets of 300 problems, 80% intervals: 10 on average, and fewer than 5 by a chance of one in 1,700."""
    planted, ks, rng, held = rules.BetaLaw(0.3, 2.0), 2 ** np.arange(7), np.random.default_rng(5), 0
    for seed in range(12):
        law = rules.CoverageLaw.fit(64, rng.binomial(64, rng.beta(*planted, size=300)), ks=ks, level=0.8, seed=seed)
        held += law.interval[0] < exponent_of(planted, ks) < law.interval[1]
    assert held >= 5


def test_a_planted_beta_mixture_is_recovered():
    """1,000 problems of 128 tries: the exponent that fits the planted law's own curve lies in the 99.9% interval (a false alarm in 1,000)."""
    planted, ks = rules.BetaLaw(0.3, 2.0), 2 ** np.arange(8)
    rng = np.random.default_rng(4)
    right = rng.binomial(128, rng.beta(*planted, size=1_000))
    law = rules.CoverageLaw.fit(128, right, ks=ks, level=0.999)
    low, high = law.interval
    assert low < law.exponent < high < 0
    assert low < exponent_of(planted, ks) < high
    assert np.abs(law(ks) - rules.coverage(128, right, ks)).max() < 0.03
    beta = rules.BetaLaw.fit(128, right)
    assert beta.a == pytest.approx(0.3, abs=0.06)
    assert np.abs(beta(ks) - planted(ks)).max() < 0.05


def test_the_coverage_of_a_beta_law_falls_with_its_first_parameter():
    law = rules.BetaLaw(0.3, 2.0)
    assert (1 - law(2_000)) / (1 - law(1_000)) == pytest.approx(2**-0.3, rel=1e-3)
    assert law(1) == pytest.approx(0.3 / 2.3)


def test_the_mode_comes_with_its_margin():
    """A coin of .7: margin .4 within 4.4 errors (a false alarm in 100,000); the error is that of a difference of shares, 2 sqrt(.7 * .3 / n)."""

    @po.program
    def coin():
        return po.sample("heads", dist.Bernoulli(0.7))

    found = rules.mode(po.importance(jax.random.key(0), coin(), n=4_000))
    assert found.answer == 1
    assert abs(found.margin.value - 0.4) < 4.4 * found.margin.error
    assert found.margin.error == pytest.approx(2 * math.sqrt(0.21 / 4_000), rel=0.05)
    exact = rules.mode(po.exact(coin()), extract=lambda heads: "heads" if heads else "tails")
    assert exact.answer == "heads"
    assert exact.margin == (pytest.approx(0.4), 0.0)
    assert exact.probability.error == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.majority([]), "no answers"),
        (lambda: rules.majority(["x"], weights=[-1.0]), "must not be negative"),
        (lambda: rules.majority(["x", "y"], weights=[1.0]), r"one score for each of 2 answers, got an array of shape \(1,\)"),
        (lambda: rules.best(["x"], [math.nan]), "below inf, got nan for answer 0"),
        (lambda: rules.best_of_majority(["x"], [1.0], share=1.5), "share must lie in"),
        (lambda: rules.rpc(["x"], ["p"], [0.5]), "must not be above 0"),
        (lambda: rules.rpc(["x", "y"], ["p", "p"], [-1.0, -1.0]), "one path has one answer"),
        (lambda: rules.rpc(["x"], [], [-1.0]), "one path for each"),
        (lambda: rules.rpc(["x"], ["p"], [-math.inf]), "every path has probability zero"),
        (lambda: rules.Weibulls.fit([1.0, -1.0]), "positive numbers"),
        (lambda: rules.pass_at_k(4, 2, 5), "k must lie between 1 and the number of tries, 4"),
        (lambda: rules.pass_at_k(4, 5, 2), "right must lie between"),
        (lambda: rules.CoverageLaw.fit(8, [0, 0]), "no problem is solved"),
        (lambda: rules.CoverageLaw.fit(8, [9, 0]), "counts from 0 to n=8"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
