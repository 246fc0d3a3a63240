"""`po.mcmc`: every kernel finds a conjugate posterior, what is compiled once is run again, and what cannot be is said.

A tolerance is five of the chain's own standard errors, false about once in two million; keys are fixed.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po

KEY = jax.random.key(0)
traced = []


@po.program
def rate(counts):
    """Gamma(2 + sum, 1 + n) after Poisson counts: Gamma(18, 4) after 4, 7, 5."""
    traced.append("rate")
    rate = po.sample("rate", dist.Gamma(2.0, 1.0))
    po.observe("counts", dist.Poisson(rate), counts)
    return {"rate": rate}


COUNTS = jnp.array([4.0, 7.0, 5.0])


@po.program
def line(x, y):
    """Linear regression: a Gaussian posterior of two coefficients."""
    w = po.sample("w", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    po.observe("y", dist.Normal(x @ w, 0.5).to_event(1), y)
    return w


X = jnp.array([[1.0, -1.0], [1.0, 0.5], [1.0, 2.0]])
Y = jnp.array([-0.8, 0.9, 1.7])


@po.program
def mixture(y):
    """A label and a place; the label's posterior is Phi-free: the place integrates out to Normal(mean, sqrt 2)."""
    label = po.sample("label", dist.Categorical(jnp.array([0.3, 0.7])))
    x = po.sample("x", dist.Normal(jnp.array([-1.0, 1.0])[label], 1.0))
    po.observe("y", dist.Normal(x, 1.0), y)
    return label


@po.program
def walk(ys):
    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, 0.5), y)
        return x

    return po.scan(step, po.sample("x0", dist.Normal(0.0, 1.0)), ys)


@po.program
def tossed():
    count = po.sample("count", dist.Poisson(3.0))
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.observe("y", dist.Normal(x, 1.0), count * 1.0)
    return x


@po.program
def spiked():
    """The density is finite everywhere, the gradient nowhere."""
    x = po.sample("x", dist.Normal(0.0, 1.0))
    spike = po.sample("spike", dist.Normal(0.0, 1.0))
    po.factor("root", jnp.where(spike > -jnp.inf, 0.0, jnp.sqrt(-jnp.abs(spike))))
    return x


@po.program
def nowhere():
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.factor("nan", x * jnp.nan)
    return x


def sound(chain, f, exact):
    estimate = chain.estimate(f)
    assert abs(estimate.value - exact) < 5 * estimate.error + 1e-6, (estimate, exact)


