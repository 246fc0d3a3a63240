"""What `po.exact` and `po.check` say to programs and algorithms that they cannot enumerate."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.ppl.effects import draw
from posterity.tests.fixtures.finite import arrays, markov


@po.program
def bits(length=4, p=0.5):
    def step(path, t):
        return path.at[t].set(po.sample("bit", dist.Bernoulli(p)))

    return po.scan(step, jnp.zeros(length, int), jnp.arange(length))


def test_a_support_that_is_too_large_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"step 4 has 16 branches, 8 states times the sizes of the supports \('bit' 2\); the limit is 10"):
        po.exact(bits(), limit=10)
    assert len(po.exact(bits(), limit=16)) == 16


def test_many_choices_at_once_are_refused_before_anything_is_computed():
    @po.program
    def coins():
        return po.sample("coins", dist.Bernoulli(0.5).expand([60]).to_event(1)).sum()

    with pytest.raises(ValueError, match=r"the beginning has 1.153e\+18 branches"):
        po.exact(coins())


def test_a_continuous_choice_is_named():
    @po.program
    def height():
        return po.sample("height", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'height' has no finite support: Normal"):
        po.exact(height())


@pytest.mark.parametrize("potential", [jnp.nan, jnp.inf])
def test_a_potential_that_is_not_a_number_is_refused(potential):
    @po.program
    def coin():
        po.factor("bad", po.sample("x", dist.Bernoulli(0.5)) * potential)

    with pytest.raises(ValueError, match="a log potential is NaN or"):
        po.exact(coin())


def test_probabilities_that_do_not_sum_to_one_are_refused():
    @po.program
    def loose():
        return po.sample("x", dist.Categorical(probs=jnp.array([0.5, 0.4]), validate_args=False))

    with pytest.raises(ValueError, match="the probabilities of a choice do not sum to one"):
        po.exact(loose())


def test_a_program_that_forbids_everything_has_evidence_zero():
    @po.program
    def impossible():
        po.factor("never", -jnp.inf)
        return po.sample("x", dist.Bernoulli(0.5))

    measure = po.exact(impossible())
    assert measure.log_evidence == -jnp.inf
    assert measure.outcomes() == {}
    with pytest.raises(ValueError, match="the evidence is zero"):
        measure.expect()


def test_what_is_no_program_is_refused():
    with pytest.raises(TypeError, match="program must be a Program"):
        po.exact(lambda: 3)


def test_exact_is_in_double_precision_whatever_the_callers():
    measure = po.exact(bits(3, 0.1))
    assert not jax.config.jax_enable_x64
    assert measure.log_weights.dtype == "float64"
    assert measure.expect(lambda path: path.sum()) == pytest.approx(0.3, abs=1e-7)  # 0.1 came in as a float


def test_an_explicit_32_bit_carry_is_kept():
    @po.program
    def walk():
        return po.scan(lambda x, _: x + po.sample("x", dist.Bernoulli(0.5)), jnp.zeros((), jnp.int32), length=3)

    assert po.exact(walk()).answers()[3].value == pytest.approx(1 / 8, abs=1e-12)


def test_another_program_of_the_same_structure_compiles_nothing():
    def program(p):
        return markov(*arrays([p, 1 - p], [[0.7, 0.3], [0.0, 1.0]], [[1.0, 0.5], [0.2, 3.0], [2.0, 0.1]]))

    def algorithm(key, program):
        return po.importance(key, program, n=1)

    po.check.properly_weighted(algorithm, program(0.5))
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        traced = []
        patch.setattr("posterity.inference.enumeration.branching._Stage", lambda *args: traced.append(args))
        assert po.check.properly_weighted(algorithm, program(0.25))
    assert traced == []


def test_randomness_that_went_past_the_handlers_is_found():
    def cheat(key, program):
        posterior = po.importance(key, program, n=2)
        return posterior.replace(log_evidence=posterior.log_evidence + jax.random.normal(key))

    with pytest.raises(ValueError, match="drawn from a random key directly"):
        po.check.properly_weighted(cheat, bits())


def test_a_kernel_that_moves_mass_is_refuted_and_the_report_says_where():
    def flip(key, program, particles):
        return particles.replace(carry=[1 - leaf for leaf in particles.carry])

    def flip_a_coin(key, program, particles):
        heads = draw(key, "heads", dist.Bernoulli(0.5))
        return particles.replace(carry=[jnp.where(heads, 1 - leaf, leaf) for leaf in particles.carry])

    assert po.check.invariant(flip, bits())
    assert po.check.invariant(flip_a_coin, bits())
    report = po.check.invariant(flip, bits(1, 0.25))
    assert not report
    assert report.error == pytest.approx(0.5)
    assert report.first == ((0,), pytest.approx(0.75), pytest.approx(0.25))
    assert str(report).splitlines() == [
        "invariance: FAILS (2 outcomes, 3 branches, largest error 0.5)",
        "first off: (0,): expected 0.75, found 0.25",
    ]
