"""Numbers that were worked out elsewhere: weights of published potentials, entropic resampling, coverage of a Beta law, limits of resampling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import posterity as po
from posterity.inference import answers as rules
from posterity.inference.population import effective_sample_size
from posterity.models.programs.reason import log_potential

ENTROPIC = [4.0, 0.0, 0.0, 0.0, -1.0, -1.0, -2.0, -2.0]  # log weights


def weights(scores: np.ndarray, potential: str) -> np.ndarray:
    return np.asarray(jax.nn.softmax(log_potential(jnp.asarray(scores), potential)))


def test_the_rewards_of_the_published_figure_are_logits():
    """Puri et al. (2025), figure 3: 2.1, -1.2, 1.3 and .1 go into a softmax, so the potential is the odds of the scores they are logits of."""
    scores = 1 / (1 + np.exp(-np.array([2.1, -1.2, 1.3, 0.1])))
    assert weights(scores, "odds") == pytest.approx([0.616695, 0.022746, 0.277099, 0.083461], abs=1e-6)


@pytest.mark.parametrize(
    ("potential", "expected"),
    [("identity", [0.6, 0.333333, 0.066667]), ("exp", [0.471776, 0.316241, 0.211983]), ("odds", [0.890110, 0.098901, 0.010989])],
)
def test_the_three_potentials_weigh_the_same_scores_differently(potential, expected):
    assert weights(np.array([0.9, 0.5, 0.1]), potential) == pytest.approx(expected, abs=1e-6)


def test_the_published_entropic_filter_sees_few_effective_particles_and_flattens():
    """Effective samples of eight particles, and the temperatures max(1, (1 - u) / share) that Giannone et al. (2026) raise weights by at progress u."""
    log_weights = jnp.array(ENTROPIC)
    share = float(effective_sample_size(log_weights)) / 8
    assert share == pytest.approx(0.143859, abs=1e-6)
    for progress, temperature in ((0.1, 6.256145), (0.3, 4.865891)):
        assert (1 - progress) / share == pytest.approx(temperature, abs=5e-5)
        flattened = po.biased_entropic(exponent=1 / temperature)(log_weights)
        np.testing.assert_allclose(jax.nn.softmax(flattened.softened), jax.nn.softmax(log_weights / temperature), atol=1e-6)


def test_the_share_of_best_of_majority_where_the_right_answer_is_one_in_ten():
    """Di et al. (2026): a share of 3 / (4 C) with C = 10 is .075; an answer of a tenth of the votes has it, one of a twentieth has not."""
    given = ["right"] * 10 + ["hack"] * 5 + [f"other {i}" for i in range(85)]
    found = rules.best_of_majority(given, [0.9] * 10 + [1.0] * 5 + [0.1] * 85, share=3 / (4 * 10))
    assert found.answer == "right"
    assert found.scores["hack"] == -math.inf


@pytest.mark.parametrize("k", [1, 4, 17, 128])
def test_coverage_of_a_beta_law_is_its_integral(k):
    """1 - E[(1 - p)^k] over p ~ Beta(.7, 2.5) by quadrature, and by the product of (b + i) / (a + b + i)."""
    law = rules.BetaLaw(0.7, 2.5)
    density = lambda t: (1 - t) ** (k + 1.5)  # noqa: E731
    whole = quad(lambda t: (1 - t) ** 1.5, 0, 1, weight="alg", wvar=(-0.3, 0))[0]
    missed = quad(density, 0, 1, weight="alg", wvar=(-0.3, 0))[0] / whole
    assert float(law(k)) == pytest.approx(1 - missed, abs=1e-8)
    assert float(law(k)) == pytest.approx(1 - math.prod((2.5 + i) / (3.2 + i) for i in range(k)), abs=1e-10)


@pytest.mark.parametrize(("first", "second", "sure"), [(2, 0, 0.875), (3, 0, 0.9375), (4, 0, 0.96875), (5, 1, 0.9375), (6, 1, 0.964844), (8, 2, 0.967285)])
def test_how_sure_votes_are_that_the_first_answer_is_ahead(first, second, sure):
    assert rules.lead(first, second) == pytest.approx(sure, abs=1e-6)
    assert rules.lead(first, second) + rules.lead(second, first) == pytest.approx(1.0)


def test_votes_stop_at_four_to_none_at_six_to_one_and_at_eight_to_two():
    """Adaptive consistency at .95: with a vote less the answer was not sure."""
    for votes, used in (("yyyyyy", 4), ("ynyyyyyyy", 7), ("nynyyyyyyyy", 10)):
        found = rules.adaptive_majority(votes)
        assert (found.choice.answer, found.used) == ("y", used)
        assert rules.adaptive_majority(votes[: used - 1]).sure < 0.95 <= found.sure
    assert rules.adaptive_majority("ynz", level=0.99).used == 3


def test_a_verifier_that_passes_wrong_answers_sets_a_limit_to_resampling():
    """Two kinds of problems, as fitted to Llama-3.1-8B on HumanEval+: what is accepted in the end, and how many rollouts are worth the most."""
    law = rules.Retried((0.58, 0.42), (0.87, 0.13), complete=1.0, sound=0.75)
    right, wrong = law.accepted(2_000)
    assert [right.sum(), wrong.sum()] == pytest.approx([0.71624, 0.28376], abs=1e-5)
    for cost, count, worth in ((1, 2, 0.472381), (2, 1, 0.3388), (4, 1, 0.1184), (8, 0, 0.0)):
        assert law.best(cost) == count
        assert law.value(count, cost) == pytest.approx(worth, abs=1e-6)
    assert [law.value(k, 0.0) for k in (1, 2, 3)] == pytest.approx([0.5592, 0.64402, 0.67207], abs=1e-5)


@pytest.mark.parametrize(("chance", "top", "least", "count"), [(0.3, 1.0, 0.01, 10), (0.1, 0.9, 0.01, 21), (0.5, 0.8, 0.001, 9)])
def test_the_rollout_from_which_coverage_hardly_grows(chance, top, least, count):
    assert rules.saturation(chance, top, least) == count
    added = [top * chance * (1 - chance) ** n for n in range(count + 1)]
    assert added[count] <= least < added[count - 1]


@pytest.mark.parametrize(
    ("bias", "errors"),
    [
        (0.0, {1: 1.0, 2: 0.36338023, 4: 0.12070214, 16: 0.01044456, 64: 0.00073332, 256: 0.00004738}),
        (0.5, {1: 1.25, 2: 0.46053941, 4: 0.15413965, 16: 0.0134025, 64: 0.00094155}),
        (1.0, {1: 2.0, 2: 0.81491466, 4: 0.29626672, 16: 0.02794035, 64: 0.00199063}),
    ],
)
def test_the_error_of_the_best_of_k_falls_like_its_square(bias, errors):
    for k, error in errors.items():
        assert rules.best_of_k_error(k, bias) == pytest.approx(error, abs=1e-8)
    assert rules.best_of_k_error(4_096, bias) == pytest.approx(math.pi * math.exp(bias**2) / 4_096**2, rel=0.002)


def test_the_rollouts_that_best_of_majority_needs():
    assert rules.votes_needed(10, 5, 0.01) == pytest.approx(1362.75, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.lead(-1, 2), "must not be negative"),
        (lambda: rules.adaptive_majority([]), "at least one answer"),
        (lambda: rules.adaptive_majority(["x"], level=0.4), "level must lie between"),
        (lambda: rules.saturation(1.0, 1.0, 0.1), "the chance below 1"),
        (lambda: rules.best_of_k_error(0), "k must be at least 1"),
        (lambda: rules.votes_needed(0.5, 1, 0.1), "rarity and k must be at least 1"),
    ],
)
def test_bad_input_to_the_limits_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
