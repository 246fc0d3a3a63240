"""Programs made of programs mean what their docstrings say, exactly: on random finite programs, and under algorithms that step them."""

import collections

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import struct
from hypothesis import given
from hypothesis import strategies as st

import posterity as po
from posterity.inference.smc.lookahead import Pilots
from posterity.inference.smc.temper import Tempered
from posterity.ppl.chunk import Chunked
from posterity.ppl.delay import Delayed
from posterity.ppl.mixture import Mixture
from posterity.ppl.transform import active
from posterity.ppl.twist import Twisted
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays

STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.0], [0.3, 1.5]], [1.0, 3.0, 0.25])
EMITTING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.0, 1.0]])


@po.program
def tour(start, move, potential):
    """Three steps among three states; a particle ends where it comes to 2. Its value is its path, padded with -1."""
    x0 = po.sample("x0", dist.Categorical(start))
    po.factor("potential at 0", jnp.log(potential)[0, x0])

    def step(carry, _):
        path, t = carry
        x = po.sample("x", dist.Categorical(move[path[t]]))
        po.factor("potential", jnp.log(potential)[t + 1, x])
        return path.at[t + 1].set(x), t + 1

    return po.scan(step, (jnp.full(4, -1).at[0].set(x0), 0), length=3, until=lambda carry: carry[0][carry[1]] == 2)[0]


@po.program
def either(weights, starts, moves, potentials):
    """A mixture of two chains, written by hand."""
    i = po.sample("which", dist.Categorical(weights / jnp.sum(weights)))
    po.factor("weights", jnp.log(jnp.sum(weights)))
    return finite.markov(starts[i], moves[i], potentials[i])


def tours():
    return st.tuples(finite.laws(3), finite.tables(3, 3), finite.potentials(4, 3)).map(lambda t: tour(*arrays(*t)))


def a_stopping_one():
    return finite.stopping(*arrays(*STOPPING))


def one_driven_by_data():
    return finite.emitting(*arrays(*EMITTING), jnp.array([1]))


def at_one(path):
    """Whether the path is now at 1."""
    return path[jnp.maximum(jnp.sum(path >= 0) - 1, 0)] == 1


def by_ones(table, path):
    return jnp.log(table)[jnp.minimum(jnp.sum(path == 1), len(table) - 1)]


def psi(*table):
    """A potential-to-go by the number of 1s in the path."""
    return jax.tree_util.Partial(by_ones, jnp.array(table))


TRANSFORMATIONS = {
    "twist": lambda p: po.twist(p, psi(0.5, 2.0, 1.5)),
    "temper": lambda p: po.temper(p, jnp.array([0.25, 1.0])),
    "lookahead, 1 step, 1 pilot": lambda p: po.lookahead(p, steps=1),
    "lookahead, 2 steps, 2 pilots": lambda p: po.lookahead(p, steps=2, pilots=2, floor=-1.0),
    "delay, 1 step": lambda p: po.delay(p, steps=1),
    "delay, 3 steps": lambda p: po.delay(p, steps=3),
    "recorded": po.recorded,
}
COMPOSED = {
    "delay of twist": lambda p: po.delay(po.twist(p, psi(0.5, 2.0)), steps=1),
    "chunk of recorded": lambda p: po.chunk(po.recorded(p), at_one),
    "chunk of lookahead": lambda p: po.chunk(po.lookahead(p, steps=1), at_one),
    "twist of chunk": lambda p: po.twist(po.chunk(p, at_one), psi(0.5, 2.0)),
    "temper of recorded": lambda p: po.temper(po.recorded(p), jnp.array([0.5, 1.0])),
}


