"""Programs of a server's steps mean what the same program means in this process."""

import math

import jax
import numpy as np
import pytest

import posterity as po
from posterity.models.programs.generate import generate

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def local():
    return po.tabular.ngram(["aab\n", "ab\nb", "ba\nab\n", "b"], order=2, smoothing=0.3)


@pytest.fixture(scope="module")
def lm(local):
    with po.remote.serve(local).start() as server:
        lm = po.load(f"openai:{server.url}")
        yield lm
        lm.close()


def weight(text, whole):
    """Of a whole text; before it is whole, a guess that steers."""
    return 0.7 * text.count("b") - 0.2 * len(text) if whole else 0.4 * text.count("b")


@pytest.fixture(scope="module")
def exact(local):
    """All texts of at most 2 lines of at most 3 characters, with their probabilities, by the token-level program of this process."""
    texts = po.exact(generate(local, "a", max_tokens=6)).answers(lambda text: (str(text), bool(text.ended)))
    shares: dict[str, float] = {}
    for (text, _), estimate in texts.items():
        shares[cut(text)] = shares.get(cut(text), 0.0) + estimate.value
    return shares


def bs(text):
    return min(text.count("b"), 2)


def cut(text):
    """The part that two steps write: each up to a line's end, or three characters."""
    written = ""
    for _ in range(2):
        rest = text[len(written) :]
        written += rest[: min(rest.find("\n") + 1 or 3, 3)]
    return written


@pytest.mark.parametrize("infer", [po.importance, po.smc])
def test_the_posterior_is_that_of_all_texts_enumerated(lm, exact, infer):
    """Evidence and answers of 100 particles, within 4.4 standard errors (a false alarm in 20,000 each)."""
    evidence = sum(share * math.exp(weight(text, True)) for text, share in exact.items())
    found = infer(KEY, po.remote.steps(lm, "a", max_steps=2, max_step_tokens=3, potential=weight, extract=bs), n=100)
    assert abs(float(found.log_evidence) - math.log(evidence)) < 4.4 * float(found.log_evidence_error)
    for number, (share, error) in found.answers().items():
        expected = sum(share * math.exp(weight(text, True)) for text, share in exact.items() if bs(text) == number)
        assert abs(share - expected / evidence) < 4.4 * error


@pytest.mark.slow
def test_a_program_that_takes_ends_of_texts_for_stop_strings_is_refuted(lm, exact, monkeypatch):
    """The mistake of clients that read `finish_reason` alone: they go on with texts that had ended."""
    begin = po.remote.Remote.begin

    async def blind(self, prompt, **options):
        completion = await begin(self, prompt, **options)
        return completion._replace(finish="stop") if completion.finish == "eos" else completion

    def off():
        """By how many standard errors the mean length of 900 texts is off."""
        found = po.importance(KEY, po.remote.steps(lm, "a", max_steps=2, max_step_tokens=3), n=900).values
        lengths = np.array([len(str(found.table[int(i)])) for i in np.asarray(found.number)])
        expected = sum(share * len(text) for text, share in exact.items())
        return abs(lengths.mean() - expected) / (lengths.std() / 30)

    assert off() < 4.4
    monkeypatch.setattr(po.remote.Remote, "begin", blind)
    assert off() > 4.4


def test_an_end_of_text_ends_a_text_and_a_stop_string_does_not(lm):
    found = po.importance(KEY, po.remote.steps(lm, "a", max_steps=4, max_step_tokens=100), n=12)
    texts = [found.values.table[int(i)] for i in np.asarray(found.values.number)]
    ends = {written.finish for written in texts}
    assert ends >= {"eos", "stop"}
    for written in texts:
        assert written.ended
        assert written.text.count("\n") == written.steps - (written.finish != "stop")
        assert written.finish == "eos" or written.steps == 4


def test_log_probabilities_and_tokens_add_up_over_steps(lm, local):
    found = po.importance(KEY, po.remote.steps(lm, "a", max_steps=3, max_step_tokens=4), n=5)
    automaton = local.model().reader
    for i in np.asarray(found.values.number):
        written, state, total = found.values.table[int(i)], 0, 0.0
        ids = local.tokenizer.encode("a" + written.text) + list(local.tokenizer.end_ids) * (written.finish == "eos")
        for place, token in enumerate(ids):
            total += float(automaton.log_probs[state, token]) if place >= len(local.tokenizer.encode("a")) else 0.0
            state = int(automaton.following[state, token])
        assert written.log_prob == pytest.approx(total, abs=1e-4)
        assert written.tokens == len(ids) - len(local.tokenizer.encode("a"))


def test_a_potential_may_be_a_coroutine_and_a_bar_may_be_shown(lm, capsys):
    async def later(text, whole):
        return weight(text, whole)

    one, other = (po.smc(KEY, po.remote.steps(lm, "a", max_steps=2, max_step_tokens=3, potential=p), n=6, progress=True) for p in (weight, later))
    assert float(one.log_evidence) == float(other.log_evidence)
    assert "of at most 2 steps" in capsys.readouterr().err or one.steps == 2


def test_answers_are_what_the_model_or_the_caller_reads_in_a_text(lm):
    program = po.remote.steps(lm, "a", max_steps=2, max_step_tokens=3)
    assert all(answer == answer.strip() for answer in po.importance(KEY, program, n=8).answers())
    lengths = po.importance(KEY, po.remote.steps(lm, "a", max_steps=2, max_step_tokens=3, extract=lambda text: str(len(text))), n=8).answers()
    assert lengths.keys() <= {str(i) for i in range(7)}


def test_a_verifier_weighs_whole_texts_by_their_scores(lm):
    verifier = po.potentials.verifier(lambda text: 0.25 if "b" in text else 0.0)
    found = po.importance(KEY, po.remote.steps(lm, "a", max_steps=2, max_step_tokens=3, potential=verifier), n=12)
    right = [bool("b" in str(found.values.table[int(i)])) for i in np.asarray(found.values.number)]
    assert 0 < sum(right) < 12
    assert float(found.log_evidence) == pytest.approx(math.log(0.25 * sum(right) / 12), abs=1e-5)
    assert np.array_equal(np.isfinite(found.log_weights), right)
