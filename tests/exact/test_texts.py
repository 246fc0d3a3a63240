"""Inference over texts of a decoder, its cache of shared pages included, enumerated draw by draw: the cache follows the particles."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import struct

import posterity as po
from posterity.models.lm.language_model import LanguageModel
from posterity.tests.fixtures.tiny_lm import language_model

pytestmark = pytest.mark.slow


@po.program
def constrained(lm, prompt, length):
    """Texts in which a c never follows an a, and every b counts double."""

    def step(text, _):
        before = text.last
        token = po.sample("token", text.next())
        po.factor("no ac", jnp.where((before == 0) & (token == 2), -jnp.inf, 0.0))
        po.factor("b", jnp.where(token == 1, jnp.log(2.0), 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=length).tokens


def smc(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


@struct.dataclass
class Careless:
    """A model whose memory stays with the particles' places when particles are copied."""

    lm: LanguageModel

    @property
    def vocab_size(self):
        return self.lm.tokenizer.vocab_size

    @property
    def context_length(self):
        return self.lm.context_length

    def start(self, tokens, length, n, steps):
        law, memory = self.lm.model().start(tokens, length, n, steps)
        return law, Left(memory)

    def advance(self, memory, tokens, active):
        law, after = self.lm.model().advance(memory.inner, tokens, active)
        return law, replace(memory, inner=after)


@struct.dataclass
class Left:
    inner: object

    def select(self, ancestors):
        return self

    def rewind(self, lengths):
        return replace(self, inner=self.inner.rewind(lengths))

    def bytes(self):
        return self.inner.bytes()


def test_smc_over_a_decoders_texts_is_properly_weighted(laws):
    lm = language_model()
    with jax.enable_x64():
        laws.holds("smc, text of a decoder with its cache", po.check.properly_weighted(smc, constrained(lm, lm.prompt("ab"), 3)))
        mutant = LanguageModel.of(Careless(lm), lm.tokenizer, "careless")
        right = constrained(lm, lm.prompt("ab"), 3)
        wrong = po.check.properly_weighted(smc, constrained(mutant, lm.prompt("ab"), 3), meaning=right)
        laws.fails("a cache that does not follow its particles", wrong)