def smc_of_two(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


def importance_of_one(key, program):
    return po.importance(key, program, n=1)


@pytest.mark.parametrize("programs", [finite.stoppings, finite.emittings])
@pytest.mark.parametrize("block", TRANSFORMATIONS)
def test_the_meaning_stays(laws, block, programs):
    @given(program=programs())
    @FEW
    def same(program):
        laws.holds(block, po.check.same_meaning(TRANSFORMATIONS[block](program), program))

    same()


@pytest.mark.parametrize("block", TRANSFORMATIONS)
def test_the_meaning_of_a_program_without_steps_stays(laws, block):
    program = finite.static(*arrays([0.25, 0.75], [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], [[1.0, 2.0, 3.0], [0.0, 0.5, 2.0]]))
    laws.holds(block, po.check.same_meaning(TRANSFORMATIONS[block](program), program))


@given(program=tours())
@FEW
def test_chunks_that_end_at_different_times_keep_the_meaning(laws, program):
    laws.holds("chunk", po.check.same_meaning(po.chunk(program, at_one), program))


@pytest.mark.parametrize("block", COMPOSED)
def test_transformations_of_transformations_keep_the_meaning(laws, block):
    laws.holds("composed", po.check.same_meaning(COMPOSED[block](a_stopping_one()), a_stopping_one()))


@pytest.mark.parametrize("block", [*TRANSFORMATIONS, "chunk"])
def test_algorithms_are_properly_weighted_on_them(laws, block):
    program = a_stopping_one()
    transformed = po.chunk(program, at_one) if block == "chunk" else TRANSFORMATIONS[block](program)
    algorithm = importance_of_one if block == "lookahead, 2 steps, 2 pilots" else smc_of_two  # which would have 3e9 branches
    laws.holds(block, po.check.properly_weighted(algorithm, transformed, meaning=program))


@pytest.mark.parametrize("block", ["twist", "temper", "lookahead, 1 step, 1 pilot", "delay, 1 step"])
def test_smc_is_properly_weighted_on_particles_that_data_drive(laws, block):
    program = one_driven_by_data()
    laws.holds(block, po.check.properly_weighted(smc_of_two, TRANSFORMATIONS[block](program), meaning=program))


def test_a_path_that_ends_elsewhere_means_the_tempered_measure(laws):
    start, move, potential = arrays([0.25, 0.75], [[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.5], [0.25, 3.0], [2.0, 0.0]])
    tempered = po.temper(finite.markov(start, move, potential), jnp.array([0.25, 2.0]))
    laws.holds("temper, to another exponent", po.check.same_meaning(tempered, finite.markov(start, move, potential**2)))


MARKOVS = st.tuples(finite.laws(2), finite.tables(2, 2), finite.potentials(3, 2))
WEIGHTS = st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=2, max_size=2)


@given(first=MARKOVS, second=MARKOVS, weights=WEIGHTS)
@FEW
def test_a_mixture_means_the_weighted_sum(laws, first, second, weights):
    a, b, (weights,) = arrays(*first), arrays(*second), arrays(weights)
    by_hand = either(weights, *(jnp.stack(pair) for pair in zip(a, b, strict=True)))
    laws.holds("mixture", po.check.same_meaning(po.mixture([finite.markov(*a), finite.markov(*b)], weights), by_hand))


def a_mixture():
    return po.mixture([finite.stopping(*arrays(*STOPPING)), finite.markov(*arrays(*STOPPING[:3]))], [0.5, 2.0])


def test_programs_of_different_lengths_and_ends_mix():
    masses = collections.Counter()
    for weight, program in zip(a_mixture().weights, a_mixture().programs, strict=True):
        masses.update({path: float(weight) * mass for path, mass in po.exact(program).outcomes().items()})
    assert po.exact(a_mixture()).outcomes() == pytest.approx(dict(masses), abs=1e-12)
    short, long = (finite.emitting(*arrays(*EMITTING), jnp.array(ys)) for ys in ([1], [1, 0]))
    evidence = 0.25 * jnp.exp(po.exact(short).log_evidence) + 0.75 * jnp.exp(po.exact(long).log_evidence)
    assert float(jnp.exp(po.exact(po.mixture([short, long], [0.25, 0.75])).log_evidence)) == pytest.approx(float(evidence), abs=1e-6)


