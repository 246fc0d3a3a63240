"""Every resampling scheme: its expected copies, how even they are, and its conditional law, which is the one that conditional SMC needs.

That SMC with each of them is properly weighted is shown with that of the other blocks and of SMC.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import posterity as po
from posterity.inference.smc import resampling
from posterity.inference.smc.resampling import CONDITIONAL, SCHEMES, Ancestors, Killing, Srinivasan, Systematic
from posterity.inference.smc.resampling.conditional import ConditionalKilling, ConditionalSystematic
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW, arrays

STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]], [1.0, 3.0, 0.25])
MARKOV = ([0.6, 0.4], [[0.7, 0.3], [0.0, 1.0]], [[1.0, 0.5], [0.2, 3.0], [2.0, 0.1]])
MANY = settings(FEW, max_examples=25)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def weights(n: int) -> st.SearchStrategy:
    """Weights from 1e-12 to 100, some of them equal and some zero, but not all."""
    each = st.one_of(st.just(0.0), st.sampled_from([1.0, 0.25, 2.0]), st.floats(1e-12, 100.0))
    return st.lists(each, min_size=n, max_size=n).filter(any).map(np.array)


@cache
def atoms(law: type[Ancestors]):
    return jax.jit(lambda weights: law(jnp.log(weights))._atoms())


def copies(law: type[Ancestors], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each particle is copied [outcomes, n], and with which probabilities."""
    vectors, probabilities = map(np.asarray, atoms(law)(weights))
    return (vectors[:, :, None] == np.arange(len(weights))).sum(axis=1), probabilities


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_expected_number_of_copies_is_n_times_the_weight(name, n):
    @given(weights(n))
    @MANY
    def unbiased(weights):
        counts, probabilities = copies(SCHEMES[name], weights)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(probabilities @ counts, n * weights / weights.sum(), rtol=0, atol=1e-12)
        assert not counts[:, weights == 0][probabilities > 0].any()

    unbiased()


@pytest.mark.parametrize("name", ["systematic", "ssp"])
def test_the_most_even_schemes_round_every_quota_up_or_down(name):
    @given(weights(4))
    @MANY
    def even(weights):
        counts, probabilities = copies(SCHEMES[name], weights)
        assert (np.abs(counts - 4 * weights / weights.sum()) < 1)[probabilities > 0].all()

    even()


@given(weights(3))
@MANY
def test_residual_resampling_never_rounds_below(weights):
    counts, probabilities = copies(SCHEMES["residual"], weights)
    assert (counts > 3 * weights / weights.sum() - 1)[probabilities > 0].all()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_copies_of_ssp_resampling_are_negatively_correlated(n):
    @given(weights(n))
    @MANY
    def negative(weights):
        counts, probabilities = copies(Srinivasan, weights)
        centred = counts - probabilities @ counts
        covariance = np.einsum("k,ki,kj->ij", probabilities, centred, centred)
        assert (covariance - np.diag(np.diag(covariance)) < 1e-12).all()

    negative()


@cache
def smc(scheme, n):
    return lambda key, program: po.smc(key, program, n=n, threshold=1.0, resampling=scheme)


class Swapped(Srinivasan):
    """SSP resampling with the classic slip: the odds of the two that meet are swapped."""

    def _atoms(self):
        vectors, probabilities = super()._atoms()
        return vectors, probabilities[::-1]


class NearestWhole(Ancestors):
    """No resampling scheme: every quota is rounded, what is missing goes to the last."""

    def _atoms(self):
        whole = jnp.round(self.size * jnp.exp(jax.nn.log_softmax(self.log_weights))).astype(jnp.int32)
        return resampling.schemes.repeated(whole)[None].clip(0, self.size - 1), jnp.ones(1)


