"""`po.exact` of standard small programs equals brute force in plain Python, written here."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings

import posterity as po
from posterity.inference.enumeration.outcomes import outcomes
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW


def measured(laws, program, expected):
    """The program's exact measure, which holds these masses to 1e-10."""
    laws.holds("exact, standard programs", po.check.same_meaning(program, expected))
    measure = po.exact(program)
    for outcome, mass in measure.outcomes().items():
        assert mass == pytest.approx(expected[outcome], rel=0, abs=1e-10), outcome
    assert measure.log_evidence == pytest.approx(math.log(math.fsum(expected.values())), abs=1e-10)
    return measure


@po.program
def sprinkler():
    """Grass is wet: did it rain? (Pearl 1988)"""
    rain = po.sample("rain", dist.Bernoulli(0.2))
    sprinkler = po.sample("sprinkler", dist.Bernoulli(jnp.where(rain, 0.01, 0.4)))
    po.observe("wet", dist.Bernoulli(jnp.array([[0.0, 0.9], [0.8, 0.99]])[rain, sprinkler]), 1)
    return {"rain": rain, "sprinkler": sprinkler}


def test_sprinkler(laws):
    wet = [[0.0, 0.9], [0.8, 0.99]]
    mass = {}
    for rain, on in itertools.product((0, 1), repeat=2):
        p = 0.01 if rain else 0.4
        mass[("rain", rain), ("sprinkler", on)] = (0.2 if rain else 0.8) * (p if on else 1 - p) * wet[rain][on]
    measure = measured(laws, sprinkler(), mass)
    # The posterior of rain, by hand: (.2·.99·.8 + .2·.01·.99) / evidence
    assert measure["rain"].expect() == pytest.approx((0.2 * 0.99 * 0.8 + 0.2 * 0.01 * 0.99) / math.fsum(mass.values()), abs=1e-12)
    on = measure.given(lambda value: value["sprinkler"] == 1)
    assert on["rain"].expect() == pytest.approx(0.2 * 0.01 * 0.99 / (0.2 * 0.01 * 0.99 + 0.8 * 0.4 * 0.9), abs=1e-12)
    assert math.exp(on.log_evidence) == pytest.approx(0.2 * 0.01 * 0.99 + 0.8 * 0.4 * 0.9, abs=1e-12)


def test_biased_dice(laws):
    """Which die was rolled? One is fair, one is loaded; the sum of three rolls was 15 or more."""
    faces = [[1 / 6] * 6, [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]]

    @po.program
    def dice():
        loaded = po.sample("loaded", dist.Bernoulli(0.25))
        law = dist.Categorical(jnp.array(faces)[loaded])
        rolls = po.sample("rolls", law.expand([3]).to_event(1)) + 1
        po.factor("high", jnp.where(rolls.sum() >= 15, 0.0, -jnp.inf))
        return loaded, rolls.sum()

    mass = {}
    for loaded, *rolls in itertools.product((0, 1), *[range(1, 7)] * 3):
        weight = (0.25 if loaded else 0.75) * math.prod(faces[loaded][roll - 1] for roll in rolls)
        if sum(rolls) >= 15:
            mass[loaded, sum(rolls)] = mass.get((loaded, sum(rolls)), 0.0) + weight
    measure = measured(laws, dice(), mass)
    assert measure.branches == 2 * 6**3


def test_a_hidden_markov_model_is_the_forward_recursion():
    rng = np.random.default_rng(0)
    start, move, see = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.ones(4), 3)
    ys = rng.integers(0, 4, 200)
    with jax.enable_x64():
        measure = po.exact(hidden(*map(jnp.array, (start, move, see, ys))))
    alpha, log_evidence = start.tolist(), 0.0
    for y in ys.tolist():
        alpha = [sum(alpha[i] * move[i][j] for i in range(3)) * see[j][y] for j in range(3)]
        total = sum(alpha)
        alpha, log_evidence = [a / total for a in alpha], log_evidence + math.log(total)
    assert measure.log_evidence == pytest.approx(log_evidence, abs=1e-10)
    np.testing.assert_allclose([measure.answers()[j].value for j in range(3)], alpha, atol=1e-12)
    assert measure.branches == 3 + 200 * 9  # merged at every step: no tree


