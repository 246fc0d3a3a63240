"""PMMH, SMC^2, resample-move and conditional SMC at a real size: against Gaussian algebra, compiled once, with errors for bad input.

Their laws are proved in tests/exact; here keys are fixed, and a tolerance is four standard deviations of runs with other keys, so
that a right implementation would fail an assertion about once in 16,000 keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures.references import constant

pytestmark = pytest.mark.slow

traced = []
YS = np.array([0.4, 1.1, 0.3, 1.9, 2.2, 1.0, 2.8, 3.1])
NOISE = 0.5


@po.program
def walk(ys, scale):
    """A Gaussian random walk with steps of standard deviation `scale`."""
    traced.append("walk")

    def step(x, y):
        x = po.sample("x", dist.Normal(x, scale))
        po.observe("y", dist.Normal(x, NOISE), y)
        return x

    return po.scan(step, jnp.zeros(()), ys)


def _walk(ys, scale):
    return walk(ys, scale)


def model(ys=YS):
    return jax.tree_util.Partial(_walk, jnp.asarray(ys, jnp.float32))


def nearby(width, scale):
    return dist.Normal(scale, width)


def kalman(scale):
    """The log evidence of YS (nats) and the mean of the last state given them."""
    mean, variance, log_evidence = 0.0, 0.0, 0.0
    for y in YS:
        variance += scale**2
        total = variance + NOISE**2
        log_evidence -= 0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
        gain = variance / total
        mean, variance = mean + gain * (y - mean), variance * (1 - gain)
    return log_evidence, mean


@pytest.fixture(scope="module")
def exact():
    """Log evidence, mean of the parameter (uniform on [0.1, 2]), mean of the last state: by a grid."""
    grid = np.linspace(0.1, 2.0, 2_001)
    log_evidence, last = np.array([kalman(scale) for scale in grid]).T
    weights = np.exp(log_evidence - log_evidence.max())
    evidence = np.log(np.trapezoid(weights, grid) / 1.9) + log_evidence.max()
    return evidence, weights @ grid / weights.sum(), weights @ last / weights.sum()


PRIOR = dist.Uniform(0.1, 2.0)


def close(estimate, expected, deviation):
    return abs(estimate - expected) < 4 * deviation


@pytest.mark.parametrize("proposal", [None, jax.tree_util.Partial(nearby, 0.5)], ids=["prior", "random walk"])
def test_pmmh_finds_the_posterior_of_parameters_and_of_states(exact, proposal):
    posterior = po.pmmh(jax.random.key(0), PRIOR, model(), n=64, draws=2_000, warmup=50, proposal=proposal)
    parameter, last = posterior.estimate(lambda draw: draw.parameters), posterior.estimate(lambda draw: draw.value)
    assert close(parameter.value, exact[1], 0.013)
    assert close(last.value, exact[2], 0.022)
    assert 0.3 < posterior.acceptance < 0.6
    # Errors that know of autocorrelation: those of independent draws would be 0.008 and 0.010.
    assert 0.010 < parameter.error < 0.030
    assert 100 < posterior.effective(lambda draw: draw.parameters) < 1_500


def test_smc2_finds_the_evidence_and_the_posterior(exact):
    posterior = po.smc2(jax.random.key(0), PRIOR, model(), n=256, inner=64, proposal=jax.tree_util.Partial(nearby, 0.5))
    assert close(posterior.log_evidence, exact[0], 0.07)
    assert close(posterior.expect(lambda draw: draw.parameters), exact[1], 0.036)
    assert close(posterior.expect(lambda draw: draw.value), exact[2], 0.04)


def smoothed(scale):
    """The posterior means of all states, by dense algebra."""
    times = np.arange(1, len(YS) + 1)
    prior = scale**2 * np.minimum(times[:, None], times)
    return prior @ np.linalg.solve(prior + NOISE**2 * np.eye(len(YS)), YS)


def test_resample_move_finds_the_evidence_and_the_state():
    posterior = po.resample_move(jax.random.key(0), model()(0.8), n=500)
    evidence, last = kalman(0.8)
    assert close(posterior.log_evidence, evidence, 0.08)
    assert close(posterior.expect(), last, 0.03)
    assert posterior.acceptance[0] == 1  # at the beginning nothing has been weighed yet
    assert jnp.all((posterior.acceptance[1:] > 0.02) & (posterior.acceptance[1:] < 0.9))
    assert jnp.all(jnp.isnan(po.resample_move(jax.random.key(0), model()(0.8), n=4, moves=0).acceptance))


def test_moves_keep_values_of_a_constant_apart():
    def distinct(algorithm, **options):
        return np.mean([len(np.unique(algorithm(jax.random.key(seed), constant(jnp.ones(8)), n=100, threshold=1.0, **options).values)) for seed in range(4)])

    # Over 20 keys 22.7 (standard deviation of one run 4.1) and 69.7 (4.4): means of four are 3.5 and 5 standard errors away from the bounds.
    assert distinct(po.smc) < 30
    assert distinct(po.resample_move, moves=3) > 2 * distinct(po.smc)


def test_iterated_conditional_smc_finds_the_smoothed_states():
    program = po.recorded(model()(0.8))

    @jax.jit
    def iterate(key, program):
        path = program.init(key, 1)[0]
        for time in range(len(YS)):
            path = program.step(jax.random.fold_in(key, time), path)[0]

        def again(path, key):
            path = po.conditional_smc(key, program, path, n=20)
            return path, path.states.carry[0][0, 1:]

        return jax.lax.scan(again, path, jax.random.split(key, 2_000))[1]

    states = iterate(jax.random.key(0), program)
    np.testing.assert_allclose(states.mean(0), smoothed(0.8), atol=4 * 0.015)


def test_other_data_parameters_and_proposals_do_not_recompile():
    def runs(ys, low, width):
        prior, key = dist.Uniform(low, 2.0), jax.random.key(0)
        traced.clear()
        po.pmmh(key, prior, model(ys), n=4, draws=5, proposal=jax.tree_util.Partial(nearby, width))
        po.smc2(key, prior, model(ys), n=4, inner=4, proposal=jax.tree_util.Partial(nearby, width))
        po.resample_move(key, model(ys)(low), n=4)
        return len(traced)

    assert runs([1.0, 2.0], 0.1, 0.5) > 0
    assert runs([0.0, -1.0], 0.2, 0.1) == 0


def test_the_same_key_gives_the_same_bits():
    options = {"n": 4, "draws": 5, "proposal": jax.tree_util.Partial(nearby, 0.5)}
    one, other = [po.pmmh(jax.random.key(3), PRIOR, model([1.0, 2.0]), **options) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_moves_compiled_step_by_step_give_the_same_bits():
    one, other = [po.resample_move(jax.random.key(3), model([1.0, 2.0])(0.5), n=4, progress=progress) for progress in (False, True)]
    jax.tree.map(np.testing.assert_array_equal, one, other)


@po.program
def impossible(parameter):
    po.factor("no", -jnp.inf)
    return parameter


@po.program
def undefined(parameter):
    po.factor("nan", jnp.where(parameter > 0.5, jnp.nan, 0.0))
    return parameter


def test_a_chain_that_finds_nothing_says_so():
    chain = po.pmmh(jax.random.key(0), PRIOR, impossible, n=2, draws=3)
    assert chain.log_evidence == -jnp.inf
    with pytest.raises(ValueError, match="in 3 draws the chain found no state that the potentials allow"):
        chain.expect(lambda draw: draw.parameters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: po.pmmh(key, PRIOR, undefined, n=2, draws=20), "proposals had a log potential that was NaN or"),
        (lambda key: po.smc2(key, PRIOR, undefined, n=8, inner=2), "log potentials were NaN or"),
        (lambda key: po.pmmh(key, PRIOR, model(), n=0, draws=5), "n must be at least 1 inner particle, got 0"),
        (lambda key: po.pmmh(key, PRIOR, model(), n=2, draws=0), "draws must be a whole number of at least 1, got 0"),
        (lambda key: po.pmmh(key, PRIOR, model(), n=2, draws=5, warmup=-1), "warmup must be a whole number of at least 0, got -1"),
        (lambda key: po.pmmh(key, PRIOR, model(), n=2, draws=5, resampling="best"), "resampling must be one of systematic"),
        (lambda key: po.smc2(key, PRIOR, model(), n=2, inner=2, moves=-1), "moves must be a whole number of at least 0, got -1"),
        (lambda key: po.smc2(key, model()(0.5), model(), n=2, inner=2), "parameters must be a program without steps"),
        (lambda key: po.resample_move(key, model()(0.5), n=2, moves=1.5), "moves must be a whole number of at least 0, got 1.5"),
        (lambda key: po.conditional_smc(key, po.recorded(model()(0.5)), po.recorded(model()(0.5)).init(key, 1)[0], n=1), "n must be at least 2 particles"),
        (lambda key: po.conditional_smc(key, po.recorded(model()(0.5)), po.recorded(model()(0.5)).init(key, 3)[0], n=2), "must be one trajectory"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: po.pmmh(0, PRIOR, model(), n=2, draws=5), "key must be a single random key"),
        (lambda key: po.nested("uniform", model(), n=2), "parameters must be a NumPyro distribution or a Program, got str"),
        (lambda key: po.nested(PRIOR, 3, n=2), "model must be a function from parameters to a Program, got int"),
        (lambda key: po.smc(key, po.nested(PRIOR, jnp.sin, n=2), n=2), "model must return a Program"),
        (lambda key: po.pmmh(key, po.nested(PRIOR, impossible, n=1), impossible, n=2, draws=5, proposal=nearby), "a proposal needs the prior's density"),
        (lambda key: po.pmmh(key, PRIOR, impossible, n=2, draws=5, proposal=1.0), "proposal must be a function from parameters"),
        (lambda key: po.resample_move(key, len, n=2), "program must be a Program"),
    ],
)
def test_things_of_the_wrong_kind_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call(jax.random.key(0))
