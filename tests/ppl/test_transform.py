"""Programs made of programs: what their particles hold, when they are weighed, and what is refused (their laws are proved in tests/exact)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.recorded import at
from posterity.ppl.program import choices_of
from posterity.tests.fixtures import tiny_lm
from posterity.tests.fixtures.references import walk

LENGTH = 4


@po.program
def climb(top):
    """Up or not, LENGTH times, ending early at `top`; its value is the height. Each step up weighs 0.5 nats, the start 0.25."""
    x0 = po.sample("x0", dist.Bernoulli(0.5))
    po.factor("start", 0.25)

    def step(x, _):
        up = po.sample("up", dist.Bernoulli(0.5))
        po.factor("reward", 0.5 * up)
        return x + up

    return po.scan(step, x0, length=LENGTH, until=lambda x: x >= top)


@po.program
def forbidden_then_nan():
    """Whoever takes 0 is forbidden, and meets NaN afterwards."""

    def step(carry, _):
        alive, t = carry
        x = po.sample("x", dist.Bernoulli(0.5))
        alive = alive & (x == 1)
        po.factor("potential", jnp.where(carry[0], jnp.where(alive, 0.0, -jnp.inf), jnp.nan))
        return alive, t + 1

    return po.scan(step, (jnp.array(True), 0), length=3)[0]


def height(x):
    return 0.5 * x


def at_even(x):
    return x % 2 == 0


TRANSFORMATIONS = {
    "chunk": lambda p: po.chunk(p, lambda x: False),
    "twist": lambda p: po.twist(p, lambda x: 0.1),
    "temper": lambda p: po.temper(p, jnp.array([0.25, 1.0])),
    "lookahead": lambda p: po.lookahead(p, steps=2, pilots=2),
    "delay": lambda p: po.delay(p, steps=2),
    "mixture": lambda p: po.mixture([p, p]),
    "recorded": po.recorded,
}


def run(program, n, seed=0):
    """The particles after the initial law and every step, and the log potentials [steps + 1, n]."""
    particles, log_potential = program.init(jax.random.key(seed), n)
    history, log_potentials = [particles], [log_potential]
    for t in range(program.length):
        particles, log_potential = program.step(jax.random.key(seed + t + 1), particles)
        history.append(particles)
        log_potentials.append(log_potential)
    return history, np.stack(log_potentials)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_particles_can_be_stepped_one_by_one(name):
    program = TRANSFORMATIONS[name](climb(9))
    particles, _ = program.init(jax.random.key(0), 6)
    some = jnp.array([True, False, True, False, True, False])
    after, log_potential = program.step(jax.random.key(1), particles, where=some)
    rest = jnp.flatnonzero(~some)
    jax.tree.map(np.testing.assert_array_equal, program.select(after, rest), program.select(particles, rest))
    np.testing.assert_array_equal(log_potential[rest], 0)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_done_particles_stand_still_at_weight_one(name):
    program = TRANSFORMATIONS[name](climb(2))
    history, _ = run(program, 8)
    assert program.done(history[-1]).all()
    after, log_potential = program.step(jax.random.key(99), history[-1])
    np.testing.assert_array_equal(program.value(after), program.value(history[-1]))
    np.testing.assert_array_equal(log_potential, np.zeros(8))


@pytest.mark.parametrize("name", ["chunk", "temper", "delay", "lookahead"])
def test_a_particle_that_is_forbidden_may_have_any_potential_later(name):
    posterior = po.importance(jax.random.key(0), TRANSFORMATIONS[name](forbidden_then_nan()), n=400)
    assert float(jnp.exp(posterior.log_evidence)) == pytest.approx(1 / 8, abs=0.05)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_named_choices_stay(name):
    program = TRANSFORMATIONS[name](climb(9))
    choices = choices_of(program, program.init(jax.random.key(0), 5)[0])
    assert {key: value.shape for key, value in choices.items()} == {"component" if name == "mixture" else "x0": (5,)}


def test_a_twist_is_paid_in_advance_and_paid_back():
    program = po.twist(climb(9), height)
    history, log_potentials = run(program, 5)
    heights = np.stack([program.value(particles) for particles in history])
    psi = 0.5 * heights
    psi[-1] = 0.0
    own = np.concatenate([np.full((1, 5), 0.25), 0.5 * np.diff(heights, axis=0)])
    np.testing.assert_allclose(log_potentials, own + np.diff(psi, axis=0, prepend=0.0), atol=1e-6)


def test_arrays_in_a_twist_are_leaves_and_functions_are_not():
    learned = po.twist(climb(9), jax.tree_util.Partial(lambda w, x: w * x, jnp.array(0.5)))
    assert len(jax.tree.leaves(learned)) == len(jax.tree.leaves(climb(9))) + 1
    assert jax.tree.structure(po.twist(climb(9), height)) == jax.tree.structure(po.twist(climb(9), height))
    assert set(np.asarray(jax.tree.map(lambda x: 3 * x, learned).init(jax.random.key(0), 20)[1])) == {0.25, 1.75}


def test_a_delayed_potential_counts_later_and_the_rest_at_the_end():
    plain = run(po.recorded(climb(9)), 5)[0][-1].log_potentials.T
    late = run(po.delay(climb(9), steps=2), 5)[1]
    np.testing.assert_allclose(late[:-1], np.concatenate([np.zeros((2, 5)), plain[:2]]))
    np.testing.assert_allclose(late[-1], plain[2:].sum(axis=0), atol=1e-6)


def test_a_tempered_program_has_run_before_its_first_step():
    program = po.temper(climb(9), jnp.array([0.25, 0.5, 1.0]))
    history, log_potentials = run(program, 5)
    heights, start = program.value(history[0]), program.choices(history[0])["x0"]
    np.testing.assert_allclose(log_potentials, np.outer([0.0, 0.25, 0.25, 0.5], 0.25 + 0.5 * (heights - start)), atol=1e-6)
    assert len(jax.tree.leaves(program)) == len(jax.tree.leaves(climb(9))) + 1


@pytest.mark.slow
def test_looking_ahead_estimates_the_evidence_of_what_is_rare_without_bias_and_with_less_spread():
    @po.program
    def lock():
        """Six digits of four; every second one is checked together with the one before."""

        def step(carry, _):
            x, t = carry
            digit = po.sample("digit", dist.Categorical(jnp.ones(4) / 4))
            po.factor("right", jnp.where((t % 2 == 1) & (x + digit < 5), -jnp.inf, 0.0))
            return digit, t + 1

        return po.scan(step, (0, 0), length=6)[0]

    def relative(program):
        log_evidences = jax.vmap(lambda key: po.smc(key, program, n=16, threshold=1.0).log_evidence)(jax.random.split(jax.random.key(0), 2_000))
        return np.exp(log_evidences) * (16 / 3) ** 3

    plain, ahead = relative(lock()), relative(po.lookahead(lock(), steps=1, pilots=32))
    assert abs(ahead.mean() - 1.0) < 5 * ahead.std() / len(ahead) ** 0.5  # false alarm: 6e-7
    assert ahead.std() < 0.95 * plain.std()  # over 4,000 other keys: 0.83 and 1.01


def test_the_component_of_a_mixture_is_a_choice():
    sure, unsure = (po.twist(climb(top), height) for top in (9, 1))
    posterior = po.importance(jax.random.key(0), po.mixture([sure, unsure], [1.0, 3.0]), n=4_000)
    masses = np.exp([po.exact(program).log_evidence for program in (sure, unsure)]) * [1.0, 3.0]
    assert float(posterior["component"].expect()) == pytest.approx(masses[1] / masses.sum(), abs=0.04)
    assert float(jnp.exp(posterior.log_evidence)) == pytest.approx(masses.sum(), rel=0.05)


def test_a_trajectory_holds_every_state_and_potential():
    program = po.recorded(climb(2))
    history, log_potentials = run(program, 8)
    last = history[-1]
    steps = np.asarray(last.steps)
    assert len(set(steps)) > 1
    for t, particles in enumerate(history):
        past = at(last, np.minimum(t, steps))
        jax.tree.map(np.testing.assert_array_equal, past, program.select(particles, jnp.arange(8)).now)
        np.testing.assert_array_equal(np.where(t <= steps, last.log_potentials[:, t], 0.0), log_potentials[t])
    np.testing.assert_array_equal(last.time, LENGTH)
    copies = program.select(last, jnp.array([3, 3]))
    assert copies.states.carry[0].shape == (2, LENGTH + 1)
    np.testing.assert_array_equal(copies.states.carry[0][1], last.states.carry[0][3])


def test_trajectories_of_chunks_have_the_steps_of_each_particle():
    program = po.chunk(po.recorded(climb(9)), at_even)
    particles, _ = program.init(jax.random.key(0), 8)
    particles, log_potential = program.step(jax.random.key(1), particles)
    assert len(set(np.asarray(particles.steps))) > 1
    for i, steps in enumerate(np.asarray(particles.steps)):
        path = np.asarray(particles.states.carry[0][i])[: steps + 1]
        assert steps == LENGTH or path[-1] % 2 == 0
        assert (path[1:-1] % 2 == 1).all()
        np.testing.assert_allclose(log_potential[i], 0.5 * (path[-1] - path[0]))


def test_particles_that_share_their_time_are_looked_up_together():
    program = po.recorded(walk(jnp.ones(3)))
    history, _ = run(program, 4)
    assert int(at(history[-1], 2).time) == 2
    jax.tree.map(np.testing.assert_array_equal, at(history[-1], 2), history[2].now)
    with pytest.raises(ValueError, match="move together, so that time must be one int"):
        at(history[-1], jnp.array([0, 1, 2, 3]))


@po.program
def letters(lm):
    """Four tokens that are not "b"."""

    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("no b", jnp.where(token == 1, -jnp.inf, 0.0))
        return text.push(token)

    return po.scan(step, lm.start("ab"), length=4)


@pytest.mark.slow
def test_texts_are_looked_ahead_of_delayed_and_mixed_but_not_recorded():
    """The evidence within 4.4 standard errors, which come to .2 (a false alarm in 100,000)."""
    program = letters(tiny_lm.language_model())
    mixed = po.smc(jax.random.key(1), po.mixture([po.lookahead(program, steps=2), po.delay(program, steps=2)]), n=4_000)
    plain = po.importance(jax.random.key(0), program, n=20_000)
    error = math.hypot(float(mixed.log_evidence_error), float(plain.log_evidence_error))
    assert abs(float(mixed.log_evidence - plain.log_evidence)) < 4.4 * error < 0.2
    assert all("b" not in answer[2:] for answer, (probability, _) in mixed.answers().items() if probability)
    with pytest.raises(TypeError, match=r"recorded: <program letters> has a Texts in its particles"):
        po.recorded(program).init(jax.random.key(0), 2)


BAD = {
    "no program": (lambda: po.twist(lambda x: x, height), TypeError, "twist: program must be a Program .* got function"),
    "no function": (lambda: po.twist(climb(9), 1.0), TypeError, "twist: potential_to_go must be a function of a particle's value, got 1.0"),
    "two numbers": (lambda: po.importance(jax.random.key(0), po.twist(climb(9), lambda x: jnp.ones(2)), n=1), ValueError, r"returned shape \(2,\)"),
    "no steps": (lambda: po.lookahead(climb(9), steps=0), ValueError, "lookahead: steps must be a whole number, 1 or more, got 0"),
    "half a pilot": (lambda: po.lookahead(climb(9), steps=1, pilots=0.5), ValueError, "lookahead: pilots must be a whole number, 1 or more, got 0.5"),
    "a high floor": (lambda: po.lookahead(climb(9), steps=1, floor=1.0), ValueError, "lookahead: floor must be one finite number of nats, 0 at most, got 1.0"),
    "no delay": (lambda: po.delay(climb(9), steps=-1), ValueError, "delay: steps must be a whole number, 1 or more, got -1"),
    "falling": (lambda: po.temper(climb(9), [0.5, 0.25]), ValueError, r"temper: exponents must be a row of increasing finite numbers, .* got \[0.5, 0.25\]"),
    "no exponents": (lambda: po.temper(climb(9), []), ValueError, "temper: exponents must be a row"),
    "from zero": (lambda: po.temper(climb(9), [0.0, 1.0]), ValueError, "the first above 0"),
    "nothing to mix": (lambda: po.mixture([]), ValueError, "mixture: give at least one program"),
    "two weights": (lambda: po.mixture([climb(9)], [0.5, 0.5]), ValueError, "mixture: weights must be 1 finite positive numbers, one for each program"),
    "no weight": (lambda: po.mixture([climb(9), climb(2)], [0.0, 1.0]), ValueError, "mixture: weights must be 2 finite positive numbers"),
    "unlike": (
        lambda: po.importance(jax.random.key(0), po.mixture([climb(9), walk(jnp.ones(2))]), n=2),
        ValueError,
        "mixture: values must be alike; <program climb> has .*int.*, <program walk> has .*float",
    ),
    "not recorded": (lambda: po.recorded(3), TypeError, "recorded: program must be a Program .* got int"),
    "not in chunks": (lambda: po.chunk(climb, at_even), TypeError, "chunk: climb: missing a required argument"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    call, error, match = BAD[case]
    with pytest.raises(error, match=match):
        call()


def test_transformed_programs_say_what_they_are():
    shown = [
        (po.twist(climb(9), height), "<<program climb> twisted by height>"),
        (po.lookahead(climb(9), steps=3, pilots=2), "<<program climb> looking 3 steps ahead with 2 pilots>"),
        (po.temper(climb(9), jnp.array([0.5, 1.0])), "<<program climb> tempered in 2 steps>"),
        (po.delay(climb(9), steps=2), "<<program climb> delayed by 2 steps>"),
        (po.recorded(climb(9)), "<<program climb> recorded>"),
        (po.mixture([climb(9), walk(jnp.ones(1))]), "<mixture of <program climb>, <program walk>>"),
    ]
    assert [repr(program) for program, _ in shown] == [text for _, text in shown]
