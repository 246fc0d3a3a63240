"""Exact posteriors pass, planted faults are refused; on a conjugate model, where an exact draw is one line.

Keys are fixed. Where exact methods are checked the level is 0.999: a method that is right would fail one time in a thousand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial

import posterity as po
from posterity.inference.validation.calibration import Calibration, nearness
from posterity.tests.fixtures.references import walk

KEY = jax.random.key(0)


@po.program
def pair(ys):
    """Two numbers, each seen three times in noise of variance 1."""
    x = po.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    po.observe("ys", dist.Normal(x, 1.0).to_event(1), ys)
    return x


PAIR = pair(jnp.zeros((3, 2)))


def draws_of(values):
    """Equally weighted draws as a posterior."""
    n, none = len(values), jnp.zeros(0)
    return po.Posterior(values, jnp.full(n, -jnp.log(n)), jnp.zeros(()), jnp.arange(n), jnp.array(0), jnp.array(0), none, none.astype(bool), None)


def posterior_with(shift, scale):
    """The conjugate posterior N(sum / 4, 1 / 4), moved by `shift` of its deviations, its deviation times `scale`."""
    return Partial(conjugate, jnp.asarray(shift), jnp.asarray(scale))


def conjugate(shift, scale, key, data):
    return draws_of(data["ys"].sum(axis=0) / 4 + 0.5 * (shift + scale * jax.random.normal(key, (1_000, 2))))


def prior(key, data):
    return draws_of(jax.random.normal(key, (1_000, 2)))


def given(data):
    return data


def judged(method, **options):
    return po.check.calibration(PAIR, method, key=KEY, bind=given, **options)


def test_the_exact_posterior_passes():
    report = judged(posterior_with(0.0, 1.0), level=0.999)
    assert report, report
    assert set(report.p_values) == {"value[0]", "value[1]", "coverage (TARP)"}
    assert report.ranks.shape == (200, 2)
    assert "no fault seen" in str(report)


RANKS, COVERAGE = ("value[0]", "value[1]"), ("coverage (TARP)",)
FAULTS = {  # and by which of the two tests they are seen: ranks (SBC) and coverage (TARP)
    "sd x 0.5": (posterior_with(0.0, 0.5), RANKS + COVERAGE),
    "sd x 2": (posterior_with(0.0, 2.0), RANKS + COVERAGE),
    "shifted by a deviation": (posterior_with(1.0, 1.0), RANKS + COVERAGE),
    "shifted by half of one": (posterior_with(0.5, 1.0), RANKS),
    "the prior": (prior, COVERAGE),  # its ranks are uniform: only references that depend on the data tell
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_refused(fault):
    """Each by the tests that see it on their own; what one does not see, the other does."""
    method, seen_by = FAULTS[fault]
    report = judged(method)
    assert not report
    assert "REFUSED" in str(report)
    for name, p_value in report.p_values.items():
        assert (p_value < 1e-6) if name in seen_by else (p_value > 1e-3), name


def test_the_prior_passes_where_references_know_nothing_of_the_data():
    assert judged(prior, reference=lambda key, data: jax.random.normal(key, (2,)), level=0.999)


@pytest.mark.slow
def test_ties_are_broken_at_random():
    """Values of two answers, whose ranks are nothing but ties."""

    @po.program
    def rain(wet):
        rain = po.sample("rain", dist.Bernoulli(0.3))
        po.observe("wet", dist.Bernoulli(jnp.where(rain, 0.9, 0.2)), wet)
        return rain

    def method(power, key, data):
        odds = jnp.log(0.3 / 0.7) + power * jnp.where(data["wet"], jnp.log(0.9 / 0.2), jnp.log(0.1 / 0.8))
        return draws_of(jax.random.bernoulli(key, jax.nn.sigmoid(odds), (1_000,)))

    def check(power):
        return po.check.calibration(rain(0), Partial(method, jnp.asarray(power)), key=KEY, bind=given, level=0.999)

    assert check(1.0)
    assert not check(5.0)


@pytest.mark.slow
def test_golden_numbers_of_tarp():
    """theta ~ N(0, I_2), x = theta + N(0, I_2): expected coverage as other runs of 4,000 simulations found it, within 4 standard errors of the difference."""
    levels, n = np.array([0.1, 0.25, 0.5, 0.75, 0.9]), 4_000
    keys = jax.random.split(KEY, 5)
    theta = jax.random.normal(keys[0], (n, 2))
    x = theta + jax.random.normal(keys[1], (n, 2))
    noise = jax.random.normal(keys[2], (n, 100, 2))
    low, high = theta.min(axis=0), theta.max(axis=0)
    anywhere = low + (high - low) * jax.random.uniform(keys[3], (n, 2))
    near = x + 0.1 * jax.random.normal(keys[4], (n, 2))

    near_by = jax.jit(jax.vmap(nearness))

    def coverage(draws, references):
        ranks = near_by(draws, theta, references)
        return Calibration((), np.zeros((n, 0)), np.asarray(ranks.less) / 100, {"coverage": 1.0}, 0.99).expected_coverage(levels)

    exact, prior = lambda scale: x[:, None] / 2 + scale * np.sqrt(0.5) * noise, noise
    golden = {
        "exact": (coverage(exact(1.0), anywhere), [0.112, 0.269, 0.519, 0.765, 0.906]),
        "sd x 0.5": (coverage(exact(0.5), anywhere), [0.228, 0.334, 0.461, 0.604, 0.712]),
        "sd x 2": (coverage(exact(2.0), anywhere), [0.064, 0.248, 0.689, 0.954, 0.998]),
        "prior, references anywhere": (coverage(prior, anywhere), [0.112, 0.266, 0.511, 0.749, 0.900]),
        "prior, references at the data": (coverage(prior, near), [0.394, 0.669, 0.894, 0.981, 0.999]),
    }
    for name, (found, expected) in golden.items():
        error = np.sqrt(2 * np.array(expected) * (1 - np.array(expected)) / n)
        np.testing.assert_allclose(found, expected, atol=float(4 * error.max()), err_msg=name)


@pytest.mark.slow
def test_methods_that_jax_cannot_trace_run_one_by_one():
    def on_host(key, data):
        mean = np.asarray(data["ys"]).sum(axis=0) / 4  # no tracer goes here
        return draws_of(jnp.asarray(mean) + 0.5 * jax.random.normal(key, (1_000, 2)))

    assert judged(on_host, simulations=20, level=0.999)


def test_pictures_show_the_bands():
    pytest.importorskip("matplotlib", reason="pictures are an extra")
    report = judged(posterior_with(0.0, 1.0))
    figure = report.plot()
    assert [axes.get_title() for axes in figure.axes] == ["each quantity (SBC)", "all together (TARP)"]
    low, high = report.coverage_band([0.25, 0.75])
    assert (low < high).all()


def test_what_cannot_be_calibrated_is_told():
    @po.program
    def weighed():
        x = po.sample("x", dist.Normal())
        po.factor("reward", x)
        return x

    with pytest.raises(ValueError, match="weighs by the factor 'reward'"):
        po.check.calibration(weighed(), posterior_with(0.0, 1.0), key=KEY)
    with pytest.raises(ValueError, match="simulations must be"):
        judged(prior, simulations=0)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        judged(prior, level=1.0)
    with pytest.raises(ValueError, match="in 200 of 200 simulations"):
        judged(lambda key, data: prior(key, data).replace(log_evidence=jnp.array(-jnp.inf)))
    with pytest.raises(TypeError, match=r"@po\.program makes"):
        po.check.calibration(po.recorded(PAIR), prior, key=KEY)


@pytest.mark.slow
def test_a_faulty_filter_is_refused_on_a_state_space_program():
    """A filter that forgets its weights at the end is one step behind."""

    def forgetful(key, program):
        posterior = po.smc(key, program, n=300)
        return posterior.replace(log_weights=jnp.full(300, -jnp.log(300)))

    program = walk(jnp.zeros(3))
    assert po.check.calibration(program, lambda key, program: po.smc(key, program, n=1_000), key=KEY, simulations=100, level=0.999)
    assert not po.check.calibration(program, forgetful, key=KEY, simulations=100)
