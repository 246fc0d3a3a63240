"""Kernels on traces, parallel tempering and annealing keep their laws: exactly, by enumeration; kernels that follow gradients balance in detail."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.enumeration.check import Difference, Report
from posterity.inference.mcmc import metropolis, space, tempered, traces
from posterity.inference.mcmc.tempered import Copies
from posterity.inference.smc.ibis import Parameters
from posterity.ppl.effects import Decider
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import arrays

# b's support hangs on a: 0 can be with both, 1 with the first alone, 2 with the second.
HANGING = ([0.25, 0.75], [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]], [[1.0, 0.25, 2.0], [3.0, 0.5, 1.0]])
STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]], [1.0, 3.0, 0.25])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def moving(kernel):
    return lambda key, program, particles: kernel(key, program, particles)[0]


def hanging():
    return Parameters(finite.static(*arrays(*HANGING)))


def stopping():
    return po.recorded(po.retraced(finite.stopping(*arrays(*STOPPING))))


def copies():
    return Copies(finite.static(*arrays(*HANGING)), jnp.array([1.0, 0.25]))


def exchanging():
    return moving(po.kernels.parallel_tempering(po.kernels.prior(), exponents=(1.0, 0.25)))


def test_a_site_drawn_anew_leaves_the_posterior_invariant(laws):
    laws.holds("kernel: single_site", po.check.invariant(moving(po.kernels.single_site()), hanging()))


@pytest.mark.slow
def test_a_step_drawn_anew_leaves_the_law_of_paths_invariant(laws):
    laws.holds("site_mh", po.check.invariant(moving(traces.site_mh), stopping()))


@pytest.mark.slow
def test_copies_that_exchange_leave_the_product_of_their_laws_invariant(laws):
    laws.holds("parallel_tempering", po.check.invariant(exchanging(), copies()))


@pytest.mark.slow
def test_annealed_importance_sampling_is_properly_weighted(laws):
    def annealed(key, program):
        return po.tempering(key, program, n=1, ladder=jnp.array([0.25, 1.0]), kernel=po.kernels.prior(), moves=1, threshold=0.0)

    laws.holds("annealed importance sampling", po.check.properly_weighted(annealed, finite.static(*arrays(*HANGING))))


# -- mutants ------------------------------------------------------------------------------------------------------------------


def test_sites_that_judge_only_by_the_likelihood_are_refuted(laws, monkeypatch):
    redraw = traces.redraw
    monkeypatch.setattr(traces, "redraw", lambda *given: (redraw(*given)[0], jnp.zeros(())))
    laws.fails("single_site without p'(x) / p(x) of what stays", po.check.invariant(moving(po.kernels.single_site()), hanging()))


@pytest.mark.slow
def test_sites_that_cannot_come_back_are_refuted(laws, monkeypatch):
    redraw = traces.redraw

    def one_way(*given):
        choices, log_factor = redraw(*given)
        return choices, jnp.where(jnp.isneginf(log_factor), 0.0, log_factor)

    monkeypatch.setattr(traces, "redraw", one_way)
    laws.fails("single_site that does not ask for a way back", po.check.invariant(moving(po.kernels.single_site()), hanging()))


@pytest.mark.slow
def test_steps_drawn_anew_without_the_ratio_of_lengths_are_refuted(laws, monkeypatch):
    monkeypatch.setattr(traces, "positions", lambda particles: jnp.ones(particles.steps.shape))
    laws.fails("site_mh without n / n'", po.check.invariant(moving(lambda *given: traces.site_mh(*given)), stopping()))


@pytest.mark.slow
def test_steps_that_stay_without_their_law_are_refuted(laws, monkeypatch):
    monkeypatch.setattr(traces, "_log_laws", lambda program, particles: jnp.zeros((particles.steps.shape[0], program.length)))
    laws.fails("site_mh without p'(x) / p(x) of what stays", po.check.invariant(moving(lambda *given: traces.site_mh(*given)), stopping()))


@pytest.mark.slow
def test_exchanges_that_are_always_made_are_refuted(laws, monkeypatch):
    monkeypatch.setattr(tempered, "exchanged", lambda key, log_likelihood, exponents: jnp.arange(exponents.shape[0])[::-1])
    laws.fails("parallel tempering that always exchanges", po.check.invariant(exchanging(), copies()))


# -- gradients: detailed balance, at some points of a curved target ------------------------------------------------------------------


class Decided(Decider):
    """Decides the noise of a move, refuses it, and notes the probability with which it would be accepted."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.accepted = noise, None

    def __enter__(self):
        super().__enter__()
        return self

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] == "noise":
            msg["value"] = self.noise
        if msg["type"] == "sample" and msg["name"] == "accept":
            self.accepted, msg["value"] = msg["fn"].probs, jnp.ones(msg["fn"].batch_shape, int)


