"""What a program is made of, and what one execution did, as data and as tables."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures import tiny_lm
from posterity.tests.fixtures.references import walk

KEY = jax.random.key(0)


@po.program
def mixed(ys, scale):
    """Sites of every kind, before the scan, in it and after it."""
    rate = po.sample("rate", dist.Gamma(2.0, scale))
    with numpyro.plate("rows", 3):
        po.sample("w", dist.Uniform(0.0, 2.0))

    def step(carry, y):
        k = po.sample("k", dist.Categorical(jnp.ones(3) / 3))
        x = po.sample("x", dist.Normal(carry["x"], 1.0).to_event(1))
        po.observe("y", dist.Poisson(rate), y["count"])
        po.factor("smooth", -jnp.sum(x**2))
        return {"n": carry["n"] + k, "x": x}

    last = po.scan(step, {"n": 0, "x": jnp.zeros(2)}, ys)
    po.factor("even", jnp.where(last["n"] % 2 == 0, 0.0, -1.0))
    return last, rate


MIXED = mixed({"count": jnp.array([1, 2, 3])}, 1.0)


def test_a_description_lists_the_sites_where_they_are_met():
    described = MIXED.describe()
    assert [site[:6] for site in described.sites] == [
        ("rate", "initial law", "choice", "Gamma", "positive", "float32"),
        ("rows", "initial law", "plate", "", "", "int32[3]"),
        ("w", "initial law", "choice", "Uniform", "[0, 2]", "float32[3]"),
        ("k", "step", "choice", "Categorical", "0..2", "int32"),
        ("x", "step", "choice", "Normal", "real", "float32[2]"),
        ("y", "step", "observed", "Poisson", "integer nonnegative", "int32"),
        ("smooth", "step", "factor", "", "", "float32"),
        ("even", "end", "factor", "", "", "float32"),
    ]
    with open(__file__) as file:
        (line,) = [number for number, text in enumerate(file, 1) if text.startswith('    rate = po.sample("rate"')]
    assert described.sites[0].line == f"test_describe.py:{line}"


def test_a_description_shows_what_is_carried_given_and_returned():
    described = MIXED.describe()
    assert described.length == 3
    assert described.carry == [("['n']", "int32"), ("['x']", "float32[2]")]
    assert described.inputs == [("['count']", "int32")]
    assert described.value == [("[0]['n']", "int32"), ("[0]['x']", "float32[2]"), ("[1]", "float32")]


def test_a_description_prints_as_a_table():
    lines = repr(po.describe(walk(jnp.zeros(4)))).splitlines()
    assert lines[0] == "program walk, 4 steps"
    assert lines[1].split() == ["name", "part", "kind", "law", "support", "a", "value", "line"]
    assert lines[3].split()[:7] == ["x0", "initial", "law", "choice", "Normal", "real", "float32"]
    assert lines[-3:] == [" carry   float32", " inputs  float32", " value   float32"]


def test_a_description_costs_no_computation():
    @po.program
    def huge(x):
        return po.scan(lambda x, _: x @ x, x @ x, length=10**6)

    shape = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)  # four terabytes
    described = []
    jax.eval_shape(lambda x: described.append(huge(x).describe()), shape)
    assert described[0].carry == [("", "float32[1000000, 1000000]")]


def test_a_program_without_scan_and_a_definition_are_described_too():
    @po.program
    def coin():
        return {"p": po.sample("p", dist.Beta(1.0, 1.0))}

    described = po.describe(coin)
    assert repr(described).startswith("program coin, no steps\n")
    assert (described.carry, described.value) == ([], [("['p']", "float32")])
    assert described.sites[0].support == "unit interval"


def test_a_transformed_program_shows_what_it_is_made_from():
    described = po.describe(po.chunk(coins(), until=even))
    assert described.name == "<program coins> in chunks until even"
    assert [inner.name for inner in described.inner] == ["program coins"]
    assert "made from program coins, 4 steps" in repr(described)
    assert [inner.name for inner in po.describe(po.mixture([coins(), coins()])).inner] == ["program coins", "program coins"]
    assert [(site.name, site.kind, site.support) for site in po.describe(po.adapt(coins(), "x")).sites] == [
        ("x/evidence", "factor", ""),
        ("x", "choice", "finite"),
        ("even", "factor", ""),
    ]


def test_a_trace_shows_the_replayed_initial_law_once():
    @po.program
    def begun():
        return po.scan(lambda x, _: po.sample("x", dist.Normal(x, 1.0)), po.sample("x0", dist.Normal(0.0, 1.0)), length=2)

    execution = po.trace(KEY, po.chunk(begun(), until=lambda x: x > 5))
    assert [(event.step, event.name) for event in execution.sites] == [(0, "x0"), (1, "x"), (1, "x")]


@pytest.mark.parametrize("show", [po.describe, lambda x: po.trace(KEY, x)])
def test_only_programs_can_be_shown(show):
    with pytest.raises(TypeError, match=r"decorated with @po.program.*got function"):
        show(walk.function)


def even(n):
    return n % 2 == 0


@po.program
def coins():
    def step(n, _):
        x = po.sample("x", dist.Bernoulli(0.5))
        po.factor("dear", -1.0 * x)
        return n + x

    n = po.scan(step, 0, length=4)
    po.factor("even", jnp.where(even(n), 0.0, -0.25))
    return n


@pytest.mark.parametrize("program", [coins(), po.chunk(coins(), until=even)], ids=["coins", "coins in chunks"])
def test_a_trace_is_an_execution_that_the_program_weighs_so(program):
    """Of `coins` the value tells the choices' number of ones, and that the weight."""
    executions = [po.trace(key, program) for key in jax.random.split(KEY, 4)]
    for execution in executions:
        ones = int(sum(event.value for event in execution.sites if event.kind == "choice"))
        assert execution.value == ones
        assert execution.log_weight == pytest.approx(-ones - (0.0 if ones % 2 == 0 else 0.25), abs=1e-5)
    assert len({int(execution.value) for execution in executions}) > 1
    assert po.trace(jax.random.split(KEY, 4)[0], program).log_weight == executions[0].log_weight


