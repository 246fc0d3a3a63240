"""Transformations from within: what they compile, what they tell NumPyro, what they refuse (their laws are proved in tests/exact)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

import posterity as po

traced = []  # one entry each time Python runs the walk


@po.program
def walk(ys):
    traced.append(1)
    x = po.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, 0.1), y)
        return x

    return po.scan(step, x, ys)


@po.program
def tokens(length):
    """A flat law over four tokens, of which one is allowed; its value is how many were drawn."""

    def step(count, _):
        token = po.sample("token", dist.Categorical(jnp.full(4, 0.25)))
        po.factor("allowed", jnp.where(token == 3, 0.0, -jnp.inf))
        return count + (token == 3)

    return po.scan(step, 0, length=length)


def towards(weights, x, y):
    """A proposal with parameters: between the state and the observation."""
    return dist.Normal(weights[0] * x + weights[1] * y, weights[2])


YS = jnp.array([1.0, 2.0, 4.0])


def informed(weights=(0.01, 0.99, 0.1)):
    return po.propose(walk(YS), {"x": jax.tree_util.Partial(towards, jnp.array(weights))})


def test_an_informed_proposal_wastes_no_particles():
    plain = po.importance(jax.random.key(0), walk(YS), n=1_000)
    better = po.importance(jax.random.key(0), informed(), n=1_000)
    assert float(better.ess) > 20 * float(plain.ess)


def test_a_learned_proposal_is_not_compiled_again():
    po.smc(jax.random.key(0), informed(), n=8)
    before = len(traced)
    po.smc(jax.random.key(0), informed((0.5, 0.5, 1.0)), n=8)
    assert len(traced) == before


def test_a_proposal_may_have_numpyro_parameters():
    def parametric(x, y):
        return towards((numpyro.param("a", 0.01), numpyro.param("b", 0.99), numpyro.param("c", 0.1)), x, y)

    found = run(po.propose(walk(YS), {"x": parametric}))
    np.testing.assert_allclose(found.log_evidence, run(informed()).log_evidence, rtol=1e-5)


def test_a_proposal_is_learned_through_the_weights():
    def loss(weights):
        program = informed(weights)
        particles, log_weights = program.init(jax.random.key(0), 16)
        for t in range(program.length):
            particles, log_potential = program.step(jax.random.key(t), particles)
            log_weights += log_potential
        return -jax.scipy.special.logsumexp(log_weights)

    gradient = jax.grad(loss)(jnp.array([0.5, 0.5, 1.0]))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).min() > 0


@po.program
def mixed(y):
    z = po.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
    x = po.sample("x", dist.Normal(1.0 * z, 1.0))
    po.observe("y", dist.Normal(x, 0.5 + z), y)
    return x


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda p: po.propose(p, {"x": lambda y: dist.Normal(y, 2.0), "z": dist.Categorical(jnp.array([0.5, 0.5]))}),
        lambda p: po.adapt(po.condition(p, {"x": 0.3}), "z"),
    ],
    ids=["propose", "adapt"],
)
def test_numpyro_sees_the_same_density(rewrite):
    rewritten = rewrite(mixed(1.0))
    choices = {"z": jnp.array(1), "x": jnp.array(0.3)}
    expected, _ = log_density(mixed(1.0), (), {}, choices)
    found, _ = log_density(rewritten, (), {}, choices)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "rewrite",
    [lambda p: informed(), lambda p: po.condition(p, {"x": jnp.array([0.9, 2.1, 3.7])}), lambda p: po.lift(p, {})],
    ids=["propose", "condition", "lift"],
)
def test_numpyro_sees_the_same_density_of_steps(rewrite):
    choices = {"x0": jnp.array(0.2), "x": jnp.array([0.9, 2.1, 3.7])}
    expected, _ = log_density(walk(YS), (), {}, choices)
    found, _ = log_density(rewrite(walk(YS)), (), {}, choices)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_numpyro_sees_the_sum_over_what_is_summed_out():
    x = jnp.array(0.3)
    expected = jnp.logaddexp(*[log_density(mixed(1.0), (), {}, {"z": jnp.array(z), "x": x})[0] for z in (0, 1)])

    @po.program
    def apart(y):
        x = po.sample("x", dist.Normal(0.0, 1.0))
        z = po.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
        po.factor("prior of x given z", dist.Normal(1.0 * z, 1.0).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x))
        po.observe("y", dist.Normal(x, 0.5 + z), y)
        return x

    found, _ = log_density(po.marginalise(apart(1.0), "z"), (), {}, {"x": x})
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_rewritten_programs_have_names():
    assert repr(po.adapt(po.propose(walk(YS), {}), "x")) == "<program adapt(propose(walk))>"
    assert repr(po.product(tokens(1), tokens(1))) == "<program product(tokens, tokens)>"


# -- language models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm():
    return po.load("abacus")


@po.program
def without(lm, prompt, letter):
    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("without", jnp.where(lm.tokens_containing(letter)[token], -jnp.inf, 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=16)


@po.program
def say(lm, prompt):
    return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=8)


@pytest.mark.slow
def test_an_adapted_language_model_wastes_no_particle(lm):
    """The model wants to write a product here, with near certainty; no particle that draws from it survives."""
    program = without(lm, "47+6*(12-8)=", "*")
    assert float(po.smc(jax.random.key(0), program, n=8).log_evidence) == -np.inf
    posterior = po.smc(jax.random.key(0), po.adapt(program, "token"), n=8)
    assert np.isfinite(posterior.log_weights).all()
    assert not any("*" in answer for answer in posterior.answers())


@pytest.mark.slow
def test_two_prompts_are_experts_over_one_vocabulary(lm):
    """Both write 42; where they disagree, neither answer is likely."""
    agreed = po.smc(jax.random.key(0), po.adapt(po.product(say(lm, "12+30="), say(lm, "40+2=")), "token"), n=4)
    assert agreed.answers()["42"].value == pytest.approx(1.0)
    assert float(agreed.log_evidence) == pytest.approx(0.0, abs=0.1)
    torn = po.smc(jax.random.key(0), po.adapt(po.product(say(lm, "12+30="), say(lm, "40+3=")), "token"), n=4)
    assert float(torn.log_evidence) < -1.0


# -- refusals ----------------------------------------------------------------------------------------------------------------


@po.program
def leaky(where):
    z0 = po.sample("z0", dist.Bernoulli(0.5))

    def step(x, _):
        z = po.sample("z", dist.Bernoulli(0.5))
        u = po.sample("u", dist.Bernoulli(jnp.where(z, 0.2, 0.4) if where == "a later law" else 0.5))
        po.factor("potential", 0.5 * (z0 if where == "a step" else u))
        return x + (z if where == "the carry" else u)

    x = po.scan(step, 0, length=2)
    po.factor("end", 0.5 * (z0 if where == "the end" else x))
    return x + (z0 if where == "the result" else 0)


@pytest.mark.parametrize(("where", "name"), [("the carry", "z"), ("a later law", "z"), ("a step", "z0"), ("the end", "z0"), ("the result", "z0")])
def test_a_choice_that_is_heard_of_elsewhere_is_not_summed_out(where, name):
    po.smc(jax.random.key(0), po.marginalise(leaky(""), name), n=2)
    with pytest.raises(ValueError, match=f"marginalise: the carry, the result, or the law of a later choice depends on '{name}'"):
        po.smc(jax.random.key(0), po.marginalise(leaky(where), name), n=2)


@po.program
def two():
    a = po.sample("a", dist.Bernoulli(0.5))
    b = po.sample("b", dist.Normal(a, 1.0))
    c = po.sample("c", dist.Bernoulli(jnp.array([0.5, 0.5])).to_event(1))
    return a, b, c


@po.program
def other():
    return po.sample("a", dist.Bernoulli(0.5))


def run(program):
    return po.smc(jax.random.key(0), program, n=2)


REFUSALS = {
    "an unknown name": (lambda: po.propose(walk(YS), {"z": dist.Normal()}), "propose: the program has no choice named 'z'; its choices are 'x', 'x0'"),
    "an observed name": (lambda: po.condition(walk(YS), {"y": 1.0}), "condition: the program has no choice named 'y'"),
    "no choices": (lambda: po.lift(walk(YS), {"s": dist.Normal()}), "lift: the program has no parameter named 's'; its parameters are none"),
    "another shape": (lambda: po.propose(walk(YS), {"x": dist.Normal(jnp.zeros(2))}), r"proposal of 'x' draws values of shape \(2,\), the program draws \(\)"),
    "another kind": (lambda: po.propose(walk(YS), {"x": dist.Bernoulli(0.5)}), "proposal of 'x' is discrete, the choice itself continuous"),
    "no proposal": (lambda: po.propose(walk(YS), {"x": 1.0}), "proposal of 'x' must be a distribution or a function to one, got float"),
    "no distribution": (lambda: po.propose(walk(YS), {"x": lambda x, y: x}), "proposal of 'x' must be a distribution or return one"),
    "infinite support": (lambda: po.adapt(two(), "b"), "'b' has no finite support: Normal"),
    "a later choice": (lambda: po.adapt(two(), "a"), "adapt: 'b' is drawn after the first of the choices to adapt, 'a'; name it too, or draw it before"),
    "no names": (lambda: po.adapt(two()), r"adapt: give the names of choices, got \(\)"),
    "other steps": (lambda: po.adapt(po.chunk(tokens(3), lambda count: count > 1), "token"), "adapt: the program must be one that @po.program makes.*before"),
    "a value for more steps": (lambda: po.condition(walk(YS), {"x": jnp.ones(4)}), r"value of 'x' has shape \(4,\); the choice has \(\)"),
    "one expert": (lambda: po.product(two()), "product: give at least two programs"),
    "other lengths": (lambda: po.product(tokens(2), tokens(3)), "product: the programs' scans have different lengths: 2, 3"),
    "a scan in one": (lambda: po.product(tokens(2), other()), "expert 2 chooses 'a', the first does not"),
    "fewer choices": (lambda: po.product(two(), other()), "the first expert chooses 'b', 'c', expert 2 does not"),
    "no prior": (lambda: po.lift(walk(YS), {"s": 1.0}), "lift: the prior of 's' must be a distribution, got float"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_is_refused(case):
    program, message = REFUSALS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        run(program())


def test_keys_are_for_programs():
    with pytest.raises(ValueError, match=r"po.key\(\) gives keys inside a program"):
        po.key()


@pytest.mark.parametrize("transformation", [po.adapt, po.marginalise])
def test_an_inference_after_a_choice_that_is_summed_is_refused(transformation):
    """Its evidence would be that of one key for all particles."""

    @po.program
    def program():
        z = po.sample("z", dist.Bernoulli(0.5))
        po.factor("reward", 1.0 * z)
        return po.embed("tokens", po.smc(po.key(), tokens.bind(2), n=2))

    with pytest.raises(ValueError, match=r"po.key\(\) is called where the values of 'z' are summed"):
        po.importance(jax.random.key(0), transformation(program(), "z"), n=2)


def test_what_is_no_posterior_is_not_embedded():
    with pytest.raises(TypeError, match=r"embed\('x'\): posterior must have values, log_weights and log_evidence"):
        po.embed("x", jnp.ones(3))


def test_an_invalid_potential_inside_is_an_error_outside():
    @po.program
    def inner():
        po.factor("invalid", jnp.nan)
        return po.sample("a", dist.Bernoulli(0.5))

    @po.program
    def outer():
        return po.embed("a", po.smc(po.key(), inner.bind(), n=2))

    with pytest.raises(ValueError, match="log potentials were NaN or"):
        run(outer())


def test_a_lifted_parameter_has_a_posterior():
    @po.program
    def coin(flips):
        po.observe("flips", dist.Bernoulli(numpyro.param("p", 0.5)), flips)

    posterior = po.importance(jax.random.key(0), po.lift(coin(jnp.ones(8)), {"p": dist.Beta(1.0, 1.0)}), n=2_000)
    assert float(posterior["p"].expect()) == pytest.approx(0.9, abs=0.02)