@po.program
def hidden(start, move, see, ys):
    x0 = po.sample("x0", dist.Categorical(start))

    def step(x, y):
        x = po.sample("x", dist.Categorical(move[x]))
        po.observe("y", dist.Categorical(see[x]), y)
        return x

    return po.scan(step, x0, ys)


def test_a_constrained_language_model_of_three_tokens(laws):
    """A bigram model over a, b and the end: texts of at most four tokens without "bb"."""
    after = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]

    @po.program
    def texts():
        def step(text, _):
            tokens, n = text
            token = po.sample("token", dist.Categorical(jnp.array(after)[tokens[n]]))
            po.factor("no bb", jnp.where((tokens[n] == 1) & (token == 1), -jnp.inf, 0.0))
            return tokens.at[n + 1].set(token), n + 1

        tokens, _ = po.scan(step, (jnp.array([0, -1, -1, -1, -1]), 0), length=4, until=lambda text: text[0][text[1]] == 2)
        return tokens

    mass = {}

    def write(tokens, weight):
        if tokens[-1] == 2 or len(tokens) == 5:
            mass[tuple(tokens + [-1] * (5 - len(tokens)))] = weight
            return
        for token in range(3):
            if not tokens[-1] == token == 1:
                write([*tokens, token], weight * after[tokens[-1]][token])

    write([0], 1.0)
    measured(laws, texts(), mass)


def test_schelling_agents_that_reason_about_each_other(laws):
    """Alice and Bob want to meet without talking (Stuhlmüller and Goodman 2014): each level imagines the other one level down."""
    prior, depth = [0.55, 0.45], 2

    def alice(level):
        @po.program
        def choose():
            place = po.sample("place", dist.Categorical(jnp.array(prior)))
            if level:
                other = po.exact(bob(level - 1)).weights
                po.factor("meet", jnp.log(jnp.asarray(other))[place])
            return place

        return choose.bind()  # a program of its own, also inside a model

    def bob(level):
        return alice(level)  # the two think alike

    belief = prior
    for _ in range(depth):
        joint = [p * q for p, q in zip(prior, belief, strict=True)]
        belief = [w / sum(joint) for w in joint]
    measured(laws, alice(depth), dict(enumerate(joint)))
    assert [estimate.value for estimate in po.exact(alice(depth)).answers().values()] == pytest.approx(belief, abs=1e-10)


def test_agents_that_reason_by_sampling_are_one_program(laws):
    """The same game in one program: Alice draws an imagined Bob and requires to meet him."""
    prior = [0.55, 0.45]

    @po.program
    def alice():
        mine = po.sample("alice", dist.Categorical(jnp.array(prior)))
        his = po.sample("bob", dist.Categorical(jnp.array(prior)))
        po.factor("meet", jnp.where(mine == his, 0.0, -jnp.inf))
        return mine

    measured(laws, alice(), {0: 0.55**2, 1: 0.45**2})


@pytest.mark.slow
@given(program=finite.programs())
@settings(FEW, max_examples=3)
def test_merged_branches_are_the_tree_walked_path_by_path(program):
    mass = {}
    with jax.enable_x64():
        for probability, posterior in outcomes(lambda: po.importance(jax.random.key(0), program, n=1)):
            path = tuple(np.asarray(posterior.values[0]).reshape(-1).tolist())
            mass[path] = mass.get(path, 0.0) + probability * math.exp(posterior.log_evidence)
    found = {tuple(np.asarray(outcome).reshape(-1).tolist()): m for outcome, m in po.exact(program).outcomes().items()}
    assert found == pytest.approx({path: m for path, m in mass.items() if m > 0}, abs=1e-6)  # the walk does not normalise float32 tables