def test_the_potentials_of_a_trace_add_up_step_by_step():
    execution = po.trace(KEY, MIXED)
    assert len(execution.log_potentials) == 4
    for step, potential in enumerate(execution.log_potentials):
        weighing = [event.log_prob for event in execution.sites if event.step == step and event.kind in ("observed", "factor")]
        assert sum(weighing) == pytest.approx(potential, abs=1e-5)
    assert [event.name for event in execution.sites if event.step == 3] == ["k", "x", "y", "smooth", "even"]  # the end weighs in the last step
    first = execution.sites[0]
    assert first.log_prob == pytest.approx(float(dist.Gamma(2.0, 1.0).log_prob(first.value)), abs=1e-5)


def test_a_trace_ends_where_a_particle_is_forbidden():
    @po.program
    def dying():
        def step(n, _):
            po.factor("twice", jnp.where(n < 1, 0.0, -jnp.inf))
            return n + 1

        return po.scan(step, 0, length=5)

    execution = po.trace(KEY, dying())
    np.testing.assert_array_equal(execution.log_potentials, [0, 0, -np.inf])
    assert execution.log_weight == -np.inf


def test_a_trace_leaves_out_what_an_inference_inside_draws():
    @po.program
    def outer(ys):
        po.factor("evidence", po.smc(jax.random.key(1), walk.bind(ys), n=300).log_evidence)
        return po.sample("z", dist.Normal(0.0, 1.0))

    assert [event.name for event in po.trace(KEY, outer(jnp.ones(2))).sites] == ["evidence", "z"]


def test_a_trace_prints_steps_sites_and_the_running_total():
    lines = repr(po.trace(KEY, walk(jnp.array([1.0, 2.0])))).splitlines()
    assert lines[0] == "one execution of program walk"
    assert [line.split()[0] for line in lines[3:]] == ["0", "1", "y", "2", "y", "value:"]
    assert lines[-1].split()[-1] == lines[-2].split()[-1]  # the log weight is the last total


@pytest.mark.slow
def test_a_trace_of_a_language_model_shows_tokens_as_text():
    lm = tiny_lm.language_model()

    @po.program
    def text(lm):
        text = lm.start("ab")
        return po.scan(lambda text, _: text.push(po.sample("token", text.next())), text, length=3)

    described = po.describe(text(lm))
    assert [leaf.value for leaf in described.carry] == ["Text"]
    execution = po.trace(KEY, text(lm))
    tokens = [event for event in execution.sites if event.name == "token"]
    letters = lm.tokenizer.decode([int(event.value) for event in tokens])
    assert [event.words for event in tokens] == [repr(letter) for letter in letters]
    assert str(execution.value) == letters
    assert len(letters) == 3  # for this key, no end token
