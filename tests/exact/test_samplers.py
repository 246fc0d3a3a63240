"""SMC samplers are properly weighted and their kernels leave the target invariant: exactly, on random finite static programs."""

from functools import cache

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.distributions import constraints

import posterity as po
from posterity.inference.mcmc import kernels, parameters, space
from posterity.inference.mcmc.paths import Path
from posterity.inference.smc import tempering, waste_free
from posterity.inference.smc.ibis import Parameters
from posterity.ppl.effects import Atomic
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays
from posterity.tests.fixtures.posed import UNTIMED, planted, posed

pytestmark = pytest.mark.slow

FEWER = settings(FEW, max_examples=3)
STATIC = ([0.25, 0.75], [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], [[1.0, 0.25, 2.0], [3.0, 0.5, 1.0]])
LATTICE = jnp.array([0.5, 1.0, 2.0])
LEARNING = ([0.2, 0.5, 0.3], [0.9, 0.5, 0.2])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def learning(prior, rates, ys):
    """A parameter of three values, observed through a coin twice."""
    theta = po.sample("theta", dist.Categorical(prior))

    def step(theta, y):
        po.observe("y", dist.Bernoulli(rates[theta]), y)
        return theta

    return po.scan(step, theta, ys)


def learnings() -> st.SearchStrategy:
    rates = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.875, 1.0]), min_size=3, max_size=3)
    ys = st.lists(st.integers(0, 1), min_size=2, max_size=2)
    return st.tuples(finite.laws(3), rates, ys).map(lambda t: learning(*arrays(*t[:2]), jnp.array(t[2])))


class Masses(dist.Distribution, Atomic):
    """A finite stand-in for a density on positive numbers: masses at 1/2, 1 and 2, spread over cells that are as wide as the numbers are large."""

    support = constraints.positive
    pytree_data_fields = ("masses",)

    def __init__(self, masses, *, validate_args=None):
        self.masses = masses
        super().__init__(batch_shape=(), event_shape=(), validate_args=False)

    def atoms(self):
        return LATTICE, jnp.log(self.masses)

    def sample(self, key, sample_shape=()):
        return LATTICE[dist.Categorical(self.masses).sample(key, sample_shape)]

    def log_prob(self, value):
        at = jnp.isclose(value, LATTICE)
        return jnp.log(jnp.sum(jnp.where(at, self.masses, 0.0))) - jnp.log(value)


class Neighbours(dist.Distribution):
    """One step down or up on the logarithmic lattice, or none."""

    support = constraints.real
    has_enumerate_support = True

    def __init__(self, *, validate_args=None):
        super().__init__(batch_shape=(), event_shape=(), validate_args=False)

    def enumerate_support(self, expand=True):
        return jnp.array([-1.0, 0.0, 1.0])

    def log_prob(self, value):
        return jnp.where(value == 0.0, jnp.log(0.5), jnp.log(0.25))


@po.program
def scale(masses, potentials):
    x = po.sample("x", Masses(masses))
    place = jnp.argmax(jnp.isclose(x, LATTICE))
    po.factor("potential", jnp.log(potentials)[place])
    return place


SCALE = ([0.5, 0.3, 0.2], [1.0, 0.25, 3.0])


def unscaled(wrong, biject_to):
    """Coordinates whose Jacobian is left out."""

    class Flat(type(biject_to(constraints.positive))):
        def log_abs_det_jacobian(self, x, y, intermediates=None):
            return jnp.where(wrong, 0.0, super().log_abs_det_jacobian(x, y, intermediates))

    return lambda support: Flat()


def unproposed(wrong, accept):
    return lambda key, log_new, log_old, log_factor: accept(key, log_new, log_old, jnp.where(wrong, 0.0, log_factor))


def unlikely(wrong, times):
    return lambda log_prior, log_likelihood: times(jnp.where(wrong & (log_prior > -jnp.inf), 0.0, log_prior), log_likelihood)


def present(wrong, accept):
    return lambda key, log_new, log_old: accept(key, log_new, jnp.where(wrong, 0.0, log_old))


KERNELS = {"prior": po.kernels.prior(), "cycle of uniform": po.kernels.cycle(po.kernels.uniform(), po.kernels.uniform("b"))}
MOVES = {
    "prior": (planted(KERNELS["prior"], (kernels, "accept", present)), "prior without the likelihood that is given up"),
    "cycle of uniform": (planted(KERNELS["cycle of uniform"], (kernels, "times", unlikely)), "cycle of uniform without the law of the choices"),
}
ON_THE_LATTICE = {"covariance": jnp.log(2.0).reshape(1, 1) ** 2, "noise": Neighbours()}  # steps are units of the logarithmic lattice
ON_CONSTRAINED = {
    "random_walk": (
        planted(po.kernels.random_walk(**ON_THE_LATTICE), (parameters, "biject_to", unscaled)),
        "random_walk without the Jacobian",
    ),
    "independent": (
        planted(po.kernels.independent(mean=jnp.zeros(1), **ON_THE_LATTICE), (space, "accept", unproposed)),
        "independent without q(x) / q(x')",
    ),
}


