"""Selective answering, detection of errors, reliability, and the maps that calibrate: against sums written out, and identities that hold exactly."""

import itertools
import math

import numpy as np
import pytest

from posterity.inference import uncertainty as u

SURE = np.array([0.95, 0.9, 0.9, 0.8, 0.7, 0.7, 0.7, 0.55, 0.4, 0.2])
RIGHT = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1, 0], bool)
DRAWN = np.random.default_rng(0).random(400)
CALIBRATED = np.random.default_rng(1).random(400) < DRAWN


def test_risk_is_the_mean_over_all_orders_of_tied_answers():
    """By enumeration of the orders that the confidences allow."""
    sure, loss = np.array([0.5, 0.9, 0.5, 0.5]), np.array([1.0, 0.0, 0.0, 3.0])
    orders = [order for order in itertools.permutations(range(4)) if all(sure[a] >= sure[b] for a, b in itertools.pairwise(order))]
    expected = np.mean([np.cumsum(loss[list(order)]) / np.arange(1, 5) for order in orders], axis=0)
    found = u.risk_coverage(sure, loss)
    np.testing.assert_allclose(found.risk, expected)
    assert found.area == pytest.approx(expected.mean())
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.threshold.tolist() == [0.9, 0.5, 0.5, 0.5]


def test_the_oracle_has_no_excess_and_chance_no_ratio():
    loss = 1.0 - RIGHT
    assert u.risk_coverage(-loss, loss).excess == 0
    assert u.risk_coverage(-loss, loss).rejection_ratio == 1
    assert u.risk_coverage(np.zeros(10), loss).rejection_ratio == pytest.approx(0)
    assert u.risk_coverage(loss, loss).rejection_ratio < 0
    assert math.isnan(u.risk_coverage(SURE, np.ones(10)).rejection_ratio)


def test_the_order_in_which_answers_are_given_does_not_matter():
    shuffled = np.random.default_rng(3).permutation(10)
    assert u.risk_coverage(SURE[shuffled], RIGHT[shuffled]).area == pytest.approx(u.risk_coverage(SURE, RIGHT).area)
    assert u.reliability(SURE[shuffled], RIGHT[shuffled], bins=4, equal="mass").error == pytest.approx(u.reliability(SURE, RIGHT, bins=4, equal="mass").error)


def test_detection_counts_pairs_and_ties_as_half():
    pairs = [(a > b) + (a == b) / 2 for a in SURE[RIGHT] for b in SURE[~RIGHT]]
    assert u.error_detection(SURE, RIGHT).auroc == pytest.approx(np.mean(pairs))


def test_the_interval_of_detection_holds_the_truth_as_often_as_it_says():
    """Normal confidences a distance of 1 apart: AUROC Phi(1 / sqrt 2) = .7602. Of 60 intervals of 90% at n = 80, 54 are expected to hold it;
    fewer than 46 has probability .0015 if coverage is .9 (and the seed is fixed)."""
    generator, held = np.random.default_rng(5), 0
    for _ in range(60):
        right = np.arange(80) < 40
        low, high = u.error_detection(generator.normal(size=80) + right, right, level=0.9, resamples=200).interval
        held += low <= 0.760250 <= high
    assert 46 <= held <= 60


def test_reliability_is_the_gap_bin_by_bin():
    found = u.reliability(SURE, RIGHT, bins=2)
    top = SURE >= 0.5
    gaps = [abs(SURE[which].mean() - RIGHT[which].mean()) for which in (~top, top)]
    assert found.error == pytest.approx(0.2 * gaps[0] + 0.8 * gaps[1])
    assert found.largest == pytest.approx(max(gaps))
    assert found.share.tolist() == [0.2, 0.8]


def test_bins_of_equal_mass_hold_equally_many():
    found = u.reliability(DRAWN**4, CALIBRATED, bins=8, equal="mass")
    np.testing.assert_allclose(found.share, 1 / 8)
    assert len(u.reliability(DRAWN**4, CALIBRATED, bins=1000, equal="mass").share) == 400


def test_the_three_parts_of_the_brier_score_add_up():
    for sure, right in ((SURE, RIGHT), (DRAWN, CALIBRATED), (DRAWN**3, CALIBRATED), (1 - DRAWN, CALIBRATED)):
        found = u.brier(sure, right)
        assert found.score == pytest.approx(np.mean((sure - right) ** 2))
        assert found.score == pytest.approx(found.miscalibration - found.discrimination + found.uncertainty)
        assert min(found) >= 0
    assert u.brier(1 - DRAWN, CALIBRATED).discrimination < 0.01  # an order that is wrong discriminates nothing


