"""Numbers that were worked out elsewhere: weights of published potentials, entropic resampling, coverage of a Beta law."""

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
