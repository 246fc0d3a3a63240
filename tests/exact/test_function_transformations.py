"""Programs rewritten from within mean what their docstrings say, exactly: on random finite programs, against the program or a plain sum."""

import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st

import posterity as po
from posterity.ppl.propose import Propose
from posterity.ppl.region import Rewriting, rewritten
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays, markov_mass, stopping_mass

PROGRAMS = {"markov": finite.markovs, "stopping": finite.stoppings, "emitting": finite.emittings, "static": finite.statics}
CHOICES = {"markov": ("x0", "x"), "stopping": ("x",), "emitting": ("x", "z"), "static": ("a", "b")}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():  # tables in float32 do not sum to one: a density and what is drawn from it would differ by 1e-8
        yield


def by_table(table, *args, **options):
    """A proposal that knows what it was called with: the last state for a step, the program's own start for the initial law."""
    first = args[0][0] if isinstance(args[0], tuple) else args[0]
    return dist.Categorical(table[jnp.where(jnp.max(first) > 0.5, 1, 0)])


def proposals(names, sizes):
    """Positive tables, as leaves."""
    each = [finite.tables(2, sizes[name], zeros=False) for name in names]
    return st.tuples(*each).map(lambda tables: {name: jax.tree_util.Partial(by_table, *arrays(table)) for name, table in zip(names, tables, strict=True)})


def masses(program):
    return po.exact(program).outcomes()


# -- propose, adapt, marginalise: the same meaning ---------------------------------------------------------------------------


@pytest.mark.parametrize("structure", PROGRAMS)
def test_a_proposal_keeps_the_meaning(laws, structure):
    names = CHOICES[structure]
    sizes = {"x0": 2, "x": 2, "z": 2, "a": 2, "b": 3}

    @given(program=PROGRAMS[structure](), proposals=proposals(names, sizes))
    @FEW
    def same(program, proposals):
        laws.holds("propose", po.check.same_meaning(po.propose(program, proposals), program))

    same()


@pytest.mark.parametrize("structure", PROGRAMS)
def test_locally_optimal_proposals_keep_the_meaning(laws, structure):
    @given(program=PROGRAMS[structure]())
    @FEW
    def same(program):
        laws.holds("adapt", po.check.same_meaning(po.adapt(program, *CHOICES[structure]), program))

    same()


@po.program
def crowded(move, table):
    """Potentials before, between and after a step's choices, and one at the end."""

    def step(path, _):
        po.factor("first", jnp.log(table)[0, path[-1]])
        u = po.sample("u", dist.Categorical(move[path[-1]]))
        po.factor("second", jnp.log(table)[1, u])
        x = po.sample("x", dist.Categorical(move[u]))
        po.factor("third", jnp.log(table)[2, x])
        y = po.sample("y", dist.Categorical(move[x]))
        po.factor("fourth", jnp.log(table)[x, y])
        return jnp.concatenate([path[3:], jnp.stack([u, x, y])])

    path = po.scan(step, jnp.zeros(6, int), length=2)
    po.factor("end", jnp.log(table)[0, path[-1]])
    return path


crowds = st.tuples(finite.tables(2, 2), finite.potentials(3, 2)).map(lambda tables: crowded(*arrays(*tables)))


@given(program=crowds)
@FEW
def test_potentials_count_once_wherever_they_stand(laws, program):
    laws.holds("adapt", po.check.same_meaning(po.adapt(program, "x", "y"), program))


