"""SMC samplers at a real size: against conjugate posteriors, compiled once, with errors for bad input.

Their laws are proved in tests/exact; here keys are fixed, and a tolerance is four standard deviations of runs with other keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
traced = []


@po.program
def regression(X, ys, noise):
    """Linear regression with a Gaussian prior."""
    traced.append("regression")
    w = po.sample("w", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    po.observe("ys", dist.Normal(X @ w, noise), ys)
    return w


@po.program
def online(X, ys, noise):
    """The same, in batches of data that come in one after another."""
    traced.append("online")
    w = po.sample("w", dist.Normal(jnp.zeros(2), 2.0).to_event(1))

    def step(w, batch):
        X, ys = batch
        po.observe("ys", dist.Normal(X @ w, noise), ys)
        return w

    return po.scan(step, w, (X, ys))


def data(seed=0, size=12):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(size, 2))
    ys = X @ [1.0, -2.0] + 0.5 * rng.normal(size=size)
    return X.astype(np.float32), ys.astype(np.float32)


def batches(X, ys):
    return X.reshape(4, -1, 2), ys.reshape(4, -1)


@pytest.fixture(scope="module")
def exact():
    """Log evidence, and mean and standard deviation of the weights, by Gaussian algebra."""
    X, ys = map(np.float64, data())
    covariance = 4.0 * X @ X.T + 0.25 * np.eye(len(ys))
    log_evidence = -0.5 * (ys @ np.linalg.solve(covariance, ys) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    precision = X.T @ X / 0.25 + np.eye(2) / 4
    return log_evidence, np.linalg.solve(precision, X.T @ ys / 0.25), np.sqrt(np.diag(np.linalg.inv(precision)))


def runs():
    X, ys = data()
    static, steps = regression(jnp.asarray(X), jnp.asarray(ys), 0.5), online(*map(jnp.asarray, batches(X, ys)), 0.5)
    return {
        "tempering": lambda key: po.tempering(key, static, n=1_000),
        "waste-free": lambda key: po.tempering(key, static, n=1_000, waste_free=True, moves=9),
        "ibis": lambda key: po.ibis(key, steps, n=1_000),
    }


DEVIATIONS = {"tempering": (0.08, 0.0062, 0.0033), "waste-free": (0.13, 0.0128, 0.007), "ibis": (0.17, 0.0098, 0.0053)}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_conjugate_regression_is_found_and_compiled_once(exact, name):
    traced.clear()
    run = runs()[name]
    posterior, once = run(KEY), len(traced)
    values = {"evidence": posterior.log_evidence, "mean": posterior.expect(), "deviation": jnp.sqrt(posterior.expect(lambda w: w**2) - posterior.expect() ** 2)}
    for found, expected, deviation in zip(values.values(), exact, DEVIATIONS[name], strict=True):
        np.testing.assert_allclose(found, expected, atol=4 * deviation)
    assert len(np.unique(posterior.values, axis=0)) > 300
    moves = posterior.acceptance[~jnp.isnan(posterior.acceptance)]
    assert len(moves) >= 3
    assert ((moves > 0.2) & (moves < 0.6)).all()  # what a learned covariance of two dimensions should come to
    run(jax.random.key(1))
    assert len(traced) == once > 0


def test_the_path_is_told():
    posterior = runs()["tempering"](KEY)
    stages = len(posterior.ladder)
    assert 3 <= stages < 10
    assert int(posterior.steps) == stages - 1
    assert posterior.ladder[-1] == 1
    assert (np.diff(posterior.ladder) > 0).all()
    np.testing.assert_allclose(posterior.ess_history[: stages - 1], 500, rtol=0.01)  # each stage leaves half of the effective sample size
    assert jnp.isnan(posterior.exponents[stages:]).all()


@po.program
def up_to_sign(y):
    """The sign and the size of what is observed: two modes far apart."""
    flipped = po.sample("flipped", dist.Bernoulli(0.5))
    x = po.sample("x", dist.Normal(1.0, 3.0))
    po.observe("y", dist.Normal(jnp.where(flipped, -x, x), 0.05), y)
    return x


def test_both_modes_keep_their_weight_and_moves_keep_particles_apart():
    posterior = po.tempering(KEY, up_to_sign(4.0), n=2_000)  # moves `x` by a random walk, `flipped` by uniform proposals
    near, far = (float(jnp.exp(dist.Normal(1.0, jnp.hypot(3.0, 0.05)).log_prob(y))) for y in (4.0, -4.0))
    assert abs(posterior.log_evidence - np.log(0.5 * (near + far))) < 4 * 0.087
    assert abs(posterior.prob(lambda x: x > 0) - near / (near + far)) < 4 * 0.044
    # Of 2,000 draws of the prior about 25 are where the posterior is: without moves no more than these would be left.
    assert len(np.unique(posterior.values)) > 300


@po.program
def counts(ys):
    rate = po.sample("rate", dist.Poisson(3.0))
    po.observe("ys", dist.Poisson(rate + 1.0), ys)
    return rate


@po.program
def walk(ys):
    x = po.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, 1.0), y)
        return x

    return po.scan(step, x, ys)


def static(**options):
    X, ys = data()
    return po.tempering(KEY, regression(X, ys, 0.5), **{"n": 4} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: static(n=0), "n must be a whole number of at least 1, got 0"),
        (lambda: static(ladder=[0.5, 0.25, 1.0]), "ladder must be a row of increasing exponents, the first above 0 and the last 1, got"),
        (lambda: static(ladder=[0.5]), "ladder must be a row of increasing exponents"),
        (lambda: static(ladder=[0.0, 1.0]), "ladder must be a row of increasing exponents"),
        (lambda: static(ess=1.0), "ess must lie between 0 and 1, got 1.0"),
        (lambda: static(stages=0), "stages must be a whole number of at least 1, got 0"),
        (lambda: static(moves=-1), "moves must be a whole number of at least 0, got -1"),
        (lambda: static(moves=2, waste_free=True), r"waste_free keeps the moves \+ 1 = 3 states of each chain: n must be a multiple of that, got 4"),
        (lambda: static(kernel=po.kernels.random_walk(covariance=jnp.eye(3))), r"random_walk: covariance must have shape \(2, 2\), .* got \(3, 3\)"),
        (lambda: static(n=1), "random_walk learns its covariance from at least 2 particles"),
        (lambda: static(kernel=po.kernels.uniform()), "uniform moves choices of finite support; 'w' of <program regression> is real"),
        (lambda: static(kernel=po.kernels.random_walk("v")), "random_walk: <program regression> has no choice called v; it has w"),
        (lambda: po.tempering(KEY, counts(3.0), n=4, kernel=po.kernels.random_walk()), r"random_walk moves real choices; 'rate' of .* is discrete \(Poisson\)"),
        (lambda: po.tempering(KEY, walk(jnp.ones(3)), n=4), "tempering: program must be static, but <program walk> has a scan of 3 steps"),
        (lambda: po.ibis(KEY, walk(jnp.ones(3)), n=4), "ibis: the steps of <program walk> draw 'x'"),
        (lambda: po.kernels.cycle(), "cycle: give at least one kernel"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_things_of_the_wrong_kind_are_named():
    with pytest.raises(TypeError, match=r"tempering: program must be one made by @po\.program"):
        po.tempering(KEY, po.temper(counts(3.0), jnp.array([1.0])), n=4)
    with pytest.raises(TypeError, match="ibis: program must be a Program"):
        po.ibis(KEY, len, n=4)


def adaptive(scale=1.0, noise=0.5, **options):
    """As `runs` has it, so that nothing is compiled anew."""
    X, ys = map(jnp.asarray, data())
    return po.tempering(KEY, regression(X, scale * ys, noise), n=1_000, **options)


def test_what_shows_at_run_time_is_told_too():
    with pytest.raises(ValueError, match=r"<program regression>: 1000 of 1000 log likelihoods were NaN or"):
        adaptive(noise=jnp.nan)
    with pytest.raises(ValueError, match=r"after stages=100 the exponent is 0\.\d+, not 1; allow more stages, or a smaller ess"):
        adaptive(ess=0.9999)
    assert adaptive(scale=jnp.inf).log_evidence == -jnp.inf
