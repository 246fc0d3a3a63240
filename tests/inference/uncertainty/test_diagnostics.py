"""Tails of weights and agreement of chains: laws with known answers, and ArviZ itself where it is installed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from scipy.special import ndtri
from scipy.stats import rankdata

import posterity as po
from posterity.inference import uncertainty as u
from posterity.ppl.answer import Answer

CHAINS = np.random.default_rng(0).normal(size=(4, 200))


@pytest.mark.parametrize("shape", [0.2, 0.7, 1.2])
def test_the_shape_of_a_pareto_tail_is_found(shape):
    """Weights at the quantiles of a Pareto law of this shape; the fit is drawn towards 1/2 by ten weights among 95 in 1,000."""
    log_weights = -shape * np.log((np.arange(1_000) + 0.5) / 1_000)
    assert u.pareto_k(log_weights) == pytest.approx((95 * shape + 5) / 105, abs=0.12)
    assert u.pareto_k(log_weights + 700) == pytest.approx(u.pareto_k(log_weights))


def test_equal_weights_have_no_tail_and_few_weights_no_known_one():
    assert u.pareto_k(np.zeros(100)) == -math.inf
    assert u.pareto_k([0.0, -1.0, -2.0, -3.0]) == math.inf


def test_chains_of_one_law_agree_and_others_do_not():
    """R-hat of 4 x 200 independent draws is below 1.02 but for about one run in a thousand."""
    assert u.rank_rhat(CHAINS) < 1.02
    assert u.rank_rhat(CHAINS + np.array([[0], [0], [0], [2]])) > 1.2
    assert u.rank_rhat(CHAINS * np.array([[1], [1], [1], [4]])) > 1.1  # they lie alike, and are not as wide: folding sees it
    assert u.rank_rhat(np.exp(5 * CHAINS)) == pytest.approx(u.rank_rhat(np.exp(CHAINS)), abs=0.02)  # ranks do not mind heavy tails


def test_superchains_that_remember_where_they_began_are_seen():
    short = np.random.default_rng(1).normal(size=(64, 1))
    superchains = np.repeat(np.arange(8), 8)
    assert u.nested_rhat(short, superchains) < 1.2
    assert u.nested_rhat(short + superchains[:, None], superchains) > 1.8


def test_nested_rhat_is_its_formula_on_ranks():
    chains, superchains = CHAINS[:, :3] + np.array([[0.0], [1.0], [0.5], [3.0]]), [7, 2, 7, 2]

    def plain(x):
        z = ndtri((rankdata(x).reshape(x.shape) - 0.375) / (x.size + 0.25))
        groups = [z[[i for i, name in enumerate(superchains) if name == k]] for k in (2, 7)]
        between = np.var([group.mean() for group in groups], ddof=1)
        within = np.mean([group.mean(axis=1).var(ddof=1) + np.mean([chain.var(ddof=1) for chain in group]) for group in groups])
        return math.sqrt(1 + between / within)

    expected = max(plain(chains), plain(np.abs(chains - np.median(chains))))
    assert u.nested_rhat(chains, superchains) == pytest.approx(expected, rel=1e-12)


def test_a_posterior_stands_for_its_weights():
    weights = np.random.default_rng(3).pareto(1.5, size=500)
    assert u.pareto_k(run_of(weights / weights.sum())) == pytest.approx(u.pareto_k(np.log(weights)), abs=1e-4)


def test_a_summary_has_a_row_for_every_number():
    found = u.summary(run_of([0.5, 0.0, 0.25, 0.25]))
    assert list(found) == ["path[0]", "path[1]", "path[2]", "x"]
    assert found["x"].mean == pytest.approx(0.25 * 2 + 0.25 * 3)
    assert (found["x"].low, found["x"].high) == (0, 3)
    assert math.isnan(found["x"].rhat)
    chains = po.uncertainty.summary(chain_of(CHAINS))
    assert chains["value"].mean == pytest.approx(CHAINS.mean(), abs=1e-6)
    assert chains["value"].rhat == pytest.approx(u.rank_rhat(CHAINS), abs=1e-4)
    assert "ess bulk" in str(chains)


def test_independent_draws_are_worth_their_number_and_sticky_ones_less():
    assert u.ess_bulk(CHAINS) == pytest.approx(800, rel=0.25)
    assert u.ess_tail(CHAINS) == pytest.approx(800, rel=0.35)
    sticky = np.repeat(CHAINS, 4, axis=1)
    assert u.ess_bulk(sticky) == pytest.approx(800, rel=0.4)
    assert u.ess_tail(np.array([[0, 1] * 10, [1, 0] * 10])) > 0


def test_arviz_finds_the_same():
    stats = pytest.importorskip("arviz_stats.base", reason="ArviZ is an extra").array_stats
    log_weights = np.random.default_rng(2).pareto(2, size=500)
    assert u.pareto_k(log_weights) == pytest.approx(float(stats.psislw(-log_weights)[1]), abs=0.05)
    assert u.rank_rhat(CHAINS) == pytest.approx(float(stats.rhat(CHAINS, method="rank")), abs=1e-6)
    halves, ids = np.concatenate([CHAINS[:, :100], CHAINS[:, 100:]]), np.array([0, 0, 1, 1])
    assert u.nested_rhat(halves, np.tile(ids, 2)) == pytest.approx(float(stats.rhat_nested(CHAINS, superchain_ids=ids, method="rank")), abs=1e-6)
    assert u.ess_bulk(CHAINS) == pytest.approx(float(stats.ess(CHAINS, method="bulk")), rel=0.1)
    assert u.ess_tail(CHAINS) == pytest.approx(float(stats.ess(CHAINS, method="tail", prob=(0.05, 0.95))), rel=0.1)


def run_of(weights, **fields):
    n = len(weights)
    start = {
        "values": {"x": jnp.arange(n) * 1.0, "path": jnp.zeros((n, 3))},
        "log_weights": jnp.log(jnp.array(weights)),
        "log_evidence": jnp.array(-1.5),
        "eves": jnp.arange(n) // 2,
        "invalid": jnp.array(0),
        "steps": jnp.array(2),
        "ess_history": jnp.array([4.0, 3.0, jnp.nan]),
        "resampled": jnp.array([True, False, False]),
        "ancestors": jnp.zeros((3, n), int),
    }
    return po.Posterior(**{**start, **fields})


def chain_of(draws):
    n = draws.size
    flags = jnp.ones(n, bool)
    return po.Chain(jnp.asarray(draws.reshape(-1)), jnp.full(n, -jnp.log(n)), jnp.array(jnp.nan), flags, jnp.array(0), chains=len(draws))


def test_particles_go_to_arviz_as_draws_and_as_they_are():
    pytest.importorskip("arviz_base", reason="ArviZ is an extra")
    runs = [run_of([0.5, 0.0, 0.25, 0.25]), run_of([0.25] * 4)]
    tree = u.to_arviz(runs, draws=400)
    assert tree["posterior/path"].shape == (2, 400, 3)
    assert tree["posterior/x"].dims == ("chain", "draw")
    np.testing.assert_array_equal(tree["posterior/x"], tree["sample_stats/particle"])
    assert (tree["sample_stats/particle"][0] != 1).all()
    assert abs(float((tree["posterior/x"][0] == 0).mean()) - 0.5) < 5 * 0.025  # five standard errors: false one time in two million
    np.testing.assert_allclose(np.exp(tree["particles/log_weight"][0]), [0.5, 0.0, 0.25, 0.25], rtol=1e-6)
    assert tree["particles/eve"].dims == ("chain", "particle")
    assert tree["evidence/log_evidence"].values.tolist() == [-1.5, -1.5]
    assert float(tree["evidence/log_evidence_error"][0]) == pytest.approx(float(runs[0].log_evidence_error))
    assert tree["history/ancestors"].dims == ("chain", "step", "particle")
    assert np.isnan(tree["history/ess"][0, 2])


def test_values_without_names_and_runs_without_history_go_too():
    pytest.importorskip("arviz_base", reason="ArviZ is an extra")
    tree = u.to_arviz(run_of([0.5, 0.5], values=jnp.array([3, 4]), ancestors=None, choices={"k": jnp.array([1, 2])}))
    assert set(tree["posterior"].data_vars) == {"value", "k"}
    assert "ancestors" not in tree["history"].data_vars
    with pytest.raises(ValueError, match="as many particles"):
        u.to_arviz([run_of([1.0]), run_of([0.5, 0.5])])
    with pytest.raises(ValueError, match="evidence is zero"):
        u.to_arviz(run_of([0.0, 0.0], log_evidence=jnp.array(-jnp.inf)))


@struct.dataclass
class Word(Answer):
    letters: jax.Array

    def answer(self):
        return bytes(self.letters).decode()


def test_texts_go_by_their_answers():
    pytest.importorskip("arviz_base", reason="ArviZ is an extra")
    words = Word(jnp.array([list(b"ab"), list(b"cd")], jnp.uint8))
    tree = u.to_arviz([run_of([0.5, 0.5], values=words), run_of([0.5, 0.5], values=words)])
    assert tree["particles/value"].values.tolist() == [["ab", "cd"]] * 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: u.pareto_k([0.0, math.nan]), "log_weights"),
        (lambda: u.pareto_k([-math.inf] * 9), "all -inf"),
        (lambda: u.rank_rhat(np.ones((2, 9))), "all draws are 1"),
        (lambda: u.rank_rhat(CHAINS[:, :3]), "at least 4 draws"),
        (lambda: u.ess_bulk(CHAINS[0]), "chains, draws"),
        (lambda: u.ess_tail(CHAINS * math.nan), "finite"),
        (lambda: u.nested_rhat(CHAINS, [0, 0, 0, 1]), "one size"),
        (lambda: u.nested_rhat(CHAINS, [0, 0, 0, 0]), "two or more"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
