"""The memory of tabular models: copying and rewinding give what reading anew gives."""

import functools

import jax
import numpy as np
import pytest

from posterity.models.lm.model import Model
from posterity.models.lm.tabular import hmm, ngram, pcfg

MODELS = {
    "ngram": ngram(["abcab", "bca"], order=3),
    "hmm": hmm([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], symbols="abc", end=[0.1, 0.2]),
    "pcfg": pcfg({"S": {"a S b": 0.3, "b S S": 0.2, "c": 0.5}}),
}
STEPS = 6


@pytest.fixture(params=MODELS)
def lm(request):
    return MODELS[request.param]


@functools.partial(jax.jit, static_argnames="n")
def begun(model, tokens, length, n=4):
    return model.start(tokens, length, n, STEPS)


@jax.jit
def advanced(model, memory, ancestors, kept, tokens, active):
    return model.advance(memory.select(ancestors).rewind(kept), tokens, active)


def after(lm, tokens):
    """The law after one text, read from its beginning, with other padding."""
    law, _ = begun(lm.model(), np.pad(tokens, (0, 20 - len(tokens))).astype(np.int32), np.int32(len(tokens)), n=1)
    return jax.nn.softmax(law[0])


def test_they_are_models(lm):
    assert isinstance(lm.model(), Model)
    assert lm.model().vocab_size == lm.tokenizer.vocab_size == 5


def test_copied_and_rewound_texts_go_on_as_if_read_anew(lm):
    rng = np.random.default_rng(0)
    prompt = lm.prompt("aa")
    begin = int(prompt.length)
    texts = [list(prompt.tokens[:begin]) for _ in range(4)]
    _, memory = begun(lm.model(), prompt.tokens, prompt.length)
    for _ in range(15):
        ancestors = rng.integers(0, 4, 4)
        texts = [list(texts[i]) for i in ancestors]
        texts = [text[: max(begin, len(text) - int(rng.integers(0, 3)))] for text in texts]
        kept = np.array([len(text) for text in texts]) - begin
        tokens, active = rng.integers(0, 3, 4), (rng.random(4) < 0.8) & (kept < STEPS)
        laws, memory = advanced(lm.model(), memory, ancestors, kept, tokens, active)
        for text, token, law, goes in zip(texts, tokens, laws, active):
            if goes:
                text.append(int(token))
                np.testing.assert_allclose(jax.nn.softmax(law), after(lm, text), atol=1e-5)


def test_memory_is_counted(lm):
    prompt = lm.prompt("aa")
    _, memory = begun(lm.model(), prompt.tokens, prompt.length)
    held, columns = memory.bytes(), len(prompt.tokens) + STEPS + 1
    assert set(held) == {"used", "peak", "reserved", "dense"}
    assert float(held["reserved"]) == sum(x.nbytes for x in jax.tree.leaves(memory.columns))
    assert float(held["used"]) == pytest.approx(float(held["reserved"]) * (3 + 1) / columns)
