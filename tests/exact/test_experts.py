"""Texts of several language models have the laws that plain sums give: products, contrasts, mixtures, prompts, bytes."""

import itertools
import math

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.experts.together import LEAST
from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.tabular.symbols import tokenizer_of
from posterity.models.programs.generate import generate

LENGTH, END, START = 2, 2, 3
EXPERTS = po.tabular.ngram(["abb", "ba"], order=2), po.tabular.ngram(["aab", "bab"], order=3)
WEIGHTS = 1.0, 0.3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def law(lm, text):
    """What a tabular model says of the next token after the tokens of a text, in NumPy."""
    reader, state = lm.model().reader, 0
    for token in (reader.log_probs.shape[1] - 1, *text):
        state = reader.following[state, token]
    return np.exp(np.asarray(reader.log_probs[state], float))


def masses(score):
    """What all texts after an a weigh whose tokens weigh `score(text so far, token)`: {answer: mass}, in plain Python."""
    found = {}
    for letters in itertools.chain.from_iterable(itertools.product(range(2), repeat=n) for n in range(LENGTH + 1)):
        tokens = letters if len(letters) == LENGTH else (*letters, END)
        found["".join("ab"[i] for i in letters)] = math.prod(score((0, *tokens[:i]), token) for i, token in enumerate(tokens))
    return found


def normalised(weights):
    """The next token's probability when all tokens have these weights."""
    return lambda text, token: weights(text)[token] / weights(text).sum()


def product(text):
    return law(EXPERTS[0], text) ** WEIGHTS[0] * law(EXPERTS[1], text) ** WEIGHTS[1]


def contrast(text):
    expert, amateur = (law(lm, text) for lm in EXPERTS)
    return np.where(expert >= 0.3 * expert.max(), expert / np.maximum(amateur, LEAST) ** 0.5, 0.0)


def written(lm):
    return generate(lm, "a", max_tokens=LENGTH)


PRODUCT = po.experts.product(list(zip(EXPERTS, WEIGHTS, strict=True)))
CONTRAST = po.experts.contrast(*EXPERTS, strength=0.5, plausible=0.3)
PRIOR = np.array(WEIGHTS) / sum(WEIGHTS)


def mixed(text):
    return PRIOR[0] * law(EXPERTS[0], text) + PRIOR[1] * law(EXPERTS[1], text)


@pytest.mark.parametrize(("lm", "weights"), [(PRODUCT, product), (CONTRAST, contrast)], ids=["product", "contrast"])
def test_a_local_law_is_normalised_token_by_token_and_a_global_one_is_not(laws, lm, weights):
    kind = "product" if weights is product else "contrast"
    everywhere = masses(lambda text, token: weights(text)[token])
    laws.holds(f"experts.{kind}", po.check.same_meaning(written(lm), masses(normalised(weights))))
    laws.holds(f"experts.{kind}, globally", po.check.same_meaning(po.experts.globally(written(lm)), everywhere))
    if kind == "product":
        laws.fails("a local product taken for that of whole texts", po.check.same_meaning(written(lm), everywhere))


def test_a_likelihood_makes_the_product_of_whole_texts(laws):
    program = po.constrained(EXPERTS[0], "a", po.potentials.likelihood(EXPERTS[1], "a") ** WEIGHTS[1], max_tokens=LENGTH)
    laws.holds("likelihood of another model", po.check.same_meaning(program, masses(lambda text, token: product(text)[token])))


def test_a_mixture_of_texts_is_the_weighted_sum_of_their_laws(laws):
    parts = [masses(lambda text, token, lm=lm: law(lm, text)[token]) for lm in EXPERTS]
    expected = {text: PRIOR[0] * parts[0][text] + PRIOR[1] * parts[1][text] for text in parts[0]}
    program = written(po.experts.mixture(list(zip(EXPERTS, WEIGHTS, strict=True))))
    laws.holds("experts.mixture, of texts", po.check.same_meaning(program, expected))
    of_tokens = written(po.experts.mixture(list(zip(EXPERTS, WEIGHTS, strict=True)), of="tokens"))
    laws.holds("experts.mixture, of tokens", po.check.same_meaning(of_tokens, masses(lambda text, token: mixed(text)[token])))
    laws.fails("a mixture that forgets who wrote", po.check.same_meaning(of_tokens, expected))


