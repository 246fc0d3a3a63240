"""Smoothing at a real size: against the algebra of Gaussians and of hidden Markov models, compiled once, with errors for bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.smc import backward
from posterity.tests.fixtures import references, tiny_lm

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
RUNS = 6  # how many runs are averaged: their spread says how far the mean may be off


# -- linear-Gaussian models -------------------------------------------------------------------------------------------------


@po.program
def linear(start, move, noise, see, error, ys, seen):
    """x' = move x + noise e, seen as see x + error e' at the times that are `seen`; x, noise and see are vectors."""
    x = po.sample("x0", dist.Normal(start, 1.0).to_event(1))

    def step(x, now):
        y, seen = now
        x = po.sample("x", dist.Normal(move @ x, noise).to_event(1))
        po.factor("y", jnp.where(seen, dist.Normal(see @ x, error).log_prob(y), 0.0))
        return x

    return po.scan(step, x, (ys, seen))


def smoothed_states(start, move, noise, see, error, ys, seen):
    """Log evidence, and the means [T + 1, d] of all states given all that was seen: Kalman forwards, Rauch, Tung and Striebel backwards."""
    mean, cov, q = start, np.eye(len(start)), np.diag(noise**2)
    filtered, predicted, log_evidence = [(mean, cov)], [], 0.0
    for y, sees in zip(ys, seen, strict=True):
        mean, cov = move @ mean, move @ cov @ move.T + q
        predicted.append((mean, cov))
        if sees:
            spread = see @ cov @ see + error**2
            log_evidence -= 0.5 * ((y - see @ mean) ** 2 / spread + np.log(2 * np.pi * spread))
            gain = cov @ see / spread
            mean, cov = mean + gain * (y - see @ mean), cov - np.outer(gain, see @ cov)
        filtered.append((mean, cov))
    means = [filtered[-1][0]]
    for (mean, cov), (ahead, ahead_cov) in zip(filtered[-2::-1], predicted[::-1], strict=True):
        means.append(mean + cov @ move.T @ np.linalg.solve(ahead_cov, means[-1] - ahead))
    return log_evidence, np.array(means[::-1])


_rng = np.random.default_rng(1)
_ys, _speed, _always = np.cumsum(_rng.normal(size=12)), np.array([[1.0, 0.5], [0.0, 0.9]]), np.ones(12, bool)
MODELS = {
    "a random walk, and noise beside it": (np.zeros(2), np.diag([0.95, 0.0]), np.array([0.7, 1.0]), np.array([1.0, 0.0]), 0.8, _ys, _always),
    "position and speed": (np.array([0.0, 1.0]), _speed, np.array([0.5, 0.4]), np.array([1.0, 0.0]), 0.7, _ys, _always),
    "seen seldom": (np.zeros(2), _speed, np.array([0.3, 0.3]), np.array([1.0, 0.2]), 0.5, _ys, np.arange(12) % 4 == 3),
}


def over_runs(run, program):
    """The mean over some runs of `run(key, program)` and its standard error."""
    rows = np.stack([np.asarray(run(key, program)) for key in jax.random.split(KEY, RUNS)])
    return rows.mean(0), rows.std(0, ddof=1) / math.sqrt(RUNS)


def kalman_scores(run, program, exact):
    """How many standard errors the mean over runs is off, beyond 0.01."""
    found, errors = over_runs(run, program)
    assert errors.max() < 0.15  # or they would say nothing
    return (np.abs(found - exact) - 0.01) / errors


@pytest.fixture(scope="module", autouse=True)
def _nothing_compiled():
    backward._simulated.clear_cache()


@pytest.mark.parametrize("name", MODELS)
def test_backward_simulation_agrees_with_kalman(name):
    log_evidence, means = smoothed_states(*MODELS[name])

    def run(key, program):
        posterior = po.ffbsi(key, program, n=250)
        return np.append(posterior["path"].expect().reshape(-1), np.exp(posterior.log_evidence - log_evidence))

    assert kalman_scores(run, linear(*map(jnp.asarray, MODELS[name])), np.append(means.reshape(-1), 1.0)).max() < 5
    assert backward._simulated._cache_size() == 1  # compiled once, for all models of this shape


def test_sums_over_steps_agree_with_kalman():
    model = MODELS["position and speed"]
    bound = -np.log(model[2] * math.sqrt(2 * math.pi)).sum()

    def run(key, program):
        return po.paris(key, program, state_after, n=250, bound=bound).expect() / len(model[-1])

    assert kalman_scores(run, linear(*map(jnp.asarray, model)), smoothed_states(*model)[1][1:].mean(0)).max() < 5


def state_after(t, before, after):
    return after


def test_a_fixed_lag_goes_from_the_filter_to_the_genealogy():
    program = references.walk(jnp.asarray(references.YS))
    posterior = po.smc(KEY, program, n=400, history="full", threshold=1.0)
    lags = [np.asarray(po.fixed_lag(program, posterior, lag=lag)) for lag in (0, 2, 4, 9)]
    generations = posterior.generations
    weights = np.exp(generations.log_weights - np.logaddexp.reduce(np.asarray(generations.log_weights), axis=1)[:, None])
    states = np.asarray(generations.particles.carry[0])
    np.testing.assert_allclose(lags[0], (weights * states).sum(1), rtol=1e-4)  # the filter's means
    paths = posterior.lineage.paths
    np.testing.assert_allclose(lags[2], (weights[-1] * np.take_along_axis(states, paths, axis=1)).sum(1), rtol=1e-4)
    np.testing.assert_allclose(lags[2], lags[3])
    np.testing.assert_allclose(lags[1], references.walk_posterior(references.YS)[1], atol=0.2)
    np.testing.assert_allclose(po.fixed_lag(program, posterior, lambda x: (x, x > 100), lag=2)[0], lags[1])


def test_a_program_without_steps_has_a_path_of_one():
    @po.program
    def once(y):
        x = po.sample("x", dist.Normal(0.0, 1.0))
        po.observe("y", dist.Normal(x, 1.0), y)
        return x

    posterior = po.smc(KEY, po.retraced(once(2.0)), n=2_000, history="full")
    path = po.backward_simulation(KEY, po.retraced(once(2.0)), posterior, draws=2_000)["path"]
    assert path.values.shape == (2_000, 1)
    np.testing.assert_allclose(path.expect(), 1.0, atol=0.1)
    np.testing.assert_allclose(po.fixed_lag(po.retraced(once(2.0)), posterior, lag=3), 1.0, atol=0.1)


# -- a hidden Markov model --------------------------------------------------------------------------------------------------


def hmm():
    return references.hmm(*map(jnp.asarray, (references.START, references.MOVE, references.MEANS, references.HEARD)))


def is_state(path):
    """Indicators of all states at all times."""
    return jnp.asarray(path[:, None] == jnp.arange(3), float)


def test_smoothed_marginals_agree_with_forward_and_backward():
    """The program's state holds its whole path and reads it, so that the rest of a trajectory is run again from every particle."""
    found, errors = over_runs(lambda key, program: po.ffbsi(key, program, n=250)["value"].expect(is_state), hmm())
    assert (np.abs(found - references.hmm_posterior()[1]) < 0.01 + 5 * errors).all()
    assert errors.max() < 0.05


