"""Strategies: rules that keep whom they should, one result, one ledger, budgets that hold for all of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.inference.search.beam import Beams, Best, Trees
from posterity.inference.search.filters import temperature
from posterity.inference.search.rebase import Balanced, allocation
from posterity.inference.search.result import Selection

LM = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
STRATEGIES = {
    "repeated_sampling": {},
    "self_consistency": {},
    "best_of_n": {},
    "weighted_best_of_n": {},
    "step_best_of_n": {},
    "beam": {"width": 2},
    "dvts": {"width": 2},
    "lookahead": {"width": 2},
    "rebase": {},
    "entropic_particle_filter": {},
    "particle_filter": {},
    "particle_gibbs": {"sweeps": 2},
}


def each(*light):
    """All strategies; those that are not light are left to the slow run."""
    return [name if name in light else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]


def many_a(text):
    """The share of a among the tokens."""
    place = jnp.arange(text.tokens.shape[0])
    return jnp.sum((place < text.length) & (text.tokens == 0)) / text.length


def program_of(prompt, lm):
    return po.reason(lm, prompt, reward=many_a, delimiter=";", max_steps=3, max_step_tokens=3, extract=str)


PROGRAM = program_of(LM.prompt("a"), LM)


def ancestors(rule, scores, done):
    particles, found = rule(jax.random.key(0), None, "same", jnp.array(scores), jnp.array(done), jnp.array(1))
    assert particles == "same"
    return found.tolist()


def test_beams_keep_the_best_and_leave_alone_what_has_ended():
    assert ancestors(Beams(2), [0.1, 0.9, 0.5, 0.7], [False] * 4) == [1, 1, 3, 3]
    assert ancestors(Beams(2), [0.1, 0.9, 0.5, 0.7], [False, True, False, False]) == [3, 1, 3, 2]
    assert ancestors(Beams(4), [0.1, 0.9, 0.5, 0.7], [True] * 4) == [0, 1, 2, 3]


def test_the_best_step_is_everyones():
    assert ancestors(Best(), [0.1, 0.5, 0.9], [False, False, True]) == [2, 2, 2]


def test_trees_choose_each_for_itself():
    assert ancestors(Trees(2), [0.1, 0.9, 0.5, 0.4], [False] * 4) == [1, 1, 2, 2]
    assert ancestors(Trees(3), [0.1, 0.9, 0.5, 0.4, 0.3, 0.2], [True, True, False, False, False, True]) == [0, 1, 1, 3, 3, 3]


def test_rebase_shares_out_as_the_published_code_does_without_its_overshoot():
    assert allocation(jnp.array([0.9, 0.7, 0.4, 0.1]), 16).tolist() == [11, 4, 1, 0]
    assert allocation(jnp.array([0.9, 0.8, 0.8, 0.2, 0.1]), 8).tolist() == [4, 2, 2, 0, 0]
    assert allocation(jnp.array([0.5, 0.5, 0.5]), 8).tolist() == [3, 3, 2]
    assert allocation(jnp.array([0.1, 0.9, 0.4, 0.7]), 16).tolist() == [0, 11, 1, 4]
    assert ancestors(Balanced(0.2), [0.9, 0.9, 0.1, 0.1], [True, False, False, False]) == [0, 1, 1, 1]


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_rebase_shares_out_all_places(n):
    rng = np.random.default_rng(n)
    for width in (1, 5, 64):
        active = rng.random(n) < 0.7
        active[0] = True
        counts = np.asarray(allocation(jnp.asarray(rng.random(n)), width, 0.2, jnp.asarray(active)))
        assert counts.sum() == width
        assert (counts >= 0).all()
        assert not counts[~active].any()


def test_the_entropic_temperature_is_the_published_one():
    log_weights = jnp.array([4.0, 0, 0, 0, -1, -1, -2, -2])
    assert [round(float(temperature(log_weights, u)), 6) for u in (0.1, 0.3, 0.5)] == pytest.approx([6.256145, 4.865891, 1.0], abs=2e-5)
    assert float(temperature(jnp.zeros(4), 0.1)) == 1.0


@pytest.mark.parametrize("name", each("best_of_n", "particle_gibbs"))
def test_every_strategy_keeps_to_its_budget_and_says_what_it_cost(name):
    strategy, n = getattr(po.search, name), 4
    enough = int(strategy(jax.random.key(0), PROGRAM, n=n, budget=po.Budget(tokens=10_000), **STRATEGIES[name]).ledger.tokens)
    for most in (1, 9, enough - 1, enough):
        found = strategy(jax.random.key(0), PROGRAM, n=n, budget=po.Budget(tokens=most), **STRATEGIES[name])
        ledger = found.ledger
        assert int(ledger.tokens) <= most or int(ledger.generated) == 0
        assert bool(ledger.cut) == (most < enough)
        assert 0 < ledger.device <= ledger.wall
        assert sum(estimate.value for estimate in found.answers().values()) == pytest.approx(1.0)
        assert not math.isnan(float(jnp.sum(found.weights)))
    assert isinstance(found, po.Posterior if name == "particle_filter" else Selection)
    assert int(ledger.calls) == int(ledger.rewards) > 0
    kept = n * STRATEGIES[name].get("sweeps", 1)
    assert len(found) == kept
    assert int(ledger.generated) >= int(jnp.max(found.values.text.generated))


@pytest.mark.parametrize("name", each("best_of_n"))
def test_many_problems_at_once_are_each_as_alone(name):
    prompts, options = LM.prompts(["a", "bab"]), STRATEGIES[name]
    together = po.search.many(jax.random.key(3), getattr(po.search, name), program_of, prompts, LM, n=4, **options)
    for i in range(2):
        prompt = jax.tree.map(lambda x, i=i: x[i], prompts)
        alone = getattr(po.search, name)(jax.random.fold_in(jax.random.key(3), i), program_of(prompt, LM), n=4, **options)
        np.testing.assert_array_equal(together.values.text.tokens[i], alone.values.text.tokens)
        np.testing.assert_allclose(together.log_weights[i], alone.log_weights, atol=1e-5)
        assert int(together.ledger.generated[i]) == int(alone.ledger.generated)


def test_rollouts_are_chosen_among_in_three_ways():
    found = po.search.best_of_n(jax.random.key(0), PROGRAM, n=16)
    scores, texts = np.asarray(found.scores), [str(jax.tree.map(lambda x, i=i: x[i], found.values)) for i in range(16)]
    best = [text for text, score in zip(texts, scores, strict=True) if score == scores.max()]
    assert {text: estimate.value for text, estimate in found.answers().items()} == pytest.approx({text: best.count(text) / len(best) for text in best})
    for by, votes in (("weighted", scores), ("majority", np.ones(16))):
        expected = {text: votes[[t == text for t in texts]].sum() / votes.sum() for text in texts}
        assert {text: estimate.value for text, estimate in found.choose(by).answers().items()} == pytest.approx(expected, abs=1e-6)


def test_a_run_stops_when_its_time_is_over():
    found = po.search.self_consistency(jax.random.key(0), PROGRAM, n=4, budget=po.Budget(seconds=1e-9))
    assert bool(found.ledger.cut)
    assert int(found.ledger.generated) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beam", "particle_filter"])
def test_with_time_enough_a_run_is_what_it_would_be_without_a_clock(name):
    strategy, options = getattr(po.search, name), STRATEGIES[name]
    timed = strategy(jax.random.key(0), PROGRAM, n=4, budget=po.Budget(seconds=1e6), **options)
    free = strategy(jax.random.key(0), PROGRAM, n=4, **options)
    np.testing.assert_array_equal(timed.values.text.tokens, free.values.text.tokens)
    np.testing.assert_allclose(timed.log_weights, free.log_weights, atol=1e-5)
    assert not bool(timed.ledger.cut)


def test_ledgers_add_up():
    one = po.Ledger(*(jnp.array(i) for i in (2, 5, 1, 3, 4)), jnp.array(False), 1.0, 0.5)
    two = one + po.Ledger(*(jnp.array(i) for i in (2, 6, 0, 1, 1)), jnp.array(True), 2.0, 0.25)
    assert [int(x) for x in (two.prompt, two.generated, two.reused, two.calls, two.rewards, two.tokens)] == [4, 11, 1, 4, 5, 15]
    assert (bool(two.cut), two.wall, two.device) == (True, 3.0, 0.75)


def test_selections_are_no_posteriors():
    found = po.search.best_of_n(jax.random.key(0), PROGRAM, n=16)
    assert not isinstance(found, po.Posterior)
    assert "no posterior" in repr(found)
    assert math.isnan(float(found.log_evidence))


@po.program
def without_reward():
    return po.scan(lambda x, _: x + 1, jnp.zeros(()), length=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: po.search.beam(jax.random.key(0), PROGRAM, n=6, width=4), ValueError, "width must divide n, got a width of 4 and n=6; 8 would do"),
        (lambda: po.search.dvts(jax.random.key(0), PROGRAM, n=1, width=4), ValueError, "width must divide n"),
        (lambda: po.search.beam(jax.random.key(0), PROGRAM, n=4, width=0), ValueError, "width must be a whole number of at least 1"),
        (lambda: po.search.lookahead(jax.random.key(0), PROGRAM, n=4, steps=0), ValueError, "steps must be"),
        (lambda: po.search.best_of_n(jax.random.key(0), PROGRAM, n=0), ValueError, "n must be"),
        (lambda: po.search.best_of_n(0, PROGRAM, n=1), TypeError, "key must be"),
        (lambda: po.search.particle_gibbs(jax.random.key(0), PROGRAM, n=1), ValueError, "n must be a whole number of at least 2"),
        (lambda: po.search.particle_gibbs(jax.random.key(0), PROGRAM, n=2, ancestors="none"), ValueError, "ancestors must be one of"),
        (lambda: po.search.particle_gibbs(jax.random.key(0), without_reward(), n=2), TypeError, "cannot be taken again"),
        (lambda: po.search.rebase(jax.random.key(0), PROGRAM, n=2, temperature=0.0), ValueError, "temperature"),
        (lambda: po.search.beam(jax.random.key(0), PROGRAM, n=4, choose="first"), ValueError, "choose must be one of"),
        (lambda: po.search.best_of_n(jax.random.key(0), without_reward(), n=2), TypeError, "no `reward`"),
        (lambda: po.search.best_of_n(jax.random.key(0), without_reward(), n=2, budget=po.Budget(tokens=3)), TypeError, "keeps no accounts"),
        (lambda: po.search.best_of_n(jax.random.key(0), PROGRAM, n=2, budget=po.Budget(tokens=-1)), ValueError, "budget's tokens"),
        (lambda: po.search.best_of_n(jax.random.key(0), PROGRAM, n=2, budget=po.Budget(seconds=0)), ValueError, "budget's seconds"),
        (lambda: po.search.best_of_n(jax.random.key(0), PROGRAM, n=2, budget=100), TypeError, "po.Budget"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
