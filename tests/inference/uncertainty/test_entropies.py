"""Entropies of texts, meanings and answers: golden numbers, where published code goes wrong, and exact laws."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

import posterity as po
from posterity.inference import uncertainty as u

LOG_WEIGHTS = [0.0, -1.0, -0.5, -2.0]
CAPITALS = ["Paris", "Paris", "Paris", "It's Paris", "London"]
MEANINGS = ["Paris"] * 4 + ["London"]
LOG_PROBS = np.log([0.6, 0.6, 0.6, 0.3, 0.1])
BLOCKS = np.kron(np.diag([1.0, 1.0]), np.ones((3, 3)))[:5, :5]  # three answers alike, and two


def posterior_of(values, weights, eves=None):
    n = len(weights)
    return po.Posterior(
        values=jnp.array(values),
        log_weights=jnp.log(jnp.array(weights)),
        log_evidence=jnp.array(-1.5),
        eves=jnp.arange(n) if eves is None else jnp.array(eves),
        invalid=jnp.array(0),
        steps=jnp.array(1),
        ess_history=jnp.ones(1),
        resampled=jnp.array([False]),
        ancestors=None,
    )


def test_weighted_semantic_entropy_has_the_golden_value():
    found = u.discrete_semantic_entropy(["a", "a", "b", "c"], log_weights=LOG_WEIGHTS)
    assert list(found.probabilities.values()) == pytest.approx([0.648362, 0.287490, 0.064148], abs=1e-6)
    assert found.value == pytest.approx(0.815501, abs=1e-6)
    assert found.ess == pytest.approx(2.925361, abs=1e-6)


def test_a_text_drawn_three_times_counts_once_where_its_probability_is_known():
    """Published code counts it three times and does not normalise: -.133 or -6.002."""
    assert u.semantic_entropy(MEANINGS, CAPITALS, LOG_PROBS).value == pytest.approx(0.3251, abs=5e-5)
    assert u.semantic_entropy(MEANINGS[2:], CAPITALS[2:], LOG_PROBS[2:]) == u.semantic_entropy(MEANINGS, CAPITALS, LOG_PROBS)


def test_it_counts_three_times_where_draws_are_counted():
    assert u.discrete_semantic_entropy(MEANINGS).value == pytest.approx(0.5004, abs=5e-5)


def test_both_semantic_entropies_are_the_same_when_every_text_was_drawn_as_often_as_it_should():
    texts = ["Paris"] * 6 + ["It's Paris"] * 3 + ["London"]
    meanings = ["P"] * 9 + ["L"]
    log_probs = np.log([0.6] * 6 + [0.3] * 3 + [0.1])
    assert u.discrete_semantic_entropy(meanings).value == pytest.approx(u.semantic_entropy(meanings, texts, log_probs).value)


def test_seen_is_the_probability_of_what_was_drawn():
    assert u.semantic_entropy(["a", "b"], ["a", "b"], np.log([0.5, 0.2])).seen == pytest.approx(0.7)
    assert math.isnan(u.semantic_entropy(["a", "b"], ["a", "b"], np.log([0.5, 0.2]), lengths=[1, 2]).seen)


def test_normalised_lengths_take_the_mean_over_tokens():
    found = u.semantic_entropy(["a", "b"], ["a", "b"], np.log([0.25, 0.5]), lengths=[2, 1])
    assert found.probabilities == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(("n", "mean"), [(5, 1.01401), (10, 1.21528)])
def test_the_bias_of_the_plug_in_estimate_is_known(n, mean):
    """Four answers alike, log 4 = 1.3863: the mean over all counts of n draws, exactly, and how much of what is missing the correction gives back."""
    counts = [c for c in itertools.product(range(n + 1), repeat=4) if sum(c) == n and list(c) == sorted(c)]
    total, corrected = 0.0, 0.0
    for c in counts:
        ways = math.factorial(n) / math.prod(map(math.factorial, c)) * math.factorial(4) / math.prod(math.factorial(c.count(k)) for k in set(c))
        found = u.discrete_semantic_entropy([k for k in range(4) for _ in range(c[k])])
        total += ways / 4**n * found.value
        corrected += ways / 4**n * found.corrected
        assert found.bias == pytest.approx((sum(k > 0 for k in c) - 1) / (2 * n))
    assert total == pytest.approx(mean, abs=5e-6)
    assert total == pytest.approx(-4 * sum(math.comb(n, k) * 0.25**k * 0.75 ** (n - k) * k / n * math.log(k / n) for k in range(1, n + 1)))
    assert abs(math.log(4) - corrected) < 0.5 * (math.log(4) - total)


def test_a_doubled_sample_is_one_of_twice_the_weight():
    """Of all that weighs. (Errors differ: two draws are two.)"""
    double, once = u.discrete_semantic_entropy("aab"), u.discrete_semantic_entropy("ab", log_weights=np.log([2, 1]))
    assert double.value == pytest.approx(once.value)
    assert u.predictive_entropy([-1, -1, -2]).value == pytest.approx(u.predictive_entropy([-1, -2], log_weights=np.log([2, 1])).value)
    alike = np.array([[1, 0.3], [0.3, 1]])
    for measure in (u.degree_uncertainty, u.eigenvalue_uncertainty, u.von_neumann_entropy):
        assert measure(alike[np.ix_([0, 0, 1], [0, 0, 1])]) == pytest.approx(measure(alike, log_weights=np.log([2, 1])))


def test_samples_without_weight_do_not_count():
    weights = [0.0, -math.inf, 0.0]
    assert u.discrete_semantic_entropy("axb", log_weights=weights).value == pytest.approx(math.log(2))
    assert u.predictive_entropy([-1, -math.inf, -3], log_weights=weights).value == pytest.approx(2)
    similarity = np.eye(3)
    similarity[1] = similarity[:, 1] = 1
    assert u.eigenvalue_uncertainty(similarity, log_weights=weights) == pytest.approx(2)


def test_predictive_entropy_is_the_mean_surprise_of_texts_or_of_their_tokens():
    found = u.predictive_entropy([-2.0, -4.0])
    assert (found.value, found.error) == (3.0, pytest.approx(math.sqrt(0.5)))
    assert u.predictive_entropy([-2.0, -4.0], lengths=[1, 4]).value == 1.5


def test_the_entropy_of_a_posterior_from_its_unnormalised_density():
    """Exact weights, so the entropy is exact."""
    density = np.array([0.1, 0.25, 0.05])
    found = u.predictive_entropy(np.log(density), log_weights=np.log(density), log_evidence=math.log(0.4))
    p = density / 0.4
    assert found.value == pytest.approx(-(p * np.log(p)).sum())


def test_answer_entropy_of_independent_draws_is_discrete_semantic_entropy():
    weights = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()
    found = u.answer_entropy(posterior_of([7, 7, 8, 9], weights))
    expected = u.discrete_semantic_entropy([7, 7, 8, 9], log_weights=LOG_WEIGHTS)
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert found[:3] == pytest.approx(expected[:3], abs=1e-5)
    assert found.ess == pytest.approx(expected.ess, rel=1e-5)


def test_particles_of_few_families_tell_less():
    alone, related = (u.answer_entropy(posterior_of([7, 7, 7, 8], [0.25] * 4, eves)) for eves in (None, [0, 0, 0, 3]))
    assert related.value == alone.value
    assert related.error > 1.2 * alone.error
    assert related.bias > 1.2 * alone.bias


def test_the_error_of_answer_entropy_is_its_spread_over_samples():
    """The first-order error of n = 400 draws of a coin of .8, against the exact spread over all counts."""
    n, p = 400, 0.8
    k = np.arange(n + 1)
    weight = binom.pmf(k, n, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.nan_to_num(k / n * np.log(k / n)) - np.nan_to_num((1 - k / n) * np.log1p(-k / n))
    spread = math.sqrt(weight @ (h - weight @ h) ** 2)
    found = u.discrete_semantic_entropy([1] * 320 + [0] * 80)
    assert found.error == pytest.approx(spread, rel=0.03)


def test_graphs_have_the_golden_values():
    for W, groups, degree in ((np.ones((5, 5)), 1, 0), (BLOCKS, 2, 0.48), (np.eye(5), 5, 0.8)):
        assert u.eigenvalue_uncertainty(W) == pytest.approx(groups)
        assert u.degree_uncertainty(W) == pytest.approx(degree)
    for W, entropy in ((np.full((5, 5), 2), 0.679836), (np.ones((5, 5)), 1.345316), (np.zeros((5, 5)), math.log(5)), (2 * BLOCKS, 1.329145)):
        assert u.kernel_entropy(W) == pytest.approx(entropy, abs=1e-6)


def test_von_neumann_entropy_of_blocks_is_the_entropy_of_their_weights():
    assert u.von_neumann_entropy(BLOCKS) == pytest.approx(u.discrete_semantic_entropy("aaabb").value)
    assert u.von_neumann_entropy(4 * np.ones((5, 5))) == pytest.approx(0, abs=1e-9)  # where heat leaves .68


def test_a_token_of_probability_zero_adds_no_entropy():
    with np.errstate(divide="ignore"):
        laws = np.log([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert u.token_entropy(laws) == pytest.approx(math.log(2) / 2)
    with pytest.raises(ValueError, match="before any truncation"):
        u.self_certainty(laws)


def test_padding_does_not_count():
    laws = np.log([[[0.5, 0.5], [0.9, 0.1]], [[0.5, 0.5], [0.5, 0.5]]])
    for measure in (u.token_entropy, u.self_certainty):
        assert measure(laws, where=[[True, False], [True, True]])[0] == measure(laws)[1]


def test_self_certainty_is_the_divergence_from_uniform():
    laws = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    expected = np.mean([sum(math.log(1 / 3 / p) / 3 for p in law) for law in laws])
    assert u.self_certainty(np.log(laws)) == pytest.approx(expected)


def test_p_true_is_the_share_among_all_spellings():
    log_true, log_false = np.log([[0.2, 0.1], [1e-300, 0.3]]), np.log([[0.1], [0.3]])
    assert u.p_true(log_true, log_false) == pytest.approx([0.75, 0.5])


NAN = math.nan


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: u.discrete_semantic_entropy([]), "no samples"),
        (lambda: u.discrete_semantic_entropy("ab", log_weights=[0.0]), "each of 2 samples"),
        (lambda: u.discrete_semantic_entropy("ab", log_weights=[0.0, NAN]), "log_weights must be below inf"),
        (lambda: u.discrete_semantic_entropy("ab", log_weights=[-math.inf] * 2), "evidence is zero"),
        (lambda: u.predictive_entropy([-1.0, -math.inf]), "finite"),
        (lambda: u.predictive_entropy([0.5]), "above 0"),
        (lambda: u.predictive_entropy([-1.0], lengths=[0]), "at least 1 token"),
        (lambda: u.semantic_entropy("ab", ["x", "x"], [-1.0, -1.0]), "given twice"),
        (lambda: u.semantic_entropy("aa", ["x", "x"], [-1.0, -2.0]), "given twice"),
        (lambda: u.semantic_entropy("ab", ["x"], [-1.0, -2.0]), "2 meanings, 1 texts"),
        (lambda: u.semantic_entropy("ab", "xy", [-math.inf] * 2), "probability zero"),
        (lambda: u.semantic_entropy("ab", "xy", [NAN, 0.0]), "below inf"),
        (lambda: u.degree_uncertainty([[1.0, 0.5]]), "square"),
        (lambda: u.degree_uncertainty([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: u.eigenvalue_uncertainty([[1.0, 1.5], [1.5, 1.0]]), r"\[0, 1\]"),
        (lambda: u.eigenvalue_uncertainty(np.zeros((2, 2))), "similar to itself"),
        (lambda: u.von_neumann_entropy([[1.0, 2.0], [2.0, 1.0]]), "semi-definite"),
        (lambda: u.kernel_entropy(np.eye(2), time=0), "positive"),
        (lambda: u.kernel_entropy([[1.0, NAN], [NAN, 1.0]]), "finite"),
        (lambda: u.token_entropy([[1.0, 2.0]]), "log_softmax"),
        (lambda: u.token_entropy([0.0]), "shape"),
        (lambda: u.token_entropy(np.log([[0.5, 0.5]]), where=[False]), "keep a token"),
        (lambda: u.p_true([-math.inf], [-math.inf]), "neither"),
        (lambda: u.p_true([NAN], [0.0]), "NaN"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
