"""Programs over tabular language models have exact posteriors, and changed next-token laws with corrections mean the model's own."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.tabular import hmm, ngram, pcfg
from posterity.models.programs.generate import generate

LENGTH = 3
CHANGES = {
    "temperature": {"temperature": 2.0},
    "top-k": {"top_k": 2},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.3},
    "all": {"temperature": 0.7, "top_k": 3, "top_p": 0.95},
}
INITIAL, MOVES = [0.6, 0.4], [[0.7, 0.3], [0.2, 0.8]]
WRITES, ENDS = [[0.5, 0.4, 0.1], [0.1, 0.2, 0.7]], [0.1, 0.3]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def bigrams():
    return ngram(["abca", "cab", "bba"], order=2)


def no_c_after_a(before, token):
    return jnp.where((before == 0) & (token == 2), -jnp.inf, 0.0)


@po.program
def constrained(lm, prompt, length):
    """Texts in which a c never follows an a, a b weighs double, and that have ended."""

    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("no ac", no_c_after_a(text.last, token))
        po.factor("b", jnp.where(token == 1, math.log(2.0), 0.0))
        return text.push(token)

    text = po.scan(step, lm.start(prompt), length=length)
    po.factor("ended", jnp.where(text.ended, 0.0, -jnp.inf))
    return text.tokens


def changed_texts(correct, **change):
    """Letters drawn by a changed law, with or without what brings the model's own back."""

    @po.program
    def texts(lm, prompt):
        def step(text, _):
            law = text.next(**change)
            token = po.sample("token", law)
            if correct:
                po.factor("correction", law.correction(token))
            return text.push(token)

        return po.scan(step, lm.start(prompt), length=LENGTH).tokens

    return texts(bigrams(), bigrams().prompt("a"))


own = changed_texts(False)


def masses(step):
    """The mass of every text of up to LENGTH letters after an a, {padded tokens: mass}: a product of `step(law)[token]`, in plain Python."""
    end, automaton = 3, bigrams().model().reader
    tables = [np.exp(automaton.log_probs[automaton.following[0, before]]) for before in range(3)]
    whole = itertools.product(range(3), repeat=LENGTH)
    ended = ((*text, end) for length in range(LENGTH) for text in itertools.product(range(3), repeat=length))
    found = {}
    for text in itertools.chain(whole, ended):
        mass = math.prod(step(tables[before])[token] for before, token in zip((0, *text), text))
        if mass > 0:
            found[(4, 0, *text) + (0,) * (16 + LENGTH - 2 - len(text))] = mass
    return found


def test_the_constrained_posterior_of_a_bigram_model_is_a_plain_sum(laws):
    def weigh(law):
        return [*(law[:3] * [1, 2, 1]), law[3]]

    expected = {text: mass for text, mass in masses(weigh).items() if 3 in text and not any(pair == (0, 2) for pair in itertools.pairwise(text[1:]))}
    program = constrained(bigrams(), bigrams().prompt("a"), LENGTH)
    laws.holds("text of an n-gram", po.check.same_meaning(program, expected))


def test_the_evidence_of_a_constraint_on_a_hidden_markov_model_is_the_forward_recursions():
    lm, length = hmm(INITIAL, MOVES, WRITES, symbols="abc", end=ENDS), 6
    forward, evidence = {(s, None): INITIAL[s] for s in range(2)}, 0.0
    for _ in range(length - 1):  # the end is a token too
        written = {(s, letter): 0.0 for s in range(2) for letter in range(3)}
        for (s, before), mass in forward.items():
            for letter in range(3):
                if (before, letter) != (0, 2):
                    written[s, letter] += mass * WRITES[s][letter] * (2 if letter == 1 else 1)
        evidence += sum(mass * ENDS[s] for (s, _), mass in written.items())
        forward = {(r, letter): sum(written[s, letter] * (1 - ENDS[s]) * MOVES[s][r] for s in range(2)) for r in range(2) for letter in range(3)}
    found = po.exact(constrained(lm, lm.prompt(""), length))
    assert math.exp(found.log_evidence) == pytest.approx(evidence, rel=1e-12)


