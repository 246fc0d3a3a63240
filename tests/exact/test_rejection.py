"""Tokens that are drawn again until one is allowed come with an unbiased estimate of the mass that is: by enumeration of every draw."""

import flax.struct
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.models.lm.next_token import NextToken
from posterity.models.potentials.rejection import Drawn, rejection
from posterity.ppl.effects import draw, loop

LAW, ALLOWED = (0.1, 0.2, 0.3, 0.25, 0.15), (1, 0, 1, 0, 1)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@po.program
def masked(law, allowed):
    """A token, and whether it is allowed as its weight."""
    token = po.sample("token", dist.Categorical(law))
    po.factor("allowed", jnp.where(allowed[token], 0.0, -jnp.inf))
    return token


def target(allowed=ALLOWED):
    return masked(jnp.array(LAW), jnp.array(allowed, bool))


def rejecting(ask, allowed=ALLOWED):
    return lambda key, program: rejection(key, NextToken(jnp.log(jnp.array(LAW))), lambda token: jnp.array(allowed, bool)[token], ask)


@pytest.mark.parametrize("ask", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_first_token_allowed_and_the_estimate_are_properly_weighted(laws, ask):
    report = po.check.properly_weighted(rejecting(ask), target())
    laws.holds("adaptive weighted rejection", report)
    assert sum(p for p, a in zip(LAW, ALLOWED) if a) == pytest.approx(0.55)
    assert po.exact(target()).log_evidence == pytest.approx(float(jnp.log(0.55)))


@pytest.mark.parametrize("allowed", [(1, 1, 1, 1, 1), (0, 1, 0, 0, 0), (0, 0, 0, 0, 0)])
def test_whether_all_one_or_no_tokens_are_allowed(laws, allowed):
    laws.holds("adaptive weighted rejection", po.check.properly_weighted(rejecting(2, allowed), target(allowed)))


def unweighted(key, program):
    return rejecting(1)(key, program)._replace(log_evidence=jnp.zeros(()))


def counting(key, program):
    """The naive weight: one over the number of draws that the first allowed token took."""
    law, allowed = jnp.array(LAW), jnp.array(ALLOWED, bool)

    def again(state):
        left, draws, _ = state
        token = draw(jax.random.fold_in(key, draws), "token", NextToken(jnp.where(left, jnp.log(law), -jnp.inf)))
        return left.at[token].set(False), draws + 1, token

    def refused(state):
        return (state[1] == 0) | ~allowed[state[2]]

    _, draws, token = loop(refused, again, (jnp.ones(5, bool), 0, jnp.zeros((), int)), limit=5)
    return Drawn(token[None], jnp.zeros(1), -jnp.log(draws.astype(float)))


def test_naive_weights_are_refuted(laws):
    laws.fails("a token drawn again, without a weight", po.check.properly_weighted(unweighted, target()))
    laws.fails("a token drawn again, weighed by the share of draws", po.check.properly_weighted(counting, target()))


@flax.struct.dataclass
class Rising(po.potentials.Potential):
    """No token comes twice in a row, and each is worth another half a nat; told token by token only."""

    def start(self):
        return jnp.full((), -1)

    def update(self, last, token):
        return token.astype(int), jnp.where(token == last, -jnp.inf, 0.5 * token)


def program(ask, **options):
    lm = po.tabular.ngram(["ab", "b", "aab"], order=2)
    return po.constrained(lm, "", Rising() * po.potentials.over(po.potentials.without("bb"), lm.tokenizer), max_tokens=2, ask=ask, **options)


def test_texts_drawn_so_mean_what_they_mean_otherwise(laws):
    laws.holds("constrained, by rejection", po.check.same_meaning(program(1), program(None)))


@pytest.mark.slow
def test_smc_over_texts_drawn_so_is_properly_weighted(laws):
    lm = po.tabular.ngram(["a", "aa"], order=2)
    short = po.constrained(lm, "", Rising(), max_tokens=2, ask=1)
    check = po.check.properly_weighted(lambda key, program: po.smc(key, program, n=2, threshold=1.0), short)
    laws.holds("smc, constrained by rejection", check)