@pytest.mark.parametrize("name", MOVES)
@given(program=finite.statics(), exponent=st.sampled_from([1.0, 0.5]))
@FEWER
def test_kernels_leave_the_posterior_invariant(laws, name, program, exponent):
    laws.holds(f"kernel: {name}", po.check.invariant(MOVES[name][0], posed(Path(program, 1), exponent=exponent)))


@pytest.mark.parametrize("name", MOVES)
def test_kernels_that_leave_out_a_factor_are_refuted(laws, name):
    kernel, mutant = MOVES[name]
    laws.fails(mutant, po.check.invariant(kernel, posed(Path(static(), 1), exponent=1.0, fault=1)))


@pytest.mark.parametrize("name", ON_CONSTRAINED)
def test_kernels_on_constrained_choices_leave_the_posterior_invariant(laws, name):
    kernel, mutant = ON_CONSTRAINED[name]
    target = Path(scale(*arrays(*SCALE)), 1)
    for exponent in (1.0, 0.5):
        laws.holds(f"kernel: {name}", po.check.invariant(kernel, posed(target, exponent=exponent)))
    laws.fails(mutant, po.check.invariant(kernel, posed(target, exponent=1.0, fault=1)))


def test_parameters_are_judged_by_as_many_data_as_there_were(laws):
    kernel, target = planted(po.kernels.uniform(), (kernels, "times", unlikely)), Parameters(a_learning())
    laws.holds("kernel: uniform, after 1 of 2 data", po.check.invariant(kernel, posed(target, time=1)))
    laws.holds("kernel: uniform, after all data", po.check.invariant(kernel, posed(target)))
    laws.fails("uniform that is not told the time", po.check.invariant(kernel, posed(target, time=1, fault=UNTIMED)))


@cache
def tempered(n, ladder=(0.25, 1.0)):
    return lambda key, program: po.tempering(key, program, n=n, ladder=ladder and jnp.array(ladder), ess=0.8, stages=3, kernel=KERNELS["prior"], moves=1)


@cache
def ibis(n, waste_free=False):
    return lambda key, program: po.ibis(key, program, n=n, kernel=KERNELS["prior"], moves=1, threshold=0.9, waste_free=waste_free)


@given(program=finite.statics())
@FEWER
def test_tempering_by_a_given_ladder_is_properly_weighted(laws, program):
    laws.holds("tempering", po.check.properly_weighted(tempered(2), program))


@pytest.mark.parametrize("waste_free", [False, True])
@given(program=learnings())
@FEWER
def test_ibis_is_properly_weighted(laws, waste_free, program):
    laws.holds("ibis, waste-free" if waste_free else "ibis", po.check.properly_weighted(ibis(2, waste_free), program))


@given(masses=finite.laws(3), potentials=finite.potentials(3))
@FEWER
def test_waste_free_tempering_is_properly_weighted(laws, masses, potentials):
    """Two chains of two."""
    laws.holds("tempering, waste-free", po.check.properly_weighted(chains_of_two, scale(*arrays(masses, potentials))))


def chains_of_two(key, program):
    return po.tempering(key, program, n=4, ladder=jnp.array([0.25, 1.0]), kernel=KERNELS["prior"], moves=1, waste_free=True)


def fresh(function):
    """Not the function that was traced before something was replaced."""
    return lambda *given: function(*given)


def a_learning():
    return learning(*arrays(*LEARNING), jnp.array([1, 0]))


def static():
    return finite.static(*arrays(*STATIC))


def test_a_ladder_found_on_the_way_is_biased_with_two_particles(laws):
    laws.fails("tempering by a ladder found on the way", po.check.properly_weighted(tempered(2, ladder=None), static()))


def test_moves_for_another_exponent_are_refuted(laws, monkeypatch):
    monkeypatch.setattr(tempering.Path, "log_likelihood", lambda path, particles: particles.log_likelihood)
    laws.fails("tempering whose moves are for exponent 1", po.check.properly_weighted(fresh(tempered(1)), static()))


def test_weights_by_the_exponent_and_not_its_rise_are_refuted(laws, monkeypatch):
    raised = tempering.Path.raised
    monkeypatch.setattr(tempering.Path, "raised", lambda path, p, exponent: (raised(path, p, exponent)[0], exponent * p.log_likelihood))
    laws.fails("tempering that weighs by the whole exponent", po.check.properly_weighted(fresh(tempered(1)), static()))


def test_chains_that_forget_how_many_states_they_have_are_refuted(laws, monkeypatch):
    select = waste_free.select

    def forgets(*given):
        population = select(*given)
        return population.replace(log_weights=population.log_weights + jnp.log(2.0))

    monkeypatch.setattr(waste_free, "select", forgets)
    laws.fails(
        "waste-free that forgets 1 / (moves + 1)",
        po.check.properly_weighted(fresh(ibis(2, waste_free=True)), a_learning()),
    )


def test_moves_that_judge_parameters_by_less_than_all_data_are_refuted(laws, monkeypatch):
    at = Parameters.at
    monkeypatch.setattr(Parameters, "at", lambda program, key, choices, particles, time: at(program, key, choices, particles, 0)._replace(time=particles.time))
    laws.fails("ibis whose moves forget the data", po.check.properly_weighted(fresh(ibis(1)), a_learning()))
