"""SMC and importance sampling are properly weighted: E[Z_hat * sum_i W_i f(x_i)] = ⟦p⟧(f) for every f, exactly.

The expectation runs over every choice of the program and of the algorithm (its own code runs, in float64). It is compared
on the measure of every path, which is all f at once, with sums written as plain loops here.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.drive import drive
from posterity.inference.smc import smc
from posterity.inference.smc.resampling import SCHEMES, Ancestors, Systematic
from posterity.ppl.chunk import chunk
from posterity.ppl.exact import outcomes

START, MOVE, SEEN = [0.6, 0.4], [[0.7, 0.3], [0.0, 1.0]], [0.9, 0.2]  # a two-state chain; state 1 is never left
OBSERVED = [1, 0]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def chain(start, move, seen, observed):
    """A hidden Markov model of two steps whose value is its path."""
    x0 = po.sample("x0", dist.Categorical(start))

    def step(path, y):
        x = po.sample("x", dist.Categorical(move[path[-1]]))
        po.observe("y", dist.Bernoulli(seen[x]), y)
        return jnp.concatenate([path[1:], x[None]])

    return po.scan(step, jnp.stack([0, 0, x0]), observed)


@po.program
def hunt(start, move, early, late, reward):
    """Particles stop at their first 1, after one step or two; potentials stand before, in and after the scan, some of them zero."""
    x0 = po.sample("x0", dist.Categorical(start))
    po.factor("early", jnp.log(early)[x0])

    def step(carry, _):
        path, time = carry
        x = po.sample("x", dist.Categorical(move[path[time]]))
        po.factor("late", jnp.log(late)[time, x])
        return path.at[time + 1].set(x), time + 1

    path, time = po.scan(step, (jnp.stack([x0, 0, 0]), 0), length=2, until=lambda carry: carry[0][carry[1]] == 1)
    po.factor("reward", jnp.log(reward)[time - 1])
    return path


@po.program
def beats(move, potential):
    """Three steps without two 1s in a row."""

    def step(path, _):
        x = po.sample("x", dist.Categorical(move[path[-1]]))
        po.factor("potential", jnp.log(potential)[x])
        return jnp.concatenate([path[1:], x[None]])

    return po.scan(step, jnp.zeros(3, int), length=3)


def measure(run):
    """The total probability of all outcomes, and the expected unnormalised mass of each of the eight paths."""
    total, mass = [], np.zeros(8)
    for probability, posterior in outcomes(run):
        total.append(probability)
        codes = np.asarray(posterior.values) @ [4, 2, 1]
        mass += probability * math.exp(posterior.log_evidence) * np.bincount(codes, weights=np.asarray(posterior.weights), minlength=8)
    return math.fsum(total), mass


def meaning(weight_of_path):
    return np.array([weight_of_path(*path) for path in itertools.product((0, 1), repeat=3)])


def chain_weight(x0, x1, x2):
    def seen(x, y):
        return SEEN[x] if y else 1 - SEEN[x]

    return START[x0] * MOVE[x0][x1] * seen(x1, OBSERVED[0]) * MOVE[x1][x2] * seen(x2, OBSERVED[1])


def a_chain():
    return chain(jnp.array(START), jnp.array(MOVE), jnp.array(SEEN), jnp.array(OBSERVED))


def assert_equal(found, expected):
    total, mass = found
    assert total == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(mass, expected, rtol=0, atol=1e-10)


# With two particles the effective sample size lies between 1 and 2: 0.75 resamples only where the weights are far apart.
@pytest.mark.parametrize(("resampling", "threshold"), [*((name, 1.0) for name in SCHEMES), ("systematic", 0.75)])
def test_smc_is_properly_weighted(resampling, threshold):
    found = measure(lambda: po.smc(jax.random.key(0), a_chain(), n=2, resampling=resampling, threshold=threshold))
    assert_equal(found, meaning(chain_weight))


def test_importance_sampling_is_properly_weighted():
    assert_equal(measure(lambda: po.importance(jax.random.key(0), a_chain(), n=2)), meaning(chain_weight))


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_potentials_before_and_after_the_scan_and_particles_that_end_early_keep_the_meaning(resampling):
    move, early, late, reward = [[0.5, 0.5], [0.0, 1.0]], [0.5, 2.0], [[0.3, 0.0], [1.5, 0.7]], [3.0, 0.25]
    start = [0.3, 0.7]

    def weight(x0, x1, x2):
        once = start[x0] * early[x0] * move[x0][x1] * late[0][x1]
        if x1 == 1:  # ended: what follows is no choice, and stays 0
            return once * reward[0] if x2 == 0 else 0.0
        return once * move[x1][x2] * late[1][x2] * reward[1]

    program = hunt(*map(jnp.array, (start, move, early, late, reward)))
    assert_equal(measure(lambda: po.smc(jax.random.key(0), program, n=2, threshold=1, resampling=resampling)), meaning(weight))


def test_chunks_keep_the_meaning():
    move, potential = [[0.6, 0.4], [1.0, 0.0]], [0.5, 2.0]
    program = chunk(beats(jnp.array(move), jnp.array(potential)), lambda path: path[-1] == 1)

    def weight(*path):
        return math.prod(move[a][b] * potential[b] for a, b in itertools.pairwise((0, *path)))

    assert_equal(measure(lambda: po.smc(jax.random.key(0), program, n=2, threshold=1)), meaning(weight))


class Fittest(Ancestors):
    """No resampling scheme: copies the heaviest particle."""

    def sample(self, key, sample_shape=()):
        return jnp.full((*sample_shape, self.size), jnp.argmax(self.log_weights), jnp.int32)

    def _atoms(self):
        return jnp.full((1, self.size), jnp.argmax(self.log_weights), jnp.int32), jnp.ones(1)


def forgetful(key, program, population):
    """SMC that does not move the mean weight into the evidence when it resamples."""
    after, info = smc.step(key, program, population, threshold=1.0, resampling=Systematic)
    return after.replace(log_evidence=population.log_evidence), info


MUTANTS = {
    "the fittest instead of a draw": lambda: po.smc(jax.random.key(0), a_chain(), n=2, threshold=1.0, resampling=Fittest),
    "a forgotten weight": lambda: drive(jax.random.key(0), a_chain(), 2, smc.init, jax.tree_util.Partial(forgetful), history=False, progress=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_proof_refutes(mutant):
    total, mass = measure(MUTANTS[mutant])
    assert total == pytest.approx(1, abs=1e-12)
    assert np.abs(mass - meaning(chain_weight)).max() > 1e-3
