"""Masking tokens step by step is the wrong law; the locally optimal proposal with its weights is the right one.

A language model of three tokens, so that everything is a finite sum. `Greedy token masking' draws each token from the model's
law restricted to what is allowed now, and forgets how much that was.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.ppl.region import Rewriting, rewritten

START = [0.1, 0.1, 0.8]
NEXT = [[0.6, 0.3, 0.1], [0.05, 0.05, 0.9], [0.2, 0.2, 0.6]]  # after 1 comes mostly 2, which is forbidden
FORBIDDEN, LENGTH = 2, 3
TEXTS = list(itertools.product(range(3), repeat=LENGTH))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def bigrams(start, following):
    """Texts of three tokens without the forbidden one."""

    def step(text, _):
        law = jnp.where(text[-1] < 0, start, following[text[-1]])
        token = po.sample("token", dist.Categorical(law))
        po.factor("allowed", jnp.where(token == FORBIDDEN, -jnp.inf, 0.0))
        return jnp.concatenate([text[1:], token[None]])

    return po.scan(step, jnp.full(LENGTH, -1), length=LENGTH)


class Forget(Rewriting):
    """Drops the weights of the locally optimal proposal: what is left is greedy masking."""

    def potential(self, msg):
        msg["stop"] = msg["name"] == "token/evidence"


def masked(program):
    return rewritten(Forget, po.adapt(program, "token"), ())


def lm():
    return bigrams(jnp.array(START), jnp.array(NEXT))


def table(measure):
    """The probability of each text."""
    answers = measure.answers()
    return np.array([answers[text].value if text in answers else 0.0 for text in TEXTS])


def by_hand(step):
    """The normalised product of `step(law)[token]` along each text, in plain Python."""
    mass = np.array([math.prod(step(law)[token] for law, token in zip([START, *(NEXT[t] for t in text)], text)) for text in TEXTS])
    return mass / mass.sum()


def allowed(law):
    return [p if token != FORBIDDEN else 0.0 for token, p in enumerate(law)]


def renormalised(law):
    return [p / sum(allowed(law)) for p in allowed(law)]


def total_variation(p, q):
    return 0.5 * np.abs(p - q).sum()


def smc(key, program):
    return po.smc(key, po.adapt(program, "token"), n=2, threshold=1.0)


def greedy(key, program):
    return po.smc(key, masked(program), n=2)


def test_the_constrained_model_is_the_model_given_that_nothing_is_forbidden():
    np.testing.assert_allclose(table(po.exact(lm())), by_hand(allowed), atol=1e-12)


def test_greedy_masking_has_another_law():
    found = table(po.exact(masked(lm())))
    np.testing.assert_allclose(found, by_hand(renormalised), atol=1e-12)
    assert total_variation(found, by_hand(allowed)) > 0.5


def test_adapted_proposals_have_the_right_law(laws):
    right = po.check.properly_weighted(smc, lm())
    laws.holds("smc of adapt, tabular lm", right)
    laws.fails("greedy token masking", po.check.properly_weighted(greedy, lm()))


def test_masking_stays_wrong_however_many_particles_there_are_and_smc_converges():
    target, n = by_hand(allowed), 20_000
    assert total_variation(by_hand(renormalised), target) == pytest.approx(0.5376, abs=1e-4)
    key = jax.random.key(0)
    assert total_variation(table(po.smc(key, masked(lm()), n=n)), target) == pytest.approx(0.5376, abs=0.02)
    assert total_variation(table(po.smc(key, po.adapt(lm(), "token"), n=n)), target) < 0.02