def test_an_adapted_proposal_gives_every_particle_the_same_weight_when_that_is_possible():
    program = finite.markov(*arrays([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [[1.0, 1.0], [0.1, 3.0], [2.0, 0.0]]))
    posterior = po.importance(jax.random.key(0), po.adapt(program, "x"), n=50)
    assert float(posterior.ess) == pytest.approx(50)
    assert float(posterior.log_evidence) == pytest.approx(math.log(1.55))


def test_when_every_value_is_forbidden_the_weight_is_zero():
    nothing = po.adapt(finite.markov(*arrays([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])), "x")
    posterior = po.importance(jax.random.key(0), nothing, n=4)
    assert float(posterior.log_evidence) == -math.inf
    assert int(posterior.invalid) == 0
    assert np.isin(posterior.values, [0, 1]).all()


@po.program
def switching(start, move, noise, ys):
    """Noise that switches at every step, and once at the beginning: nothing but potentials hears of it."""
    z0 = po.sample("z0", dist.Categorical(start))
    x0 = po.sample("x0", dist.Categorical(move[0]))
    po.observe("y0", dist.Bernoulli(noise[z0, x0]), 1)

    def step(path, y):
        z = po.sample("z", dist.Categorical(move[path[-1]]))
        x = po.sample("x", dist.Categorical(move[path[-1]]))
        po.factor("before", 0.5 * x)
        w = po.sample("w", dist.Categorical(move[z]))
        po.observe("y", dist.Bernoulli(noise[z * w, x]), y)
        return jnp.concatenate([path[1:], x[None]])

    return po.scan(step, jnp.stack([0, 0, x0]), ys)


switches = st.tuples(finite.laws(2), finite.tables(2, 2), finite.tables(2, 2)).map(lambda tables: switching(*arrays(*tables), jnp.array([1, 0])))


@pytest.mark.parametrize("names", [("w",), ("z0", "z", "w")])
def test_summing_a_choice_out_keeps_the_meaning(laws, names):
    @given(program=switches)
    @FEW
    def same(program):
        laws.holds("marginalise", po.check.same_meaning(po.marginalise(program, *names), program))

    same()


@given(program=switches)
@FEW
def test_transformations_compose(laws, program):
    once = po.propose(po.marginalise(program, "z", "w", "z0"), {"x": dist.Categorical(jnp.array([0.5, 0.5]))})
    laws.holds("adapt(propose(marginalise))", po.check.same_meaning(po.adapt(once, "x", "x0"), program))


def adapted_smc(key, program):
    return po.smc(key, po.adapt(program, "x"), n=2, threshold=1.0)


@given(program=finite.markovs())
@FEW
def test_smc_with_the_locally_optimal_proposal_is_properly_weighted(laws, program):
    laws.holds("smc of adapt", po.check.properly_weighted(adapted_smc, program))


# -- mutants -------------------------------------------------------------------------------------------------------------------


class Forgets(Rewriting):
    def potential(self, msg):
        msg["stop"] = msg["name"].endswith("/evidence")


class UpsideDown(Propose):
    def postprocess_message(self, msg):
        if self._name in self.names:
            self.law, self.proposal = self.proposal, self.law
        super().postprocess_message(msg)


MARKOV = ([0.6, 0.4], [[0.7, 0.3], [0.2, 0.8]], [[1.0, 0.5], [0.2, 3.0], [2.0, 0.1]])
FLAT = {"x": dist.Categorical(jnp.array([0.5, 0.5]))}
MUTANTS = {
    "adapt without its weight": lambda p: rewritten(Forgets, po.adapt(p, "x"), ()),
    "propose weighing by q/p": lambda p: rewritten(UpsideDown, p, FLAT),
    "a proposal that never tries 1": lambda p: po.propose(p, {"x": dist.Categorical(jnp.array([1.0, 0.0]))}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_proof_refutes(laws, mutant):
    program = finite.markov(*arrays(*MARKOV))
    laws.fails(mutant, po.check.same_meaning(MUTANTS[mutant](program), program))


# -- condition, do, lift, product: against plain sums ------------------------------------------------------------------------

markov_tables = st.tuples(finite.laws(2), finite.tables(2, 2), finite.potentials(3, 2))


@given(tables=markov_tables, values=st.tuples(*[st.integers(0, 1)] * 3))
@FEW
def test_conditioning_restricts_the_measure(laws, tables, values):
    program, mass = finite.markov(*arrays(*tables)), markov_mass(*tables)
    a, b, c = values
    laws.holds("condition", po.check.same_meaning(po.condition(program, {"x0": a}), {path: m for path, m in mass.items() if path[0] == a}))
    laws.holds("condition", po.check.same_meaning(po.condition(program, {"x": b}), {path: m for path, m in mass.items() if path[1:] == (b, b)}))
    laws.holds(
        "condition", po.check.same_meaning(po.condition(program, {"x0": a, "x": jnp.array([b, c])}), {path: m for path, m in mass.items() if path == values})
    )


@given(tables=markov_tables, values=st.tuples(*[st.integers(0, 1)] * 3))
@FEW
def test_an_intervention_takes_the_place_of_the_choice(laws, tables, values):
    start, move, g = tables
    program = finite.markov(*arrays(*tables))
    x0, x1, x2 = values
    laws.holds("do", po.check.same_meaning(po.do(program, {"x": jnp.array([x1, x2])}), {(a, x1, x2): start[a] * g[0][a] * g[1][x1] * g[2][x2] for a in (0, 1)}))
    later = {(x0, b, c): g[0][x0] * move[x0][b] * g[1][b] * move[b][c] * g[2][c] for b, c in itertools.product((0, 1), repeat=2)}
    laws.holds("do", po.check.same_meaning(po.do(program, {"x0": x0}), later))


def test_what_would_have_been(laws):
    """A condition outside an intervention sees the choice as it was made: the counterfactual of a copy flipped."""

    @po.program
    def copy():
        x = po.sample("x", dist.Bernoulli(0.25))
        y = po.sample("y", dist.Bernoulli(jnp.where(x, 0.9, 0.2)))
        return x, y

    laws.holds("condition(do)", po.check.same_meaning(po.condition(po.do(copy(), {"x": 0}), {"x": 1}), {(0, 0): 0.25 * 0.8, (0, 1): 0.25 * 0.2}))


@given(prior=finite.laws(2))
@FEW
def test_a_lifted_parameter_is_drawn_once(laws, prior):
    laws.holds(
        "lift",
        po.check.same_meaning(
            po.lift(biased(), {"bias": dist.Categorical(jnp.array(prior))}),
            {path: sum(prior[bias] * math.prod(0.25 + 0.5 * (x == bias) for x in path) for bias in (0, 1)) for path in itertools.product((0, 1), repeat=2)},
        ),
    )


@po.program
def biased():
    """A parameter that only the steps ask for."""

    def step(path, _):
        x = po.sample("x", dist.Bernoulli(0.25 + 0.5 * numpyro.param("bias", 0)))
        return jnp.concatenate([path[1:], x[None]])

    return po.scan(step, jnp.zeros(2, int), length=2)


@given(one=markov_tables, two=markov_tables)
@FEW
def test_a_product_multiplies_densities(laws, one, two):
    p, q = finite.markov(*arrays(*one)), finite.markov(*arrays(*two))
    expected = {path: mass * markov_mass(*two)[path] for path, mass in markov_mass(*one).items()}
    laws.holds("product", po.check.same_meaning(po.product(p, q), expected))
    laws.holds("adapt(product)", po.check.same_meaning(po.adapt(po.product(p, q), "x", "x0"), po.product(p, q)))
    laws.holds("product(adapt, adapt)", po.check.same_meaning(po.product(po.adapt(p, "x"), po.adapt(q, "x", "x0")), po.product(p, q)))


@given(one=st.tuples(finite.laws(2), finite.tables(2, 2), finite.potentials(3, 2), finite.potentials(3)), two=markov_tables)
@FEW
def test_a_product_stops_with_the_first_expert_that_does(laws, one, two):
    """The chain goes on after a 1, but the product does not: the chain's choices until then count, and no later potential."""
    start, move, g = two

    def until_then(a, b, c):
        both = start[a] * g[0][a] * move[a][b] * g[1][b]
        return both if c == -1 else both * move[b][c] * g[2][c]

    expected = {path: mass * until_then(*path) for path, mass in stopping_mass(*one).items()}
    laws.holds("product", po.check.same_meaning(po.product(finite.stopping(*arrays(*one)), finite.markov(*arrays(*two))), expected))


@given(one=finite.statics(), two=finite.statics())
@FEW
def test_a_product_of_programs_without_scan(laws, one, two):
    other = masses(two)
    laws.holds("product", po.check.same_meaning(po.product(one, two), {value: mass * other.get(value, 0.0) for value, mass in masses(one).items()}))


# -- embed -------------------------------------------------------------------------------------------------------------------


@po.program
def nested(start, move, potential):
    """A choice of the chain's table, and an inference for the chain itself."""
    sticky = po.sample("sticky", dist.Bernoulli(0.4))
    chosen = jnp.where(sticky, jnp.eye(2), move)
    return sticky, po.embed("path", po.smc(po.key(), finite.markov.bind(start, chosen, potential), n=2, threshold=1.0))


def test_an_inference_inside_a_program_is_an_unbiased_estimate(laws):
    start, move, potential = MARKOV
    expected = {(0, path): 0.6 * mass for path, mass in markov_mass(start, move, potential).items()}
    expected |= {(1, path): 0.4 * mass for path, mass in markov_mass(start, [[1, 0], [0, 1]], potential).items()}
    laws.holds("embed(smc)", po.check.same_meaning(nested(*arrays(*MARKOV)), expected))


STATIC = ([0.3, 0.7], [[0.5, 0.25, 0.25], [0.0, 0.4, 0.6]], [[1.0, 2.0, 0.5], [3.0, 0.0, 1.0]])


@po.program
def goes_on(p, q, potential):
    """Steps after an inference, which replay it: what it gave must stay."""
    pair = po.embed("pair", po.importance(po.key(), finite.static.bind(p, q, potential), n=2))

    def step(ups, _):
        return ups + po.sample("up", dist.Categorical(q[pair[0], :2] / jnp.sum(q[pair[0], :2])))

    return pair, po.scan(step, 0, length=2)


def test_steps_after_an_embedded_inference_keep_its_value(laws):
    p, q, potential = STATIC
    expected = {}
    for a, b, *steps in itertools.product(range(2), range(3), range(2), range(2)):
        key = ((a, b), sum(steps))
        up = [x / sum(q[a][:2]) for x in q[a][:2]]
        expected[key] = expected.get(key, 0.0) + p[a] * q[a][b] * potential[a][b] * math.prod(up[x] for x in steps)
    laws.holds("embed(importance)", po.check.same_meaning(goes_on(*arrays(*STATIC)), expected))
    posterior = po.smc(jax.random.key(0), goes_on(*arrays(*STATIC)), n=100)
    np.testing.assert_array_equal(posterior["pair"].values, posterior.values[0])


@po.program
def again(posterior):
    return po.embed("path", posterior)


def test_a_posterior_is_an_initial_law(laws):
    posterior = po.smc(jax.random.key(0), finite.markov(*arrays(*MARKOV)), n=16)
    expected = {path: math.exp(posterior.log_evidence) * share.value for path, share in posterior.answers().items()}
    laws.holds("embed, a posterior", po.check.same_meaning(again(posterior), expected))


def test_populations_that_are_not_normalised_are_embedded_with_all_their_mass(laws):
    @po.program
    def program():
        weights = jnp.array([1.0, 0.5, 0.25])
        return po.embed("x", SimpleNamespace(values={"a": jnp.array([1, 2, 2])}, log_weights=jnp.log(weights), log_evidence=jnp.log(2.0)))["a"]

    laws.holds("embed, a population", po.check.same_meaning(program(), {1: 2.0, 2: 1.5}))


def test_an_exact_measure_is_an_initial_law(laws):
    exact = po.exact(finite.static(*arrays(*STATIC)))

    @po.program
    def program():
        return po.embed("pair", exact)

    laws.holds("embed, a measure", po.check.same_meaning(program(), exact.outcomes()))