def test_smc_is_properly_weighted_on_a_mixture(laws):
    program = po.mixture([a_stopping_one(), finite.stopping(*arrays(*STOPPING[:3], [1.0, 0.5, 2.0]))], [0.5, 2.0])
    laws.holds("mixture", po.check.properly_weighted(smc_of_two, program))


def test_a_twist_may_forbid_what_has_no_future(laws):
    program = finite.markov(*arrays([0.5, 0.5], [[0.5, 0.5], [0.0, 1.0]], [[1.0, 1.0], [2.0, 0.5], [1.0, 0.0]]))  # 1 is never left, and forbidden at the end
    hopeless = po.twist(program, lambda path: jnp.where((path[1] == 1) & (path[2] == 0), -jnp.inf, 0.3))
    laws.holds("twist, forbidding", po.check.same_meaning(hopeless, program))
    laws.holds("twist, forbidding", po.check.properly_weighted(smc_of_two, hopeless, meaning=program))


# Mutants: what would be off if a line were forgotten.


@struct.dataclass
class NeverPaidBack(Twisted):
    """psi stays in the weights at the end."""

    def _to_go(self, key, particles, last):
        return self.log_psi(key, self.inner, particles, last)


@struct.dataclass
class PaidTwice(Twisted):
    """psi(x_t) without / psi(x_{t-1})."""

    def step(self, key, particles, *, where=None):
        return super().step(key, particles._replace(log_psi=jnp.zeros_like(particles.log_psi)), where=where)


@struct.dataclass
class Floorless(Pilots):
    """What no pilot finds is nothing."""

    def __call__(self, key, program, particles, last):
        log_psi = super().__call__(key, program, particles, last)
        return jnp.where(log_psi == last + self.floor, -jnp.inf, log_psi)


@struct.dataclass
class Dropped(Delayed):
    """What is owed at the end is forgiven."""

    def _pay(self, now, owed, log_potential):
        after, _ = super()._pay(now, owed, log_potential)
        return after, owed[:, 0]


@struct.dataclass
class Unweighted(Mixture):
    """The weights choose the component, and are forgotten."""

    def init(self, key, n):
        particles, log_potential = super().init(key, n)
        return particles, log_potential - jnp.log(jnp.sum(self.weights))


@struct.dataclass
class Climbing(Tempered):
    """Every exponent counts in full, not its rise."""

    def step(self, key, particles, *, where=None):
        after, _ = super().step(key, particles, where=where)
        return after, jnp.where(active(self, particles, where), self.exponents[particles.height] * particles.log_likelihood, 0.0)


@struct.dataclass
class Impatient(Chunked):
    """Of a chunk's potentials only those of its first step count."""

    def step(self, key, particles, *, where=None):
        after, _ = super().step(key, particles, where=where)
        return after, self.inner.step(key, particles, where=where)[1]


MUTANTS = {
    "a twist that is not paid back": (a_stopping_one, lambda p: NeverPaidBack(p, po.twist(p, psi(0.5, 2.0)).log_psi)),
    "a twist that forgets the last one": (a_stopping_one, lambda p: PaidTwice(p, po.twist(p, psi(0.5, 2.0)).log_psi)),
    "a lookahead without a floor": (a_stopping_one, lambda p: Twisted(p, Floorless(-1.0, 1, 1))),
    "a delay that drops what is owed": (a_stopping_one, lambda p: Dropped(p, 2)),
    "a mixture without its weights": (a_mixture, lambda p: Unweighted(p.programs, p.weights)),
    "exponents that count in full": (a_stopping_one, lambda p: Climbing(p, jnp.array([0.25, 1.0]))),
    "a chunk that counts its first step": (lambda: finite.markov(*arrays(*STOPPING[:3])), lambda p: Impatient(p, lambda path: False)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_proof_refutes(laws, mutant):
    program, mutated = MUTANTS[mutant]
    laws.fails(mutant, po.check.same_meaning(mutated(program()), program()))
