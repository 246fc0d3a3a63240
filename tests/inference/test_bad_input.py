"""Bad input is named where it is given; what only shows at run time is flagged, never a silent NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures.references import walk

KEY = jax.random.key(0)
YS = jnp.array([1.0, 2.0])


@po.program
def weighed(potentials):
    """Three steps with given log potentials."""

    def step(x, potential):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.factor("potential", potential)
        return x

    return po.scan(step, 0.0, potentials)


@pytest.mark.parametrize("algorithm", [po.smc, po.importance])
@pytest.mark.parametrize("n", [0, -3, 2.0, "8", None, True])
def test_n_must_be_a_number_of_particles(algorithm, n):
    with pytest.raises(ValueError, match=f"n must be at least 1 particle, got {n!r}"):
        algorithm(KEY, walk(YS), n=n)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "half"])
def test_the_threshold_is_a_share(threshold):
    with pytest.raises(ValueError, match=rf"threshold must lie in \[0, 1\], got {threshold!r}"):
        po.smc(KEY, walk(YS), n=4, threshold=threshold)


def test_an_unknown_scheme_is_met_with_the_known_ones():
    with pytest.raises(
        ValueError, match="resampling must be one of systematic, stratified, multinomial, residual, ssp, killing or an Ancestors class, got 'best'"
    ):
        po.smc(KEY, walk(YS), n=4, resampling="best")


@pytest.mark.parametrize("key", [0, None, jax.random.split(KEY, 2), jnp.zeros(2)])
def test_a_key_is_a_single_key(key):
    with pytest.raises(TypeError, match="key must be a single random key"):
        po.smc(key, walk(YS), n=4)


def test_raw_keys_are_keys_too():
    assert len(po.smc(jax.random.PRNGKey(0), walk(YS), n=4)) == 4


def test_a_plain_function_is_no_program():
    with pytest.raises(TypeError, match=r"decorated with @po.program, called with its arguments.*got function"):
        po.smc(KEY, walk.function, n=4)


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_potentials_that_are_no_numbers_are_refused(wrong, progress):
    program = weighed(jnp.array([0.0, wrong, 0.0]))
    with pytest.raises(ValueError, match=r"<program weighed>: 5 of 5 log potentials were NaN or \+inf at step 2; each must be finite or -inf"):
        po.smc(KEY, program, n=5, progress=progress)


@pytest.mark.parametrize("algorithm", [po.smc, po.importance])
@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_potentials_that_are_no_numbers_are_flagged_inside_jit(algorithm, wrong):
    posterior = jax.jit(lambda potentials: algorithm(KEY, weighed(potentials), n=5))(jnp.array([0.0, wrong, 0.0]))
    assert int(posterior.invalid) > 0
    assert posterior.log_evidence == -jnp.inf
    assert_no_nan(posterior)


def assert_no_nan(posterior):
    """Only the effective sample sizes of steps not made are NaN."""
    steps = int(posterior.steps)
    assert np.isnan(posterior.ess_history[steps:]).all()
    for leaf in jax.tree.leaves(posterior.replace(ess_history=posterior.ess_history[:steps])):
        assert not np.isnan(leaf).any()


@pytest.mark.parametrize("algorithm", [po.smc, po.importance])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_support_that_dies_is_evidence_zero(algorithm, at):
    posterior = algorithm(KEY, weighed(jnp.zeros(3).at[at].set(-jnp.inf)), n=5)
    assert posterior.log_evidence == -jnp.inf
    assert int(posterior.invalid) == 0
    assert (posterior.weights == 0).all()
    assert float(posterior.ess) == 0
    assert_no_nan(posterior)
    with pytest.raises(ValueError, match="the evidence is zero"):
        posterior.expect()


def test_a_support_that_is_empty_from_the_start_is_evidence_zero():
    @po.program
    def impossible():
        po.factor("never", -jnp.inf)
        return po.sample("x", dist.Normal(0.0, 1.0))

    posterior = po.smc(KEY, impossible(), n=3)
    assert posterior.log_evidence == -jnp.inf
    assert_no_nan(posterior)


def test_some_dead_particles_leave_the_rest_alone():
    @po.program
    def half():
        x = po.sample("x", dist.Bernoulli(0.5))

        def step(x, _):
            po.factor("f", jnp.where(x == 1, 0.0, -jnp.inf))
            return x

        return po.scan(step, x, length=2)

    posterior = po.smc(KEY, half(), n=100)
    assert float(posterior.prob(lambda x: x == 1)) == pytest.approx(1)
    assert float(jnp.exp(posterior.log_evidence)) == pytest.approx(0.5, abs=0.2)
    assert_no_nan(posterior)


def scanning(step, init=0.0, **options):
    return po.program(lambda: po.scan(step, init, **options))()


def forward(x, _):
    return x + 1


def two_scans():
    return po.scan(forward, po.scan(forward, 0.0, length=1), length=1)


def late_choice():
    x = po.scan(forward, 0.0, length=1)
    return po.sample("late", dist.Normal(x, 1.0))


def twin_sites():
    po.sample("twin", dist.Normal(0.0, 1.0))
    return po.sample("twin", dist.Normal(0.0, 1.0))


def twin_in_the_step():
    return po.scan(lambda x, _: po.sample("twin", dist.Normal(x, 1.0)), po.sample("twin", dist.Normal(0.0, 1.0)), length=2)


WRONG = {
    "no length": (lambda: scanning(forward), ValueError, "scan: give xs .* or length"),
    "negative length": (lambda: scanning(forward, length=-1), ValueError, "scan: length must be at least 0, got -1"),
    "fractional length": (lambda: scanning(forward, length=2.5), ValueError, "scan: length must be a whole number, a static one, got 2.5"),
    "unequal xs": (lambda: scanning(forward, xs=(jnp.ones(2), jnp.ones(3))), ValueError, r"scan: xs and length disagree .* \[2, 3\]"),
    "xs of another length": (lambda: scanning(forward, xs=jnp.ones(2), length=3), ValueError, r"scan: xs and length disagree .* \[2, 3\]"),
    "scalar xs": (lambda: scanning(forward, xs=1.0), ValueError, "scan: xs holds a scalar"),
    "another structure": (lambda: scanning(lambda x, _: (x, x, x), length=2), TypeError, r"\n  carry is missing and carry\[0\], carry\[1\], carry\[2\] is new"),
    "nothing returned": (lambda: scanning(lambda x, _: None, length=2), TypeError, r"must return a carry like .*\n  it returned None"),
    "another shape": (
        lambda: scanning(lambda x, _: jnp.stack([x, x]), length=2),
        TypeError,
        r"carry was float32\[\] and came out of the step as float32\[2\]",
    ),
    "another dtype": (
        lambda: scanning(lambda x, _: x + 0.5, 0, length=2),
        TypeError,
        r"carry was int32\[\] and came out of the step as float32\[\]",
    ),
    "until of a vector": (lambda: scanning(forward, jnp.zeros(2), length=2, until=lambda x: x > 1), ValueError, "until must return one truth value a particle"),
    "two scans": (po.program(two_scans), ValueError, "two_scans: a program has one scan"),
    "a choice after the scan": (po.program(late_choice), ValueError, r"late_choice: sample after scan is not supported \(late\)"),
    "one name twice": (po.program(twin_sites), ValueError, "twin_sites: two sites are called 'twin', at .* and at "),
    "one name before and in the scan": (po.program(twin_in_the_step), ValueError, "twin_in_the_step: two sites are called 'twin', at .* and at "),
    "nothing observed": (po.program(lambda: po.observe("y", dist.Normal(0.0, 1.0), None)), ValueError, r"observe\('y'\): value is None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_program_is_told_what_is_wrong(case):
    program, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        po.smc(KEY, program(), n=2)


def test_an_error_leaves_no_handler_behind():
    with pytest.raises(ValueError, match="one scan"):
        po.smc(KEY, po.program(two_scans)(), n=2)
    assert isinstance(walk(YS), po.Program)  # inside a left-over handler this would run the model
