"""The check of potentials sees where one contradicts itself."""

import re

import flax.struct
import jax
import jax.numpy as jnp
import pytest

import posterity as po
from posterity.models.potentials import Potential, check, contains, over
from posterity.tests.fixtures.byte_texts import language_model

TEXTS = ["abc", "日é", "a the end"]


@flax.struct.dataclass
class Odd(Potential):
    """Likes every other token; with one thing off, as it is told."""

    vocab: int = flax.struct.field(pytree_node=False)
    off: str = flax.struct.field(pytree_node=False, default="")

    def start(self):
        return jnp.zeros((), jnp.int32)

    def update(self, place, token):
        gain = jnp.where((place + token) % 2 == 0, 1.0, -1.0)
        return place + 1, gain / 0.0 if self.off == "infinite" else gain[None] if self.off == "shape" else gain

    def scores(self, place):
        scores = jax.vmap(lambda token: self.update(place, token)[1])(jnp.arange(self.vocab))
        return {"scores": scores.at[7].add(jnp.where(place == 2, 0.1, 0.0)), "size": scores[1:]}.get(self.off, scores)

    def to_go(self, place):
        return jnp.where((self.off == "gives up") & (place == 1), -jnp.inf, 0.5 * (place % 2))

    def gains(self, place, end_ids):
        gains = super().gains(place, end_ids)
        return gains + 0.5 if self.off == "gains" else gains


def odd(off=""):
    return Odd(language_model().tokenizer.vocab_size, off)


def test_what_agrees_with_itself_passes():
    lm = language_model()
    lifted = over(contains("é"), lm.tokenizer).within(12, "uniform")
    for potential in (odd() ** 0.5, odd() * lifted):
        found = check.potential(potential, lm, TEXTS)
        assert found, found
    assert found.tokens > 8


@pytest.mark.parametrize(
    ("off", "says"),
    [
        ("scores", r"scores says .* of token 7, every update .*token 2 of 'abc'"),
        ("size", r"scores has shape"),
        ("gains", r"gains says"),
        ("infinite", r"NaN or \+inf, at token 0"),
        ("shape", r"shape \(1,\)"),
        ("gives up", r"to_go is -inf at token 1"),
    ],
)
def test_the_first_disagreement_is_told(off, says):
    found = check.potential(odd(off), language_model(), TEXTS)
    assert not found
    assert re.search(says, repr(found)), found


def test_texts_are_needed():
    with pytest.raises(ValueError, match="at least one text"):
        check.potential(odd(), language_model(), [])


def test_what_is_no_potential_is_refused():
    with pytest.raises(TypeError, match="must be a Potential"):
        po.constrained(language_model(), "a", "[0-9]+", max_tokens=3)
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        po.constrained(language_model(), "a", odd(), max_tokens=0)
    with pytest.raises(NotImplementedError, match="must define start"):
        Potential().start()