def test_prompts_are_experts(laws):
    lm = EXPERTS[1]
    panel = po.experts.product([po.experts.prompted(lm, "b"), po.experts.prompted(lm, "", "b")])
    expected = masses(normalised(lambda text: law(lm, (1, *text)) * law(lm, (text[0], 1, *text[1:]))))
    laws.holds("experts.prompted", po.check.same_meaning(written(panel), expected))


def test_a_multifurcation_reward_weighs_by_its_last_or_by_every_score(laws):
    lm, rewards = EXPERTS

    def logits(text, token):
        return math.log(law(rewards, text)[token])

    for weighs in ("last", "every"):
        program = po.constrained(lm, "a", po.potentials.multifurcation(rewards, "a", strength=0.5, weighs=weighs), max_tokens=LENGTH)
        expected = {}
        for text in masses(lambda text, token: 1.0):
            tokens = ["ab".index(letter) for letter in text] + ([] if len(text) == LENGTH else [END])
            told = [(law(lm, (0, *tokens[:i]))[token], logits((0, *tokens[:i]), token)) for i, token in enumerate(tokens)]
            reward = told[-1][1] if weighs == "last" else sum(r for _, r in told)
            expected[text] = math.prod(p for p, _ in told) * math.exp(0.5 * reward)
        laws.holds(f"multifurcation, {weighs}", po.check.same_meaning(program, expected))


MERGED = LanguageModel.of(
    po.tabular.ngram([["a", "b"], ["ab"], ["ab", "a"], ["b", "ab"]], order=2).model(), tokenizer_of(["a", "b", "ab"], spaced=False), "merged"
)
SPELLED = "a", "b", "ab"


def begins(text, read=()):
    """The probability that what MERGED writes begins with a text, over all its spellings."""
    if not text:
        return 1.0
    total, p = 0.0, law(MERGED, read)
    for token, spelled in enumerate(SPELLED):
        if spelled.startswith(text):
            total += p[token]
        elif text.startswith(spelled):
            total += p[token] * begins(text[len(spelled) :], (*read, token))
    return total


def is_all(text, read=()):
    p = law(MERGED, read)
    parts = (p[token] * is_all(text[len(spelled) :], (*read, token)) for token, spelled in enumerate(SPELLED) if text and text.startswith(spelled))
    return sum(parts) if text else p[3]


def texts_of(length):
    return ["".join(letters) for n in range(length + 1) for letters in itertools.product("ab", repeat=n)]


def test_bytes_have_the_sum_over_all_spellings(laws):
    lm = po.experts.over_bytes(MERGED, beams=4)
    expected = {text[1:]: begins(text) if len(text) == 3 else is_all(text) for text in texts_of(3) if text.startswith("a")}
    expected = {text: mass / begins("a") for text, mass in expected.items() if mass > 0}
    laws.holds("experts.over_bytes", po.check.same_meaning(generate(lm, "a", max_tokens=2), expected))
    one = po.check.same_meaning(generate(po.experts.over_bytes(MERGED, beams=1), "a", max_tokens=2), expected)
    laws.fails("one spelling taken for all", one)


@pytest.mark.slow
def test_experts_of_different_tokens_multiply_over_bytes(laws):
    letters = po.tabular.ngram(["abab", "bba"], order=2)
    lm = po.experts.product([po.experts.over_bytes(MERGED, beams=4), po.experts.over_bytes(letters, beams=2)])

    def weights(text):
        own = [begins(text + byte) / begins(text) for byte in "ab"] + [is_all(text) / begins(text)]
        return np.array(own) * law(letters, ["ab".index(letter) for letter in text])[[0, 1, 2]]

    expected = {}
    for text in texts_of(2):
        share = normalised(weights)
        mass = math.prod(share(text[:i], "ab".index(letter)) for i, letter in enumerate(text)) * (1.0 if len(text) == 2 else share(text, 2))
        expected[text] = mass
    expected = {text: mass for text, mass in expected.items() if mass > 0}
    laws.holds("experts.product over bytes", po.check.same_meaning(generate(lm, "", max_tokens=2), expected))


@pytest.mark.slow
def test_smc_over_a_mixture_is_properly_weighted(laws):
    lm = po.experts.mixture(EXPERTS)
    program = po.constrained(lm, "a", po.potentials.contains("b"), max_tokens=2)
    laws.holds("smc, mixture of texts", po.check.properly_weighted(lambda key, program: po.smc(key, program, n=2, threshold=1.0), program))
