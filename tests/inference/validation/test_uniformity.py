"""The test of uniformity is exact: against sums over all ways that few numbers can fall, and against its own level."""

import itertools
import math

import numpy as np
import pytest

from posterity.inference.validation.uniformity import band, grid_of, leaving, level_of_points, uniformity


def brute(n, low, high):
    """The probability that n uniform numbers leave the bounds of their counts somewhere: all counts of the cells of the grid."""
    cells = np.diff(np.concatenate([[0.0], grid_of(n), [1.0]]))
    inside = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(cells)):
        if sum(counts) == n:
            ways = math.factorial(n) / math.prod(map(math.factorial, counts))
            below = np.cumsum(counts)[:-1]
            inside += ways * float(np.prod(cells ** np.array(counts))) * bool(((below >= low) & (below <= high)).all())
    return 1 - inside


@pytest.mark.parametrize(("n", "tail"), [(2, 0.6), (3, 0.3), (4, 0.2), (4, 0.5)])
def test_the_probability_of_leaving_a_band_is_that_of_all_ways_summed(n, tail):
    grid = grid_of(n)
    cdf = np.array([[sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(c + 1)) for c in range(n + 1)] for p in grid])
    above = 1 - np.concatenate([np.zeros((len(grid), 1)), cdf[:, :-1]], axis=1)
    within = (cdf > tail / 2) & (above > tail / 2)
    low, high = within.argmax(axis=1), n - within[:, ::-1].argmax(axis=1)
    assert leaving(n, tail) == pytest.approx(brute(n, low, high), abs=1e-12)


def test_p_values_are_below_their_level_no_more_often_than_they_say():
    """500 sets of 60 uniform numbers: 50 below 0.1 are expected at most; more than 75 come up less than one time in a thousand."""
    rng = np.random.default_rng(0)
    p_values = np.array([uniformity(rng.random(60)) for _ in range(500)])
    assert 25 < (p_values < 0.1).sum() < 75


def test_a_band_holds_everywhere_at_its_level():
    low, high = band(60, 0.9)
    assert leaving(60, level_of_points(60, 0.9)) <= 0.1
    counts = (np.random.default_rng(1).random((2_000, 60, 1)) <= grid_of(60)).mean(axis=1)
    left = ((counts < low) | (counts > high)).any(axis=1).mean()
    assert left < 0.1 + 4 * 0.0067  # four standard errors
    assert left > 0.06  # and it is not much wider than it need be


def test_what_is_no_set_of_probabilities_is_refused():
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        uniformity(np.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        uniformity(np.array([]))