@pytest.mark.parametrize("mutant", [Swapped, NearestWhole])
def test_the_proof_refutes(laws, mutant):
    laws.fails(f"resampling: {mutant.__name__}", po.check.properly_weighted(smc(mutant, 2), finite.markov(*arrays(*MARKOV))))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_counts_are_those_of_the_scheme_weighed_by_the_copies_of_particle_0(name, n):
    @given(weights(n).filter(lambda weights: weights[0] > 0.01))
    @MANY
    def conditional(weights):
        expected, found = {}, {}
        for turn in range(n):  # for schemes that depend on the order: the particles rotated at random
            counts, probabilities = copies(SCHEMES[name], np.roll(weights, turn))
            for count, probability in zip(np.roll(counts, -turn, axis=1), probabilities):
                expected[tuple(count)] = expected.get(tuple(count), 0) + probability * count[0] / n
        vectors, _ = atoms(CONDITIONAL[name])(weights)
        counts, probabilities = copies(CONDITIONAL[name], weights)
        assert not np.asarray(vectors)[:, 0].any()
        for count, probability in zip(counts, probabilities):
            found[tuple(count)] = found.get(tuple(count), 0) + probability
        total = sum(expected.values())
        assert total == pytest.approx(n * weights[0] / weights.sum())
        for count in expected.keys() | found.keys():
            assert found.get(count, 0) == pytest.approx(expected.get(count, 0) / total, abs=1e-11)

    conditional()


def conditional_smc(scheme: type[Ancestors], n: int):
    return lambda key, program, particles: po.conditional_smc(key, program, particles, n=n, resampling=scheme)


@po.program
def once(start, move, potential):
    """One step of a chain of two states, with potentials before and after it."""
    x0 = po.sample("x0", dist.Categorical(start))
    po.factor("potential at 0", jnp.log(potential)[0, x0])

    def step(path, _):
        x = po.sample("x", dist.Categorical(move[path[0]]))
        po.factor("potential", jnp.log(potential)[1, x])
        return path.at[1].set(x)

    return po.scan(step, jnp.stack([x0, 0]), length=1)


# Two steps, which may end early, with two particles; one step with three.
PATHS = {2: finite.stopping(*arrays(*STOPPING)), 3: once(*arrays([0.6, 0.4], [[0.7, 0.3], [0.1, 0.9]], [[1.0, 0.4], [0.2, 3.0]]))}


@pytest.mark.parametrize(("name", "n"), [*((name, 2) for name in CONDITIONAL), ("systematic", 3)])
def test_conditional_smc_with_it_leaves_the_path_law_invariant(laws, name, n):
    laws.holds(f"conditional SMC, {name}", po.check.invariant(conditional_smc(CONDITIONAL[name], n), po.recorded(PATHS[n])))


class Overwritten(ConditionalSystematic):
    """Systematic resampling, and then particle 0 put into slot 0: not the conditional law."""

    scheme: type[Ancestors] = Systematic

    def _atoms(self):
        vectors, probabilities = self.scheme(self.log_weights)._atoms()
        return vectors.at[:, 0].set(0), probabilities


class OverwrittenSSP(Overwritten):
    scheme = Srinivasan


class Unmoved(ConditionalKilling):
    """Killing resampling in which particle 0 is said to stay, and the others do as they would: its copy may as well have been redrawn."""

    def _atoms(self):
        vectors, probabilities = Killing(self.log_weights)._atoms()
        return vectors, jnp.where(vectors[:, 0] == 0, probabilities, 0.0) / jnp.sum(probabilities, where=vectors[:, 0] == 0)


@pytest.mark.parametrize(("mutant", "n"), [(Overwritten, 3), (OverwrittenSSP, 2), (Unmoved, 2)])
def test_resampling_that_merely_keeps_particle_0_in_slot_0_is_refuted(laws, mutant, n):
    laws.fails(f"conditional SMC, slot 0 merely kept: {mutant.__name__}", po.check.invariant(conditional_smc(mutant, n), po.recorded(PATHS[n])))
