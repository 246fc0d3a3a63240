"""Particles go back in their own past: to the law that stood there, without reading it again, or not unnoticed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.ppl.component import State
from posterity.ppl.rewind import mark, rewind
from posterity.tests.fixtures.tiny_lm import language_model


@po.program
def texts(lm, prompt, length):
    return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=length)


@po.program
def hesitating(lm, prompt):
    """Takes its second token back, always."""

    def step(carry, _):
        text, t = carry
        text = text.push(po.sample("token", text.next()))
        return text.rewind(jnp.where(t == 1, 0, text.generated)), t + 1

    return po.scan(step, (lm.start(prompt), 0), length=4, until=lambda carry: carry[1] == 4)[0]


@po.program
def walk(ys):
    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, 1.0), y)
        return x

    return po.scan(step, 0.0, ys)


def bigrams():
    return po.tabular.ngram(["ab", "abab", "bba"], order=2)


def ran(program, n, steps):
    """The particles after each step, and where they were."""

    @jax.jit
    def run(program):
        particles = [program.init(jax.random.key(0), n)[0]]
        for t in range(steps):
            particles.append(program.step(jax.random.key(t + 1), particles[-1])[0])
        return particles, [mark(program, p) for p in particles]

    return run(program)


taken_back = jax.jit(rewind)


@pytest.mark.parametrize("model", [bigrams, pytest.param(language_model, marks=pytest.mark.slow)])
def test_texts_go_back_to_the_laws_that_stood_there_each_to_its_own(model):
    program = texts(lm := model(), lm.prompt("ab"), 3)
    particles, marks = ran(program, 4, 3)
    back_to = jnp.array([0, 1, 2, 3])
    there = jax.tree.map(lambda *xs: jnp.stack(xs)[back_to, jnp.arange(4)], *marks)
    found = taken_back(program, particles[-1], there)
    laws, before = found.carry[0].view().logits, jnp.stack([p.carry[0].view().logits for p in particles])[back_to, jnp.arange(4)]
    stands = ~np.asarray(marks[-1].ended)  # a text that has ended has no next law
    np.testing.assert_allclose(laws[stands], before[stands], atol=1e-4)
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(mark(program, found)), jax.tree.leaves(there), strict=True))


@pytest.mark.slow
def test_a_copy_goes_back_to_its_ancestors_past():
    program = texts(lm := bigrams(), lm.prompt("ab"), 2)
    particles, marks = ran(program, 3, 2)
    ancestors = jnp.array([2, 2, 0])
    copies = program.select(particles[-1], ancestors)
    found = taken_back(program, copies, jax.tree.map(lambda x: x[ancestors], marks[1]))
    laws, before = found.carry[0].view().logits, particles[1].carry[0].view().logits[ancestors]
    np.testing.assert_allclose(laws, before, atol=1e-4)


def test_a_text_that_was_written_over_is_not_marked_as_it_was():
    program = hesitating(lm := bigrams(), lm.prompt("ab"))
    particles, marks = ran(program, 8, 4)
    again = mark(program, taken_back(program, particles[-1], marks[1]))
    (_, sums), (_, before) = again.carry[0], marks[1].carry[0]
    assert not jnp.array_equal(sums, before)


@pytest.mark.slow
def test_what_was_driven_together_goes_its_own_ways_after():
    program = walk(jnp.array([1.0, 2.0, 3.0]))
    particles, marks = ran(program, 3, 3)
    there = jax.tree.map(lambda *xs: jnp.stack(xs)[jnp.array([0, 1, 2]), jnp.arange(3)], *marks)
    found = taken_back(program, particles[-1], there)
    assert found.time.tolist() == [0, 1, 2]
    assert not found.ended.any()
    after, log_potential = program.step(jax.random.key(9), found, where=jnp.array([True, True, False]))
    expected = dist.Normal(after.carry[0], 1.0).log_prob(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(log_potential, jnp.where(jnp.arange(3) < 2, expected, 0.0), rtol=1e-6)


@pytest.mark.slow
def test_transformed_programs_go_back_with_what_they_keep():
    program = po.twist(walk(jnp.array([1.0, 2.0])), lambda x: -(x**2))
    particles, marks = ran(program, 3, 2)
    found = taken_back(program, particles[-1], marks[1])
    np.testing.assert_array_equal(found.log_psi, particles[1].log_psi)
    np.testing.assert_array_equal(found.now.carry[0], particles[1].now.carry[0])


def test_what_keeps_no_past_says_so():
    program = texts(lm := bigrams(), lm.prompt("ab"), 2)
    batch = program.init(jax.random.key(0), 2)[0].carry[0]
    with pytest.raises(TypeError, match="Texts cannot be rewound: it keeps no past"):
        State.mark(batch)