# -- chains -----------------------------------------------------------------------------------------------------------------


def test_ancestor_sampling_renews_all_of_a_long_trajectory():
    ys = np.random.default_rng(0).normal(size=40)
    chain = po.particle_gibbs(KEY, references.walk(jnp.asarray(ys)), n=6, draws=400, warmup=10)
    path = chain["path"]
    assert len(np.unique(path.values[:, 0])) > 250  # six particles and forty steps: along ancestors of the run it would be some twenty
    _, means, covariance = references.walk_posterior(ys)
    np.testing.assert_allclose(path.expect(), means, atol=6 * math.sqrt(covariance.diagonal().max() / 200))


def test_tempered_copies_lead_from_mode_to_mode():
    @po.program
    def far():
        """A walk that must end near 4 or near -4."""

        def step(x, t):
            x = po.sample("x", dist.Normal(x, 1.0))
            po.factor("far", jnp.where(t == 3, -8 * (jnp.abs(x) - 4) ** 2, 0.0))
            return x

        return po.scan(step, 0.0, jnp.arange(4))

    chain = po.particle_gibbs(KEY, far(), n=6, draws=1_000, exponents=(1.0, 0.3, 0.1))
    sides = jnp.sign(chain["value"].values)
    assert jnp.sum(sides[1:] != sides[:-1]) > 100  # without copies 33
    assert abs(float(jnp.mean(sides))) < 0.3


# -- bad input --------------------------------------------------------------------------------------------------------------


