"""Kernels on traces, parallel tempering and annealing keep their laws: exactly, by enumeration; kernels that follow gradients balance in detail."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.enumeration.check import Difference, Report
from posterity.inference.mcmc import metropolis, space, tempered, traces
from posterity.inference.mcmc.annealing import Cooling
from posterity.inference.mcmc.paths import Path
from posterity.inference.mcmc.tempered import Copies
from posterity.inference.smc.ibis import Parameters
from posterity.ppl.effects import Decider
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import arrays
from posterity.tests.fixtures.posed import UNTIMED, planted, posed

# b's support hangs on a: 0 can be with both, 1 with the first alone, 2 with the second.
HANGING = ([0.25, 0.75], [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]], [[1.0, 0.25, 2.0], [3.0, 0.5, 1.0]])
STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]], [1.0, 3.0, 0.25])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def hanging():
    return finite.static(*arrays(*HANGING))


@po.program
def three(first, second, third, potential):
    """Three choices, of which each says what the next one can be."""
    a = po.sample("a", dist.Categorical(first))
    b = po.sample("b", dist.Categorical(second[a]))
    c = po.sample("c", dist.Categorical(third[b]))
    po.factor("potential", jnp.log(potential)[a, c])
    return jnp.stack([a, b, c])


def stopping():
    return po.recorded(po.retraced(finite.stopping(*arrays(*STOPPING))))


def copies():
    return Copies(finite.static(*arrays(*HANGING)), jnp.array([1.0, 0.25]))


def unjudged(wrong, redraw):
    def mutant(*given):
        choices, log_factor = redraw(*given)
        return choices, jnp.where(wrong & ~jnp.isneginf(log_factor), 0.0, log_factor)

    return mutant


def one_way(wrong, redraw):
    def mutant(*given):
        choices, log_factor = redraw(*given)
        return choices, jnp.where(wrong & jnp.isneginf(log_factor), 0.0, log_factor)

    return mutant


def on_traces(kernel):
    return planted(kernel, (traces, "redraw", unjudged), (traces, "redraw", one_way))


def test_a_site_drawn_anew_leaves_powers_of_the_likelihood_invariant(laws):
    kernel, target = on_traces(po.kernels.single_site()), Path(hanging(), 1)
    for exponent in (1.0, 0.5):
        laws.holds("kernel: single_site", po.check.invariant(kernel, posed(target, exponent=exponent)))
    laws.fails("single_site without p'(x) / p(x) of what stays", po.check.invariant(kernel, posed(target, exponent=1.0, fault=1)))
    laws.fails("single_site that does not ask for a way back", po.check.invariant(kernel, posed(target, exponent=1.0, fault=2)))


def test_a_block_drawn_anew_leaves_powers_of_the_density_invariant(laws):
    """Those are what simulated annealing goes through."""
    third = [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]
    kernel, target = on_traces(po.kernels.block("a", "b")), Cooling(three(*arrays(*HANGING[:2], third, [[1.0, 2.0], [0.5, 3.0]])))
    for exponent in (1.0, 2.5):
        laws.holds("kernel: block", po.check.invariant(kernel, posed(target, exponent=exponent)))
    laws.fails("block without p'(x) / p(x) of what stays", po.check.invariant(kernel, posed(target, exponent=1.0, fault=1)))
    laws.fails("block that does not ask for a way back", po.check.invariant(kernel, posed(target, exponent=1.0, fault=2)))


def none(wrong, positions):
    return lambda particles: jnp.where(wrong, 1.0, positions(particles))


def unweighed(wrong, log_laws):
    return lambda *given: jnp.where(wrong, 0.0, log_laws(*given))


@pytest.mark.slow
def test_a_step_drawn_anew_leaves_the_law_of_paths_invariant(laws):
    kernel = planted(lambda *given, **time: traces.site_mh(*given, **time), (traces, "positions", none), (traces, "_log_laws", unweighed))
    laws.holds("site_mh", po.check.invariant(kernel, posed(stopping())))
    laws.holds("site_mh, after 1 of 2 steps", po.check.invariant(kernel, posed(stopping(), time=1)))
    laws.fails("site_mh that is not told the time", po.check.invariant(kernel, posed(stopping(), time=1, fault=UNTIMED)))
    laws.fails("site_mh without n / n'", po.check.invariant(kernel, posed(stopping(), fault=1)))
    laws.fails("site_mh without p'(x) / p(x) of what stays", po.check.invariant(kernel, posed(stopping(), fault=2)))


def always(wrong, exchanged):
    return lambda key, log_likelihood, exponents: jnp.where(wrong, jnp.arange(exponents.shape[0])[::-1], exchanged(key, log_likelihood, exponents))


@pytest.mark.slow
def test_copies_that_exchange_leave_the_product_of_their_laws_invariant(laws):
    kernel = planted(po.kernels.parallel_tempering(po.kernels.prior(), exponents=(1.0, 0.25)), (tempered, "exchanged", always))
    laws.holds("parallel_tempering", po.check.invariant(kernel, posed(copies())))
    laws.fails("parallel tempering that always exchanges", po.check.invariant(kernel, posed(copies(), fault=1)))


@pytest.mark.slow
def test_annealed_importance_sampling_is_properly_weighted(laws):
    def annealed(key, program):
        return po.tempering(key, program, n=1, ladder=jnp.array([0.25, 1.0]), kernel=po.kernels.prior(), moves=1, threshold=0.0)

    laws.holds("annealed importance sampling", po.check.properly_weighted(annealed, hanging()))


# -- gradients: detailed balance, at some points of a curved target ------------------------------------------------------------------


class Decided(Decider):
    """Decides the noise of a move, takes it, and notes the probability with which it would be accepted."""

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


COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.8]])
FOLLOWING = {
    "mala": (po.kernels.mala(step=0.9, covariance=COVARIANCE), 0.9),
    "hamiltonian": (po.kernels.hamiltonian(steps=3, step=0.3, covariance=COVARIANCE), 0.9),
}


def flows(name, target, x, noise, corrected):
    """Of every point: the flow to where the noise takes it, the flow back by the noise that leads back, and how far from the point that ends."""
    kernel, far = FOLLOWING[name]
    accept, start = metropolis.accept, target.init(jax.random.key(1), len(x))[0]

    def at(x):
        return target.at(jax.random.key(2), {"scale": jnp.exp(x[:, 0]), "x": x[:, 1]}, start, None)

    def moved(x, noise):
        """Where the noise takes each point, with which probability it is accepted, and the slope of the former in the noise."""

        def move(noise):
            with pytest.MonkeyPatch.context() as patch, Decided(noise) as decided:
                patch.setattr(space, "accept", lambda key, new, old, factor: accept(key, new, old, jnp.where(corrected, factor, 0.0)))
                after, _ = kernel(jax.random.key(0), target, at(x))
            return coordinates(target, after), decided.accepted

        along = lambda axis: jax.jvp(move, (noise,), (jnp.broadcast_to(axis, noise.shape),))  # noqa: E731
        (end, accepted), (slope, _) = jax.vmap(along, out_axes=(None, -1))(jnp.eye(2))
        return end, accepted, slope

    def closer(_, back):
        end, _, slope = moved(y, back)
        return back + jnp.linalg.solve(slope, (x - end)[:, :, None])[:, :, 0]

    def flow(x, noise, accepted, slope):
        return jnp.exp(log_target(target, at(x)) - 0.5 * jnp.sum(noise**2, axis=1) - jnp.linalg.slogdet(slope)[1]) * accepted

    y, forward, slope = moved(x, noise)
    straight = jnp.linalg.solve(far * jnp.linalg.cholesky(COVARIANCE), (x - y).T).T
    back = jax.lax.fori_loop(0, 12, closer, straight)  # Newton's method
    again, backward, slope_back = moved(y, back)
    return flow(x, noise, forward, slope), flow(y, back, backward, slope_back), jnp.max(abs(again - x)), forward


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
@pytest.mark.parametrize(("name", "factor"), [("mala", "q(x|y) / q(y|x)"), ("hamiltonian", "the energy of the motion")])
def test_what_follows_gradients_balances_in_detail_and_without_its_factor_does_not(laws, name, factor):
    points = jnp.array([[-1.2, -1.0], [0.0, 0.5], [0.9, 2.0], [-0.4, 1.4]])
    noise = jnp.array([[0.5, -0.3], [-1.0, 0.2], [0.1, 0.9], [1.2, -0.7]])
    run = jax.jit(lambda corrected: flows(name, Parameters(curved(jnp.array(1.5))), points, noise, corrected))
    there, back, gap, accepted = run(True)
    assert gap < 1e-9
    assert jnp.min(accepted) < 0.99  # something is corrected
    laws.holds(f"kernel: {name}", balance(there, back))
    laws.fails(f"{name} without {factor}", balance(*run(False)[:2]))
