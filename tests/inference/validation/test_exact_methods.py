"""Every method that claims to find exact posteriors passes simulation-based calibration and TARP, on static programs and on state-space programs.

A new method joins by being listed. Keys are fixed; at level 0.999 a method that is right would fail one time in a thousand.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures.references import walk

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
SIMULATIONS = 100


@po.program
def line(x, ys):
    """A line with unknown slope and noise: no conjugate posterior."""
    slope = po.sample("slope", dist.Normal(0.0, 1.0))
    noise = po.sample("noise", dist.LogNormal(-1.0, 0.5))
    po.observe("ys", dist.Normal(slope * x, noise), ys)
    return {"slope": slope, "noise": noise}


@po.program
def rate(counts):
    """A rate seen count by count: its parameter is drawn before the scan, and nothing after."""
    rate = po.sample("rate", dist.Gamma(2.0, 1.0))

    def step(rate, count):
        po.observe("count", dist.Poisson(rate), count)
        return rate

    return po.scan(step, rate, counts)


@po.program
def drifting(ys):
    """A walk with unknown drift: what nested algorithms are for."""
    drift = po.sample("drift", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(x + drift, 0.5))
        po.observe("y", dist.Normal(x, 0.5), y)
        return x

    return {"drift": drift, "last": po.scan(step, 0.0, ys)}


@po.program
def drift_given(ys, drift):
    def step(x, y):
        x = po.sample("x", dist.Normal(x + drift, 0.5))
        po.observe("y", dist.Normal(x, 0.5), y)
        return x

    return po.scan(step, 0.0, ys)


@po.program
def weather(wet):
    today = po.sample("today", dist.Bernoulli(0.3))

    def step(rain, wet):
        rain = po.sample("rain", dist.Bernoulli(jnp.where(rain, 0.6, 0.2)))
        po.observe("grass", dist.Bernoulli(jnp.where(rain, 0.9, 0.1)), wet)
        return rain

    return po.scan(step, today, wet)


def last(posterior):
    """Of trajectories the value at their end."""
    return po.query(posterior, lambda trajectory: trajectory.value)


def nested(posterior):
    return po.query(posterior, lambda draw: {"drift": draw.parameters, "last": draw.value})


def model(data):
    return jax.tree_util.Partial(drift_given, data["y"])


LINE, RATE, WALK, DRIFTING = line(jnp.linspace(-1, 1, 6), jnp.zeros(6)), rate(jnp.zeros(4, int)), walk(jnp.zeros(3)), drifting(jnp.zeros(3))
DRIFT = dist.Normal(0.0, 1.0)
METHODS = {
    "importance": (LINE, lambda key, p: po.importance(key, p, n=5_000)),
    "tempering": (LINE, lambda key, p: po.tempering(key, p, n=1_000)),
    "waste-free tempering": (LINE, lambda key, p: po.tempering(key, p, n=1_200, waste_free=True)),
    "ibis": (RATE, lambda key, p: po.ibis(key, p, n=1_000)),
    "smc": (WALK, lambda key, p: po.smc(key, p, n=1_000)),
    "smc, adapted proposal": (WALK, lambda key, p: po.smc(key, po.lookahead(p, steps=1), n=500)),
    "resample_move": (WALK, lambda key, p: po.resample_move(key, po.recorded(p), n=500)),
    "branching_smc": (WALK, lambda key, p: po.branching_smc(key, p, n=1_000)),
    "islands": (WALK, lambda key, p: po.island_smc(key, p, islands=10, n=100)),
    "ffbsi": (WALK, lambda key, p: last(po.ffbsi(key, p, n=300))),
    "particle_gibbs": (WALK, lambda key, p: last(po.particle_gibbs(key, p, n=20, draws=600, warmup=20))),
    "pimh": (WALK, lambda key, p: po.pimh(key, p, n=50, draws=600, warmup=20)),
    "nested smc2": (DRIFTING, lambda key, data: nested(po.smc2(key, DRIFT, model(data), n=500, inner=30))),
    "pmmh": (DRIFTING, lambda key, data: nested(po.pmmh(key, DRIFT, model(data), n=30, draws=2_000, warmup=100))),
    "svi, weighted": (LINE, lambda key, p: po.svi(key, p, "multivariate", steps=500, draws=2_000).weighted),
    "exact": (weather(jnp.zeros(4, int)), lambda key, p: po.exact(p)),
    "nuts": (LINE, lambda key, p: po.mcmc(key, p, chains=4, draws=250, warmup=500)),
    "slices": (LINE, lambda key, p: po.mcmc(key, p, kernel="slices", chains=4, draws=250, warmup=250)),
    "random walk, tempered copies": (
        LINE,
        lambda key, p: po.mcmc(key, p, kernel=po.kernels.parallel_tempering(po.kernels.random_walk()), chains=8, draws=500, warmup=500),
    ),
    "suffix": (weather(jnp.zeros(4, int)), lambda key, p: po.mcmc(key, p, kernel="suffix", chains=20, draws=100, warmup=50)),
    "conditional filter": (WALK, lambda key, p: po.mcmc(key, p, kernel=po.kernels.conditional_filter(10), chains=4, draws=150, warmup=20)),
}
OF_DATA = ("nested smc2", "pmmh")  # their models are made of data


@pytest.mark.parametrize("name", METHODS)
def test_every_exact_method_passes(name):
    program, method = METHODS[name]
    options = {"bind": lambda data: data} if name in OF_DATA else {}
    report = po.check.calibration(program, method, key=KEY, simulations=SIMULATIONS, level=0.999, **options)
    assert report, report


@pytest.mark.parametrize("fault", ["half as wide", "twice as wide", "shifted", "the prior"])
def test_faults_of_a_posterior_of_two_unlike_parts_are_refused(fault):
    """Planted into the posterior of a line's slope and noise, in the slope alone but for the prior."""

    def method(key, program):
        posterior = po.importance(key, program, n=5_000)
        mean, scale = posterior.expect(lambda v: v["slope"]), {"half as wide": 0.5, "twice as wide": 2.0}.get(fault, 1.0)
        if fault == "the prior":
            return posterior.replace(log_weights=jnp.full(5_000, -jnp.log(5_000)))
        moved = 0.2 if fault == "shifted" else 0.0
        return po.query(posterior, lambda v: {"slope": mean + moved + scale * (v["slope"] - mean), "noise": v["noise"]})

    report = po.check.calibration(LINE, method, key=KEY)
    assert not report, report