def test_isotonic_regression_is_the_best_map_that_never_falls():
    """Against all monotone step maps on a grid of values that holds the solution (pool adjacent violators gives ratios of counts)."""
    sure, right = np.array([0.1, 0.2, 0.3, 0.4, 0.4]), np.array([0, 1, 0, 1, 0])
    grid = sorted({a / b for b in range(1, 6) for a in range(b + 1)})
    best = min(
        itertools.combinations_with_replacement(grid, 4),
        key=lambda levels: sum((levels[round(10 * s) - 1] - r) ** 2 for s, r in zip(sure, right, strict=True)),
    )
    np.testing.assert_allclose(u.isotonic(sure, right)([0.1, 0.2, 0.3, 0.4]), best)


def test_isotonic_maps_keep_within_what_was_seen():
    fitted = u.isotonic(SURE, RIGHT)
    levels = fitted(np.linspace(0, 1, 50))
    assert (np.diff(levels) >= 0).all()
    assert levels[0] == fitted(0.2) == 0


@pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(planted):
    """The mean outcome at each confidence is what the temperature says, so that the score equation holds exactly there: 100 answers for each."""
    log_odds = np.log([1.5, 4.0, 9.0])
    rights = np.round(100 / (1 + np.exp(-log_odds / planted))).astype(int)
    sure = np.repeat(1 / (1 + np.exp(-log_odds)), 100)
    right = np.concatenate([np.arange(100) < k for k in rights])
    assert u.temperature(sure, right).temperature == pytest.approx(planted, rel=0.05)


def test_the_temperature_is_where_the_likelihood_is_largest():
    sure = DRAWN**2
    fitted = u.temperature(sure, CALIBRATED)
    odds = np.log(sure) - np.log1p(-sure)
    loss = lambda t: np.mean(np.logaddexp(0, np.where(CALIBRATED, -1, 1) * odds / t))  # noqa: E731
    assert loss(fitted.temperature) < min(loss(fitted.temperature * 1.01), loss(fitted.temperature / 1.01))
    laws = np.stack([np.zeros(400), odds], axis=1)
    assert u.temperature_of_laws(laws, CALIBRATED.astype(int)).temperature == pytest.approx(fitted.temperature)
    np.testing.assert_allclose(np.exp(fitted.log_probs(laws))[:, 1], fitted(sure))


def test_laws_worse_than_chance_get_an_infinite_temperature():
    fitted = u.temperature([0.9, 0.9], [True, False])
    assert fitted.temperature == math.inf
    assert fitted(0.9) == 0.5


def test_platt_solves_its_score_equations():
    for sure, right in ((SURE, RIGHT), (DRAWN, CALIBRATED), (np.array([0.9, 0.8, 0.2]), np.array([1, 1, 0])), (np.array([0.9, 0.8]), np.array([1, 1]))):
        fitted = u.platt(sure, right)
        rights, wrongs = np.sum(right), len(right) - np.sum(right)
        residual = fitted(sure) - np.where(right, (rights + 1) / (rights + 2), 1 / (wrongs + 2))
        log_odds = np.log(sure) - np.log1p(-sure)
        assert residual.sum() == pytest.approx(0, abs=1e-5 * len(sure))
        assert residual @ log_odds == pytest.approx(0, abs=1e-5 * len(sure))


@pytest.mark.parametrize("fit", [u.temperature, u.platt, u.isotonic])
def test_calibrating_the_overconfident_makes_them_calibrated(fit):
    """Confidences are made extreme by tripling their log odds: ECE of .16 falls to below .06, which is what chance leaves of 400 answers in 10 bins."""
    odds = DRAWN / (1 - DRAWN)
    extreme = odds**3 / (1 + odds**3)
    assert u.reliability(extreme, CALIBRATED).error > 0.12
    assert u.reliability(fit(extreme, CALIBRATED)(extreme), CALIBRATED).error < 0.06


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: u.risk_coverage([0.5], [1, 0]), "each of 1 samples"),
        (lambda: u.risk_coverage([], []), "shape"),
        (lambda: u.risk_coverage([math.nan], [1]), "NaN"),
        (lambda: u.risk_coverage([0.5], [math.inf]), "finite"),
        (lambda: u.error_detection(SURE, np.ones(10)), "all 10 are right"),
        (lambda: u.error_detection(SURE, RIGHT, level=95), "level"),
        (lambda: u.error_detection(SURE, RIGHT, resamples=0), "resamples"),
        (lambda: u.error_detection(SURE, RIGHT * 0.5), "true or false"),
        (lambda: u.reliability(SURE * 100, RIGHT), "confidence must lie"),
        (lambda: u.reliability(SURE, RIGHT, bins=0), "bins"),
        (lambda: u.reliability(SURE, RIGHT, equal="size"), "equal"),
        (lambda: u.brier([math.nan], [1]), "confidence must lie"),
        (lambda: u.temperature([0.9, 0.1], [True, False]), "the lower the temperature"),
        (lambda: u.temperature_of_laws(np.zeros((2, 2)), [0, 2]), "whole numbers"),
        (lambda: u.temperature_of_laws([[0.0, -math.inf]], [0]), "finite"),
        (lambda: u.platt([0.5, 0.5], [True, False]), "slope open"),
        (lambda: u.isotonic([0.5, 2.0], [True, False]), "confidence must lie"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