def test_nuts_finds_the_posterior_and_runs_again_at_once():
    traced.clear()
    run = lambda seed, counts: po.mcmc(jax.random.key(seed), rate(counts), chains=2, draws=400, warmup=200)  # noqa: E731
    chain = run(0, COUNTS)
    sound(chain, lambda value: value["rate"], 4.5)
    sound(chain, lambda value: value["rate"] ** 2, 18 / 16 + 4.5**2)
    assert chain.by_chain(lambda value: value["rate"]).shape == (2, 400)
    assert chain.choices["rate"].shape == chain.statistics["steps"].shape == (800,)
    assert chain.tuned["step_size"].shape == (2,)
    assert 0.6 < chain.acceptance < 0.99
    assert jnp.isnan(chain.log_evidence)
    once = len(traced)
    start = time.perf_counter()
    other = run(1, COUNTS + 10)
    other.values["rate"].block_until_ready()
    assert time.perf_counter() - start < 0.2  # of which the start is a part: 1,200 moves are made as well
    assert len(traced) == once > 0
    sound(other, lambda value: value["rate"], 48 / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: po.mcmc(KEY, walk(jnp.ones(3))), r"has a scan of 3 steps.*po\.particle_gibbs.*po\.pmmh"),
        (lambda: po.mcmc(KEY, walk(jnp.ones(3)), kernel="slices"), "has a scan of 3 steps"),
        (lambda: po.mcmc(KEY, mixture(1.0)), r"nuts moves real choices, and in .* 'label' is discrete \(CategoricalProbs\): po\.kernels\.discrete_gibbs"),
        (lambda: po.mcmc(KEY, tossed()), r"'count' is discrete \(Poisson\): po\.kernels\.single_site"),
        (lambda: po.mcmc(KEY, tossed(), kernel="discrete_gibbs"), r"discrete_gibbs moves finite and real choices, and in .* 'count' is discrete"),
        (lambda: po.mcmc(KEY, rate(COUNTS), kernel="mixed_hmc"), "has none: see nuts"),
        (lambda: po.mcmc(KEY, rate(COUNTS), kernel="gibbs"), r"kernel must be one of nuts, hmc, .*, or made by po\.kernels; got 'gibbs'"),
        (lambda: po.mcmc(KEY, rate(COUNTS), chains=0), "chains must be a whole number of at least 1, got 0"),
        (lambda: po.mcmc(KEY, rate(COUNTS), draws=0), "draws must be a whole number of at least 1, got 0"),
        (lambda: po.mcmc(KEY, rate(COUNTS), warmup=-1), "warmup must be a whole number of at least 0, got -1"),
        (lambda: po.mcmc(KEY, rate(COUNTS), thinning=0), "thinning must be a whole number of at least 1, got 0"),
        (lambda: po.mcmc(KEY, rate(COUNTS), kernel="aies", chains=3), "an even number of chains"),
        (lambda: po.mcmc(KEY, rate(COUNTS), initial={"rates": 1.0}), "has no choice called rates; it has rate"),
        (lambda: po.mcmc(KEY, rate(COUNTS), initial={"rate": jnp.ones(3)}), r"'rate' must have shape \(\), or \(4,\) with a value for each chain, got \(3,\)"),
        (lambda: po.mcmc(KEY, rate(COUNTS), kernel="random_walk", warmup=0), "learns during the warm-up what it was not given"),
        (lambda: po.tempering(KEY, rate(COUNTS), n=4, kernel=po.kernels.nuts()), r"nuts adapts itself over a chain.*po\.mcmc"),
        (lambda: po.tempering(KEY, rate(COUNTS), n=4, kernel=po.kernels.parallel_tempering(po.kernels.prior())), r"parallel_tempering is for po\.mcmc"),
        (lambda: po.kernels.parallel_tempering(po.kernels.prior(), exponents=(0.5, 1.0)), "exponents must fall from 1"),
        (lambda: po.kernels.nuts(target_accept=1.0), "target_accept must lie between 0 and 1"),
        (lambda: po.kernels.mixed_hmc(po.kernels.nuts()), "inner must be po.kernels.hmc"),
        (lambda: po.kernels.hamiltonian(steps=0), "steps must be a whole number of at least 1, got 0"),
        (lambda: po.simulated_annealing(KEY, walk(jnp.ones(3))), "has a scan of 3 steps"),
        (lambda: po.simulated_annealing(KEY, rate(COUNTS), exponents=[1.0, 0.5]), "exponents must rise"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_things_of_the_wrong_kind_are_named():
    with pytest.raises(TypeError, match=r"kernel must be a name or made by po\.kernels, got int"):
        po.mcmc(KEY, rate(COUNTS), kernel=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="mcmc: program must be a Program"):
        po.mcmc(KEY, len)


def normal(x, mean, deviation):
    return np.exp(-0.5 * ((x - mean) / deviation) ** 2)


GAUSSIAN = {
    "hmc": po.kernels.hmc(trajectory_length=1.5),
    "barker": "barker",
    "random walk": "random_walk",
    "mala": "mala",
    "slices": "slices",
    "elliptical": "elliptical",
    "cycle": po.kernels.cycle(po.kernels.slices(width=1.0), po.kernels.independent()),
    "single site": "single_site",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GAUSSIAN)
def test_kernels_for_real_choices_find_a_gaussian_posterior(name):
    precision = np.asarray(X.T @ X) / 0.25 + np.eye(2) / 4
    mean, covariance = np.linalg.solve(precision, np.asarray(X.T @ Y) / 0.25), np.linalg.inv(precision)
    chain = po.mcmc(KEY, line(X, Y), kernel=GAUSSIAN[name], draws=2_000, warmup=500, chains=4)
    for i in range(2):
        sound(chain, lambda w, i=i: w[i], mean[i])
        sound(chain, lambda w, i=i: (w[i] - mean[i]) ** 2, covariance[i, i])
    sound(chain, lambda w: (w[0] - mean[0]) * (w[1] - mean[1]), covariance[0, 1])
    assert 0.02 < chain.acceptance <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["aies", "ess"])
