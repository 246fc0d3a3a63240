"""Around a draw of the posterior, one over conditional SMC's evidence estimate is unbiased: the law behind bounds from above."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.enumeration.check import Difference, Report
from posterity.inference.enumeration.exact import law_of
from posterity.inference.mcmc import kernels
from posterity.inference.smc import conditional
from posterity.inference.smc.resampling import CONDITIONAL
from posterity.inference.validation.bridge import Bridge, descent
from posterity.inference.validation.evidence import replayed
from posterity.ppl.effects import draw
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import arrays


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def inverse_evidence(run, program):
    """E[1 / Z_hat] beside 1 / Z, as a share of that; `run(args, key)` gives log Z_hat."""
    measure = po.exact(program)
    law = law_of(run, (program, jnp.asarray(measure.values), jnp.asarray(measure.log_weights)))
    found, expected = float(np.exp(law.log_weights - law.values).sum()), float(np.exp(-measure.log_evidence))
    error = abs(found / expected - 1)
    return Report("E[1 / evidence] = 1 / Z", error, 1e-10, 1, law.branches, Difference("1 / evidence", expected, found) if error > 1e-10 else None)


def around(scheme, tilt=1.0):
    """Conditional SMC of two particles around a path of the posterior (raised to the power `tilt`, which no posterior is)."""

    def run(args, key):
        program, paths, log_weights = args
        path_key, run_key = jax.random.split(key)
        path = paths[draw(path_key, "path", dist.CategoricalLogits(tilt * log_weights))]
        trajectory = replayed(program, {"x0": path[:1]}, {"x": path[None, 1:]})
        cloud = conditional.around(run_key, po.recorded(program), trajectory, 2, "trace", CONDITIONAL[scheme])
        return conditional.log_evidence(cloud)

    return run


CHAIN = ([0.3, 0.7], [[0.5, 0.5], [0.1, 0.9]], [[1.0, 0.5], [0.25, 2.0], [3.0, 1.0]])


@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_around_a_draw_of_the_posterior_one_over_the_evidence_is_unbiased(laws, scheme):
    laws.holds(f"conditional SMC, {scheme}, evidence", inverse_evidence(around(scheme), finite.markov(*arrays(*CHAIN))))


def test_around_other_draws_it_is_not(laws):
    laws.fails("conditional SMC around a draw of another law", inverse_evidence(around("multinomial", tilt=2.0), finite.markov(*arrays(*CHAIN))))


@po.program
def tossed(log_likelihood):
    x = po.sample("x", dist.Bernoulli(0.3))
    po.factor("likelihood", log_likelihood[x])
    return x


def down_the_ladder(args, key):
    """The same for a static program, brought down a ladder of two exponents."""
    program, values, log_weights = args
    draw_key, down_key, run_key = jax.random.split(key, 3)
    x = values[draw(draw_key, "x", dist.CategoricalLogits(log_weights))]
    bridge = Bridge(program, 2, jnp.array([0.25, 1.0]), kernels.given(kernels.uniform()), 1)
    path = descent(down_key, bridge, {"x": x})
    return conditional.log_evidence(conditional.around(run_key, po.recorded(bridge), path, 2, "trace", CONDITIONAL["multinomial"]))


def test_a_draw_that_is_brought_down_a_ladder_bounds_it_too(laws):
    laws.holds("annealing backwards, evidence", inverse_evidence(down_the_ladder, tossed(jnp.array([0.5, -1.0]))))