def test_the_posterior_of_a_grammars_next_words_is_the_inside_algorithms():
    # S -> S S (.3) | a (.5) | b (.2), given the text "a?b?" of four letters: its unknown letters, by the inside algorithm.
    lm = pcfg({"S": {"S S": 0.3, "a": 0.5, "b": 0.2}})
    letters = {"a": 0.5, "b": 0.2}

    def inside(text):
        return letters[text] if len(text) == 1 else sum(0.3 * inside(text[:i]) * inside(text[i:]) for i in range(1, len(text)))

    @po.program
    def completed(lm, prompt, wanted):
        def step(text, wanted):
            token = po.sample("token", text.next())
            po.factor("wanted", jnp.where(jnp.where(wanted < 0, token < 2, token == wanted), 0.0, -jnp.inf))
            return text.push(token)

        return po.scan(step, lm.start(prompt), wanted)

    a, b, end = (lm.tokenizer.encode(s)[-1] for s in ("a", "b", "<end>"))
    found = po.exact(completed(lm, lm.prompt(""), jnp.array([a, -1, b, -1, end])))
    expected = {f"a{x}b{y}": inside(f"a{x}b{y}") for x, y in itertools.product("ab", repeat=2)}
    assert math.exp(found.log_evidence) == pytest.approx(sum(expected.values()), rel=1e-12)
    for text, estimate in found.answers().items():
        assert estimate.value == pytest.approx(expected[text] / sum(expected.values()), rel=1e-11)


def smc(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


def test_smc_over_texts_is_properly_weighted(laws):
    program = constrained(bigrams(), bigrams().prompt("a"), 2)
    laws.holds("smc, text of an n-gram", po.check.properly_weighted(smc, program))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_law_is_what_it_says(laws, change):
    def law_by_sorting(law):
        q = np.asarray(law) ** (1 / CHANGES[change].get("temperature", 1.0))
        q /= q.sum()
        order = np.argsort(-q)
        keep = order[: CHANGES[change].get("top_k", 5)]
        within = np.cumsum(q[keep] / q[keep].sum())
        keep = keep[: int(np.argmax(within >= CHANGES[change].get("top_p", 1.0) - 1e-9)) + 1] if "top_p" in CHANGES[change] else keep
        keep = [i for i in keep if q[i] >= CHANGES[change].get("min_p", 0.0) * q.max()]
        return [q[i] / q[keep].sum() if i in keep else 0.0 for i in range(5)]

    laws.holds(f"text.next, {change}", po.check.same_meaning(changed_texts(False, **CHANGES[change]), masses(law_by_sorting)))


def test_the_correction_of_a_temperature_brings_back_the_models_law(laws):
    laws.holds("NextToken.correction, temperature", po.check.same_meaning(changed_texts(True, temperature=2.0), own))
    laws.fails("a temperature without its correction", po.check.same_meaning(changed_texts(False, temperature=2.0), own))


def test_the_correction_of_a_truncation_brings_back_the_models_law_on_what_is_kept(laws):
    corrected = changed_texts(True, top_k=2)

    def kept(law):
        return [p if p >= np.sort(law)[-2] else 0.0 for p in law]

    laws.holds("NextToken.correction, top-k", po.check.same_meaning(corrected, masses(kept)))
    laws.fails("truncation taken for the whole law", po.check.same_meaning(corrected, own))


def test_a_changed_law_as_a_proposal_is_its_correction(laws):
    proposed = po.propose(own, {"token": lambda text, _: text.next(temperature=1.5, top_p=0.8)})
    laws.holds("propose of a changed law", po.check.same_meaning(proposed, changed_texts(True, temperature=1.5, top_p=0.8)))


def test_models_that_remember_much_are_not_enumerated():
    lm = pcfg({"S": {"S S": 0.3, "a": 0.7}})
    with pytest.raises(ValueError, match=r"that holds \d+,\d+ numbers, and every branch would hold as many; enumeration takes up to 100,000"):
        po.exact(generate(lm, "a", max_tokens=200))


def test_texts_with_one_answer_are_one_outcome():
    lm = ngram(["a b", "a"], order=2, smoothing=0.0)  # after an a there may be a space, and then the text is cut off, or not
    found = po.check.same_meaning(generate(lm, "a", max_tokens=1), {"": 1.0})
    assert found, found


def test_generate_has_the_law_that_it_is_told():
    found = po.exact(generate(bigrams(), "a", max_tokens=LENGTH, **CHANGES["all"])).answers()
    by_hand = po.exact(changed_texts(False, **CHANGES["all"])).answers()
    written: dict[str, float] = {}
    for tokens, estimate in by_hand.items():
        ended = tokens.index(3) if 3 in tokens else 2 + LENGTH
        text = "".join("abc"[i] for i in tokens[2:ended])
        written[text] = written.get(text, 0.0) + estimate.value
    for text, estimate in found.items():
        assert estimate.value == pytest.approx(written[text], abs=1e-12)
    assert len(found) > LENGTH