@po.program
def curved(y):
    """Two choices, one positive, with a likelihood that is no Gaussian."""
    scale = po.sample("scale", dist.LogNormal(0.0, 1.0))
    x = po.sample("x", dist.Normal(0.0, scale))
    po.observe("y", dist.StudentT(3.0, x, 0.5), y)
    return x


COVARIANCE, STEP = np.array([[0.5, 0.2], [0.2, 0.8]]), 0.9


def flows(target, points, noise, corrected):
    """Of every point: the flow to where the noise takes it, the flow back by the noise that leads back, and how far from the point that ends."""
    kernel = po.kernels.mala(step=STEP, covariance=COVARIANCE)
    accept = metropolis.accept

    def move(particles, noise):
        with pytest.MonkeyPatch.context() as patch, Decided(noise) as decided:
            patch.setattr(space, "accept", lambda key, new, old, factor: accept(key, new, old, jnp.where(corrected, factor, 0.0)))
            after, _ = kernel(jax.random.key(0), target, particles)
        return after, decided.accepted

    start = target.init(jax.random.key(1), len(points))[0]
    here = target.at(jax.random.key(2), {"scale": points[:, 0], "x": points[:, 1]}, start, None)
    there, forward = move(here, noise)
    without = coordinates(target, move(there, jnp.zeros_like(noise))[0])  # y + drift(y): what is missing to x is the noise
    back = jnp.linalg.solve(STEP * jnp.linalg.cholesky(COVARIANCE), (coordinates(target, here) - without).T).T
    again, backward = move(there, back)
    flow = lambda particles, noise, accepted: jnp.exp(log_target(target, particles) - 0.5 * jnp.sum(noise**2, axis=1)) * accepted  # noqa: E731
    return flow(here, noise, forward), flow(there, back, backward), jnp.max(abs(coordinates(target, again) - coordinates(target, here))), forward


def balance(there, back) -> Report:
    """pi(x) q(y | x) a(x, y) against pi(y) q(x | y) a(y, x), at some points."""
    errors = np.abs(np.asarray(there - back)) / float(jnp.max(there))
    worst = int(errors.argmax())
    off = None if errors.max() <= 1e-10 else Difference(worst, float(there[worst]), float(back[worst]))
    return Report("detailed balance", float(errors.max()), 1e-10, len(errors), 2 * len(errors), off)


def coordinates(target, particles):
    choices = target.choices(particles)
    return jnp.stack([jnp.log(choices["scale"]), choices["x"]], axis=1)


def log_target(target, particles):
    """In coordinates without constraints: log scale, x."""
    choices = target.choices(particles)
    log_prior = dist.LogNormal(0.0, 1.0).log_prob(choices["scale"]) + dist.Normal(0.0, choices["scale"]).log_prob(choices["x"])
    return log_prior + jnp.log(choices["scale"]) + target.log_likelihood(particles)


@pytest.mark.slow
def test_mala_balances_in_detail_and_without_the_ratio_of_proposals_does_not(laws):
    points = jnp.array([[0.3, -1.0], [1.0, 0.5], [2.5, 2.0], [0.7, 1.4]])
    noise = jnp.array([[0.5, -0.3], [-1.0, 0.2], [0.1, 0.9], [1.2, -0.7]])
    run = jax.jit(lambda corrected: flows(Parameters(curved(jnp.array(1.5))), points, noise, corrected))
    there, back, gap, accepted = run(True)
    assert gap < 1e-9
    assert jnp.min(accepted) < 0.99  # something is corrected
    laws.holds("kernel: mala", balance(there, back))
    laws.fails("mala without q(x|y) / q(y|x)", balance(*run(False)[:2]))
