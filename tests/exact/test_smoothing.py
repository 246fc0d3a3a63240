"""Backward simulation is properly weighted, and conditional SMC with other ancestors invariant: exactly, also where particles remember and end early."""

from functools import cache

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import posterity as po
from posterity.inference.mcmc import particle_gibbs, pmmh
from posterity.inference.mcmc.particle_gibbs import given_program, nothing
from posterity.inference.recorded import Trajectory
from posterity.inference.retraced import Told, go_on
from posterity.inference.smc import backward, conditional
from posterity.inference.smc import paris as module
from posterity.ppl.program import Particles
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def short(start, move, potential):
    """One step of a chain with potentials; its value is the path."""
    x0 = po.sample("x0", dist.Categorical(start))
    po.factor("potential at 0", jnp.log(potential)[0, x0])

    def step(path, _):
        x = po.sample("x", dist.Categorical(move[path[0]]))
        po.factor("potential", jnp.log(potential)[1, x])
        return path.at[1].set(x)

    return po.scan(step, jnp.stack([x0, 0]), length=1)


SHORT = ([0.3, 0.7], [[0.5, 0.5], [0.1, 0.9]], [[1.0, 0.5], [0.25, 2.0]])


@cache
def ffbsi(**options):
    """Trajectories' final values, which are whole paths in these programs."""

    def run(key, program):
        posterior = po.ffbsi(key, program, n=2, draws=1, threshold=1.0, **options)
        return posterior.replace(values=posterior.values.value)

    return run


@cache
def kernel(**options):
    return lambda key, program, particles: conditional.conditional_smc(key, program, particles, **options)


@given(program=finite.stoppings())
@FEW
def test_backward_simulation_is_properly_weighted(laws, program):
    laws.holds("ffbsi, n=2", po.check.properly_weighted(ffbsi(), program))


@pytest.mark.parametrize("ancestors", ["ancestor", "backward"])
@given(program=finite.stoppings())
@settings(FEW, max_examples=4)
def test_conditional_smc_with_other_ancestors_leaves_the_path_law_invariant(laws, ancestors, program):
    laws.holds(f"conditional_smc, {ancestors}", po.check.invariant(kernel(n=2, ancestors=ancestors), po.recorded(po.retraced(program))))


def test_ancestor_sampling_goes_with_systematic_resampling(laws):
    program = po.recorded(po.retraced(short(*arrays(*SHORT))))
    laws.holds("conditional_smc, ancestor, systematic", po.check.invariant(kernel(n=3, ancestors="ancestor", resampling="systematic"), program))


# -- sums over steps ---------------------------------------------------------------------------------------------------------


def meet(x0, move, potential, added, carry):
    """A chain that ends at its first 1, with what `added[t, before, after]` sums to."""

    def step(carry, t):
        x, total = carry
        new = po.sample("x", dist.Categorical(move[x]))
        po.factor("potential", jnp.log(potential)[t + 1, new])
        return new, total + added[t, x, new]

    return po.scan(step, (x0, carry), jnp.arange(len(added)), until=lambda carry: carry[0] == 1)


@po.program
def forgetting(start, move, potential, added):
    return meet(po.sample("x0", dist.Categorical(start)), move, potential, added, 0.0)[0]


@po.program
def in_full(start, move, potential, added):
    """Its evidence is the expected sum."""
    total = meet(po.sample("x0", dist.Categorical(start)), move, potential, added, 0.0)[1]
    po.factor("sum", jnp.log(total))
    return 0


ADDED = jnp.array([[[2.0, 3.0], [5.0, 7.0]], [[11.0, 13.0], [17.0, 19.0]]])


def looked_up(t, before, after):
    return ADDED[t - 1, before, after]


@cache
def paris(**options):
    """The sum's estimated mean as one value's weight."""

    def run(key, program):
        posterior = po.paris(key, program, looked_up, n=2, threshold=1.0, **options)
        mean = jnp.sum(jnp.where(posterior.log_weights > -jnp.inf, jnp.exp(posterior.log_weights) * posterior.values, 0.0))
        return posterior.replace(values=jnp.zeros(1, int), log_weights=jnp.log(mean)[None])

    return run


WAYS = {"all pasts": (2, {"samples": None}), "two drawn pasts": (1, {"samples": 2}), "one by rejection": (2, {"samples": 1, "bound": 0.0, "tries": 1})}


@pytest.mark.parametrize("way", WAYS)
@given(tables=st.tuples(finite.laws(2), finite.tables(2, 2), finite.potentials(3, 2)))
@settings(FEW, max_examples=4)
def test_sums_over_steps_are_properly_weighted(laws, way, tables):
    length, options = WAYS[way]
    tables = [*arrays(*tables), ADDED[:length].astype(float)]
    laws.holds(f"paris, {way}", po.check.properly_weighted(paris(**options), forgetting(*tables), meaning=in_full(*tables)))