def test_ensembles_find_a_posterior_with_a_constraint(kernel):
    chain = po.mcmc(KEY, rate(COUNTS), kernel=kernel, chains=8, draws=1_000, warmup=300)
    draws = np.asarray(chain.by_chain(lambda value: value["rate"]))
    assert draws.shape == (8, 1_000)
    assert abs(draws.mean() - 4.5) < 0.1  # a hundred and more effective draws would give 0.1; there are over a thousand
    assert abs(draws.var() - 18 / 16) < 0.2


MIXED = {
    "discrete_gibbs": "discrete_gibbs",
    "mixed_hmc": po.kernels.mixed_hmc(po.kernels.hmc(trajectory_length=1.2), updates=2),
    "uniform and slices": po.kernels.cycle(po.kernels.uniform("label"), po.kernels.slices("x", width=2.0)),
    "default": "default",
    "single_site": "single_site",
    "block": po.kernels.block(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXED)
def test_kernels_for_choices_of_both_kinds_find_the_label(name):
    weights = np.array([0.3, 0.7]) * normal(0.4, np.array([-1.0, 1.0]), np.sqrt(2.0))
    chain = po.mcmc(KEY, mixture(0.4), kernel=MIXED[name], draws=2_000, warmup=500)
    sound(chain, lambda label: label * 1.0, weights[1] / weights.sum())


def exact_gibbs(rng_key, gibbs_sites, hmc_sites):
    logits = dist.Normal(jnp.array([-1.0, 1.0]), 1.0).log_prob(hmc_sites["x"]) + jnp.log(jnp.array([0.3, 0.7]))
    return {"label": dist.Categorical(logits=logits).sample(rng_key)}


@pytest.mark.slow
def test_a_gibbs_step_of_ones_own_is_mixed_in():
    weights = np.array([0.3, 0.7]) * normal(0.4, np.array([-1.0, 1.0]), np.sqrt(2.0))
    chain = po.mcmc(KEY, mixture(0.4), kernel=po.kernels.hmc_gibbs(exact_gibbs, "label"), draws=2_000, warmup=300)
    sound(chain, lambda label: label * 1.0, weights[1] / weights.sum())


@pytest.mark.slow
def test_single_site_takes_programs_with_steps():
    exact = po.smc(KEY, walk(jnp.array([1.0, 2.0])), n=100_000)
    chain = po.mcmc(KEY, walk(jnp.array([1.0, 2.0])), kernel="single_site", draws=5_000, warmup=200)
    estimate = chain.estimate()
    assert abs(estimate.value - exact.expect()) < 5 * np.hypot(estimate.error, 0.005)


@po.program
def square(y):
    x = po.sample("x", dist.Normal(0.5, 2.0))
    po.observe("y", dist.Normal(x**2, 0.2), y)
    return x


@pytest.mark.slow
def test_parallel_tempering_crosses_between_modes_that_a_random_walk_does_not():
    grid = np.linspace(-4, 4, 20_001)
    weights = normal(grid, 0.5, 2.0) * normal(grid**2, 4.0, 0.2)
    exact = weights[grid > 0].sum() / weights.sum()
    walk = po.mcmc(KEY, square(4.0), kernel="random_walk", draws=1_000, warmup=500)
    assert all(len(np.unique(row > 0)) == 1 for row in np.asarray(walk.by_chain()))  # no chain ever crosses
    chain = po.mcmc(KEY, square(4.0), kernel=po.kernels.parallel_tempering(po.kernels.random_walk()), draws=4_000, warmup=1_000)
    sound(chain, lambda x: x > 0, exact)
    sound(chain, lambda x: abs(x), (abs(grid) * weights).sum() / weights.sum())


@pytest.mark.slow
def test_annealing_finds_the_higher_of_two_peaks():
    grid = np.linspace(-4, 4, 200_001)
    heights = dist.Normal(0.5, 2.0).log_prob(grid) + dist.Normal(grid**2, 0.2).log_prob(4.0)
    peak = po.simulated_annealing(KEY, square(4.0))
    assert peak.value == pytest.approx(grid[np.argmax(heights)], abs=1e-3)
    assert peak.log_density == pytest.approx(float(np.max(heights)), abs=1e-3)
    assert peak.choices["x"] == peak.value
    assert 8 < peak.found_by <= 64


@pytest.mark.slow
def test_gradient_kernels_move_particles_of_tempering_and_ibis():
    @po.program
    def online(counts):
        value = po.sample("rate", dist.Gamma(2.0, 1.0))

        def step(value, count):
            po.observe("count", dist.Poisson(value), count)
            return value

        return po.scan(step, value, counts)

    runs = [
        po.tempering(KEY, rate(COUNTS), n=500, kernel=po.kernels.hamiltonian(steps=4))["rate"],
        po.tempering(KEY, rate(COUNTS), n=500, kernel=po.kernels.single_site())["rate"],
        po.ibis(KEY, online(COUNTS), n=500, kernel=po.kernels.mala()),
    ]
    for posterior in runs:
        assert posterior.expect() == pytest.approx(4.5, abs=0.3)  # five standard errors of 0.06


@pytest.mark.slow
def test_stretches_and_checkpoints_give_the_same_draws(tmp_path):
    options = {"kernel": "barker", "chains": 2, "draws": 50, "warmup": 50, "thinning": 2}
    whole = po.mcmc(KEY, rate(COUNTS), **options)
    checkpoint = po.Checkpoint(tmp_path, every=40)
    kept = po.mcmc(KEY, rate(COUNTS), progress=True, checkpoint=checkpoint, **options)
    again = po.mcmc(KEY, rate(COUNTS), checkpoint=checkpoint, **options)
    np.testing.assert_allclose(whole.values["rate"], kept.values["rate"], rtol=1e-5)
    np.testing.assert_array_equal(kept.values["rate"], again.values["rate"])
    assert 0 < whole.acceptance < 1  # in the warm-up a proposal overflows, whose density is NaN


@pytest.mark.slow
def test_chains_start_where_they_are_told():
    initial = {"rate": jnp.array([1.0, 2.0])}
    options = {"initial": initial, "chains": 2, "draws": 1, "warmup": 0}
    chain = po.mcmc(KEY, rate(COUNTS), kernel=po.kernels.nuts(step_size=1e-6, max_tree_depth=1), **options)
    np.testing.assert_allclose(chain.values["rate"], [1.0, 2.0], atol=1e-3)
    chain = po.mcmc(KEY, rate(COUNTS), kernel=po.kernels.random_walk(covariance=1e-12 * jnp.eye(1)), **options)
    np.testing.assert_allclose(chain.values["rate"], [1.0, 2.0], atol=1e-3)


@pytest.mark.slow
def test_what_is_wrong_with_a_program_is_said():
    with pytest.raises(ValueError, match=r"found no start in 100 tries.*the density is finite, but its gradient in 'spike' is NaN"):
        po.mcmc(KEY, spiked(), kernel="barker", draws=5, warmup=5)
    with pytest.raises(ValueError, match=r"4 of 4 chains found no start.*the log density was NaN or infinite; give initial="):
        po.mcmc(KEY, nowhere(), kernel="barker", draws=5, warmup=5)
    assert jax.jit(lambda key: po.mcmc(key, nowhere(), kernel="barker", draws=5, warmup=5).log_evidence)(KEY) == -jnp.inf


@pytest.mark.slow
def test_divergences_are_warned_of():
    kernel = po.kernels.hmc(num_steps=3, step_size=1e4)
    with pytest.warns(UserWarning, match=r"<program line>: 40 of 40 draws ended trajectories whose energy was lost"):
        chain = po.mcmc(KEY, line(X, Y), kernel=kernel, draws=20, chains=2, warmup=0)
    assert "divergences=40" in repr(chain)