@po.program
def rolls():
    """The sum of three dice."""
    return po.scan(lambda total, _: total + po.sample("die", dist.DiscreteUniform(1, 6)), 0, length=3)


@po.program
def lucky():
    """Dice that an inference inside the program throws."""

    def step(total, _):
        return total + po.embed("die", po.importance(po.key(), die.bind(), n=2))

    return po.scan(step, 0, length=2)


@po.program
def die():
    return po.sample("die", dist.DiscreteUniform(1, 6))


@functools.cache
def kept():
    return po.smc(KEY, po.retraced(rolls()), n=3, history="full")


WRONG = {
    "history of another name": (lambda: po.smc(KEY, rolls(), n=2, history="all"), ValueError, 'history must be "none" .* or "full", got \'all\''),
    "backward without generations": (
        lambda: po.backward_simulation(KEY, po.retraced(rolls()), kept().replace(generations=None), draws=2),
        ValueError,
        'kept no generations; call the inference with history="full"',
    ),
    "fixed lag without generations": (lambda: po.fixed_lag(po.retraced(rolls()), kept().replace(generations=None), lag=1), ValueError, "kept no generations"),
    "a negative lag": (lambda: po.fixed_lag(po.retraced(rolls()), kept(), lag=-1), ValueError, "lag must be .* at least 0, got -1"),
    "no draws": (lambda: po.backward_simulation(KEY, po.retraced(rolls()), kept(), draws=0), ValueError, "draws must be .* at least 1, got 0"),
    "a program not retraced": (lambda: po.backward_simulation(KEY, rolls(), kept(), draws=1), TypeError, "must be one made by po.retraced"),
    "a program that hides its choices": (lambda: po.ffbsi(KEY, po.delay(rolls(), steps=1), n=2), TypeError, "retraced: the program must be made of a function"),
    "a step without a density": (lambda: po.ffbsi(KEY, lucky(), n=2), TypeError, "draws more in a step than its choices"),
    "one particle": (lambda: po.particle_gibbs(KEY, rolls(), n=1, draws=2), ValueError, "n must be at least 2 particles"),
    "exponents that rise": (lambda: po.particle_gibbs(KEY, rolls(), n=2, draws=2, exponents=(0.5, 1.0)), ValueError, "exponents must fall from 1"),
    "other ancestors": (
        lambda: po.particle_gibbs(KEY, rolls(), n=2, draws=2, ancestors="all"),
        ValueError,
        "ancestors must be one of trace, ancestor, backward",
    ),
    "another scheme": (
        lambda: po.particle_gibbs(KEY, rolls(), n=2, draws=2, resampling="best"),
        ValueError,
        "resampling must be one of systematic, stratified",
    ),
    "ancestors of what is not retraced": (
        lambda: po.conditional_smc(KEY, po.recorded(rolls()), po.recorded(rolls()).init(KEY, 1)[0], n=2, ancestors="backward"),
        TypeError,
        "needs the density of steps: program must be po.recorded",
    ),
    "conditional SMC of what is not recorded": (lambda: po.conditional_smc(KEY, rolls(), rolls().init(KEY, 1)[0], n=2), TypeError, "one made by po.recorded"),
    "no samples": (lambda: po.paris(KEY, rolls(), state_after, n=2, samples=0), ValueError, "samples must be .* at least 1, got 0"),
    "no functional": (lambda: po.paris(KEY, rolls(), 3, n=2), TypeError, "functional must be a function of"),
    "a density above the bound": (lambda: po.paris(KEY, rolls(), state_after, n=5, bound=-2.0), ValueError, "above the bound"),
    "a state that remembers": (lambda: po.paris(KEY, hmm(), state_after, n=5), ValueError, "not Markov"),
    "no evidence": (lambda: po.ffbsi(KEY, never(), n=2)["value"].expect(), ValueError, "the evidence is zero"),
}


@po.program
def never():
    def step(x, _):
        po.factor("never", -jnp.inf)
        return x

    return po.scan(step, 0, length=2)


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_told(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


@po.program
def letters(lm):
    return po.scan(lambda text, _: text.push(po.sample("letter", text.next())), lm.start("a"), length=2)


def test_a_full_history_of_a_text_is_refused():
    with pytest.raises(TypeError, match=r"keeps every generation, but .* whose past is shared"):
        po.smc(KEY, letters(tiny_lm.language_model()), n=2, history="full")