# -- particle-independent Metropolis-Hastings ----------------------------------------------------------------------------------


def pimh(key, program, particles):
    return pmmh.move(key, program, particles)[0]


def fresh(program, n):
    return po.nested(nothing.bind(), jax.tree_util.Partial(given_program, program), n=n, threshold=0.0)


def test_pimh_leaves_the_path_law_invariant(laws):
    laws.holds("pimh, n=2", po.check.invariant(pimh, fresh(short(*arrays(*SHORT)), n=2)))


# -- parallel tempering -----------------------------------------------------------------------------------------------------


@po.program
def copies(start, move, potential, exponents):
    """Two paths of `short`, each weighed by its potentials to an exponent of its own."""
    paths = []
    for i in range(2):
        x0 = po.sample(f"x0 {i}", dist.Categorical(start))
        x1 = po.sample(f"x1 {i}", dist.Categorical(move[x0]))
        po.factor(f"potential {i}", exponents[i] * (jnp.log(potential)[0, x0] + jnp.log(potential)[1, x1]))
        paths.append(jnp.stack([x0, x1]))
    return jnp.stack(paths)


def trajectories(program, potential, x0, x1):
    """Those of `short` with these choices [copies]."""
    none = jnp.zeros(x0.shape[0], jnp.int32)
    start = Told(Particles({"x0": x0}, [jnp.stack([x0, 0 * x0], axis=1)], none, none > 0), {"x": none.astype(x1.dtype)}, none)
    end, _, log_potential = go_on(program, start, {"x": x1})
    states = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), start, end)
    return Trajectory(end, states, jnp.stack([jnp.log(potential)[0, x0], log_potential], axis=1), none + 1, none + 1)


def tempered(key, program, particles):
    """The kernel, from and to a particle of `copies`."""
    start, move, potential, exponents = program.leaves
    one = po.recorded(po.retraced(short(start, move, potential)))
    x0, x1 = (jnp.stack([particles.choices[f"{x} {i}"][0] for i in range(2)]) for x in ("x0", "x1"))
    old = trajectories(one.inner, potential, x0, x1)
    new, _ = particle_gibbs.move(key, one, old, exponents, n=2, ancestors="trace", resampling="multinomial")
    path = new.states.now.carry[0][:, -1]
    found = {f"{x} {i}": path[i, t][None] for t, x in enumerate(("x0", "x1")) for i in range(2)}
    return particles.replace(choices=found)


def test_parallel_tempering_leaves_the_product_of_tempered_laws_invariant(laws):
    laws.holds("particle Gibbs, tempered copies", po.check.invariant(tempered, copies(*arrays(*SHORT, [1.0, 0.5]))))


# -- mutants ---------------------------------------------------------------------------------------------------------------


def forgetful(program, live, particles, *_):
    return jnp.zeros(particles.steps.shape)


def test_backward_simulation_that_forgets_the_transition_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(backward, "log_suffix", forgetful)
    laws.fails("ffbsi without the density of transitions", po.check.properly_weighted(lambda *given: ffbsi()(*given), short(*arrays(*SHORT))))


def test_ancestor_sampling_that_forgets_the_density_of_the_rest_is_refuted(laws, monkeypatch):
    monkeypatch.setattr(conditional, "log_suffix", forgetful)
    mutant = lambda *given: kernel(n=2, ancestors="ancestor")(*given)  # noqa: E731
    laws.fails("ancestor sampling without the density of the rest", po.check.invariant(mutant, po.recorded(po.retraced(short(*arrays(*SHORT))))))


def test_sums_that_forget_the_transition_are_refuted(laws, monkeypatch):
    row = module.row
    monkeypatch.setattr(module, "row", lambda step, to: (step.log_weights, row(step, to)[1]))
    tables = [*arrays([0.5, 0.5], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]]), ADDED.astype(float)]
    report = po.check.properly_weighted(lambda *given: paris(samples=None)(*given), forgetting(*tables), meaning=in_full(*tables))
    laws.fails("paris without the density of transitions", report)


def test_pimh_that_forgets_the_present_evidence_is_refuted(laws, monkeypatch):
    accept = pmmh.accept
    monkeypatch.setattr(pmmh, "accept", lambda key, log_new, log_old, log_factor: accept(key, log_new, jnp.zeros_like(log_old), log_factor))
    laws.fails("PIMH without the present evidence", po.check.invariant(lambda *given: pimh(*given), fresh(short(*arrays(*SHORT)), n=1)))


def test_an_exchange_that_forgets_what_is_given_up_is_refuted(laws, monkeypatch):
    accept = particle_gibbs.accept
    monkeypatch.setattr(particle_gibbs, "accept", lambda key, log_new, log_old: accept(key, log_new, jnp.zeros_like(log_old)))
    report = po.check.invariant(lambda *given: tempered(*given), copies(*arrays(*SHORT, [1.0, 0.5])))
    laws.fails("parallel tempering without what is given up", report)
