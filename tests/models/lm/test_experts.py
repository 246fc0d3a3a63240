"""Several language models as one: memories that follow particles, who wrote what, and members that do not go together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.models.programs.generate import generate
from posterity.models.programs.reason import reason
from posterity.tests.fixtures import tiny_lm

LETTERS = po.tabular.ngram(["abca", "cab"], order=2)


def panels():
    a, b = tiny_lm.language_model(0), tiny_lm.language_model(1)
    return {
        "product of decoders": lambda: po.experts.product([(a, 0.7), po.experts.prompted(b, "ca")]),
        "mixture of texts": lambda: po.experts.mixture([(LETTERS, 0.7), po.experts.prompted(LETTERS, "", "b")]),
        "over bytes": lambda: po.experts.over_bytes(LETTERS, beams=2),
    }


@jax.jit
def start(model, prompt):
    return model.start(prompt.tokens, prompt.length, 3, 4)


@jax.jit
def advance(model, memory, tokens):
    return model.advance(memory, tokens, jnp.ones(tokens.shape, bool))


def read(lm, rows, moves=None):
    """Log probabilities after the tokens `rows` [3, t]; `moves` change the memory before its key's token."""
    logits, memory = start(lm.model(), lm.prompt("ab"))
    for t, tokens in enumerate(np.transpose(rows)):
        memory = (moves or {}).get(t, lambda memory: memory)(memory)
        logits, memory = advance(lm.model(), memory, jnp.asarray(tokens, jnp.int32))
    return np.asarray(jax.nn.log_softmax(logits))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if "decoders" in name else name for name in panels()])
def test_what_is_remembered_follows_the_texts(name):
    lm = panels()[name]()
    a, b, c = (97, 98, 99) if name == "over bytes" else (0, 1, 2)
    moved = read(lm, [[c, a, c], [a, b, c], [b, a, b]], {1: lambda memory: memory.select(jnp.array([1, 1, 0]))})
    np.testing.assert_allclose(moved, read(lm, [[a, a, c], [a, b, c], [c, a, b]]), atol=1e-5)
    if name == "over bytes":
        with pytest.raises(ValueError, match="cannot be rewound"):
            start(lm.model(), lm.prompt("ab"))[1].rewind(jnp.zeros(3, jnp.int32))
    else:  # back to one token less than are wanted, and the last of these once more
        again = read(lm, [[a, b, b, c], [a, b, b, c], [c, a, a, b]], {2: lambda memory: memory.rewind(jnp.ones(3, jnp.int32))})
        np.testing.assert_allclose(again, read(lm, [[a, b, c], [a, b, c], [c, a, b]]), atol=1e-5)


def test_a_mixture_does_not_guess_about_a_token_that_it_did_not_read():
    lm = panels()["mixture of texts"]()
    found = read(lm, [[1, 2, 0]] * 3, {2: lambda memory: memory.rewind(jnp.zeros(3, jnp.int32))})
    assert np.isnan(found).all()


@pytest.mark.slow
def test_authors_are_told_by_bayes_rule():
    others = po.tabular.ngram(["abca", "cab", "aaaa", "bb"], order=2)
    lm = po.experts.mixture([(LETTERS, 3.0), others])
    texts = po.importance(jax.random.key(0), generate(lm, "", max_tokens=4), n=8).values
    by = np.exp(np.stack([po.experts.log_probs(each, texts) for each in (LETTERS, others)], axis=-1)) * [0.75, 0.25]
    np.testing.assert_allclose(po.experts.authors(lm, texts), by / by.sum(axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(np.exp(po.experts.log_probs(lm, texts)), by.sum(axis=-1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture of texts", "over bytes"])
def test_several_models_reason_as_one(name):
    lm = panels()[name]()
    values = po.smc(jax.random.key(0), reason(lm, "a", reward=lambda text: text.generated / 9, delimiter="c", max_steps=3, max_step_tokens=3), n=8).values
    np.testing.assert_allclose(values.log_probability, po.experts.log_probs(lm, values.text), atol=1e-4)
    assert len(np.unique(np.asarray(values.log_probability))) > 2


def test_experts_with_no_token_in_common_end_the_text_and_weigh_nothing_globally():
    lm = po.experts.product([po.tabular.ngram([text, text[::-1]], order=3, smoothing=0) for text in ("xyx", "xyy")])
    local = generate(lm, "xy", max_tokens=1)  # one goes on with x, the other with y
    assert list(po.exact(local).answers()) == [""]
    assert po.exact(po.experts.globally(local)).log_evidence == -np.inf


def test_prompts_of_ones_own_are_read_as_one_text():
    lm = po.experts.prompted(LETTERS, "ab", "a")
    np.testing.assert_array_equal(start(lm.model(), lm.prompt("c"))[0], start(LETTERS.model(), LETTERS.prompt("abca"))[0])
    assert lm.context_length == LETTERS.context_length - 4


OTHER = po.tabular.ngram(["abca", "cad"], order=2)
TURNED = po.tabular.ngram(["bacb"], order=2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: po.experts.product([LETTERS, OTHER]), r"product: ngram and ngram have different vocabularies: 5 and 6 tokens; experts.over_bytes"),
        (lambda: po.experts.mixture([LETTERS, TURNED]), r"mixture: .* token 0 is b'a' in one and b'b' in the other"),
        (lambda: po.experts.contrast(LETTERS, OTHER), "contrast: ngram and ngram have different vocabularies"),
        (lambda: po.constrained(LETTERS, "a", po.potentials.likelihood(OTHER, "a")), "the model of the potential has another vocabulary: 5 and 6 tokens"),
        (
            lambda: po.constrained(tiny_lm.language_model(), "a", po.potentials.likelihood(tiny_lm.language_model(), "ab" * 12), max_tokens=12),
            "without room for 12",
        ),
        (lambda: po.experts.product([]), "product: give at least one language model"),
        (lambda: po.experts.product([(LETTERS, -1.0)]), "the weight of ngram must be positive and finite, got -1.0; `contrast` takes"),
        (lambda: po.experts.contrast(LETTERS, LETTERS, strength=-1.0), "strength must be from 0 on"),
        (lambda: po.experts.contrast(LETTERS, LETTERS, plausible=2.0), r"plausible must lie in \[0, 1\], got 2.0"),
        (lambda: po.experts.mixture([LETTERS], of="words"), "of must be 'texts' or 'tokens', got 'words'"),
        (lambda: po.experts.over_bytes(LETTERS, beams=0), "beams must be a whole number from 1 on, got 0"),
        (lambda: po.experts.over_bytes(tiny_lm.language_model()), "tiny needs a prompt of its own, `before`"),
        (lambda: po.experts.prompted(tiny_lm.language_model(), "ab" * 16), "have 32 tokens, which leave no room in the context of tiny, 32"),
        (lambda: po.exact(po.experts.globally(generate(LETTERS, "a", max_tokens=1))), "globally: ngram is no product, contrast or mixture"),
        (lambda: po.experts.authors(po.experts.product([LETTERS]), None), "is no mixture of texts"),
        (lambda: po.potentials.multifurcation(LETTERS, "a", strength=0.0), "strength must be positive"),
        (lambda: po.potentials.multifurcation(LETTERS, "a", weighs="all"), "weighs must be 'last' or 'every', got 'all'"),
    ],
)
def test_what_does_not_go_together_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
