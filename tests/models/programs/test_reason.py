"""Steps end where their delimiter does, scores are what a reward says of the text so far, and accounts are kept."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posterity as po
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.heads import Classifier
from posterity.models.potentials.reward import RewardModel, as_reward
from posterity.models.programs.extract import canonical, extractor
from posterity.models.programs.reason import POTENTIALS, log_potential
from posterity.tests.fixtures.tabular_texts import laws_along
from posterity.tests.fixtures.tiny_lm import language_model

LM = po.tabular.ngram(["abcab", "cabba", "bbcaab", "abab"], order=2)


def length(text):
    return 1.0 / (1 + text.generated)


@functools.cache
def written(delimiter="ab", max_steps=3, max_step_tokens=5, n=64):
    """Texts in steps, on the host."""
    program = po.reason(LM, "c", reward=length, delimiter=delimiter, max_steps=max_steps, max_step_tokens=max_step_tokens)
    values = jax.device_get(po.importance(jax.random.key(0), program, n=n).values)
    return [jax.tree.map(lambda x, i=i: x[i], values) for i in range(n)]


def test_steps_end_with_the_delimiter_across_tokens_or_at_the_end_or_at_the_limit():
    reasons = set()
    for value in written():
        parts, ended = value.parts(), value.finish_reason == "end"
        assert "".join(parts) == LM.tokenizer.decode(np.asarray(value.text.tokens)[int(value.text.prompt_length) : int(value.text.length)].tolist())
        for i, part in enumerate(parts):
            assert "ab" not in part[:-1]
            assert part.endswith("ab") or len(part) == 5 or (ended and i == len(parts) - 1)
        reasons.add((value.finish_reason, int(value.steps)))
        assert ended == (value.text.last in LM.tokenizer.end_ids)
        assert ended or int(value.steps) == 3
    assert len(reasons) > 2


def test_each_step_has_the_score_of_the_text_as_it_stood():
    for value in written():
        steps = int(value.steps)
        np.testing.assert_allclose(value.scores[:steps], 1 / (1 + value.ends[:steps]), rtol=1e-6)
        assert not value.scores[steps:].any()
        assert float(value.reward) == pytest.approx(float(value.scores[steps - 1]))


def test_the_probability_of_a_text_is_the_models():
    for value in written()[:8]:
        tokens = np.asarray(value.text.tokens)[: int(value.text.length)]
        laws = laws_along(LM, ["c" + str(value.text)])[0]
        first = int(value.text.prompt_length)
        expected = sum(math.log(laws[i - 1][tokens[i]]) for i in range(first, len(tokens)))
        assert float(value.log_probability) == pytest.approx(expected, abs=1e-4)


def test_what_was_done_is_counted_once_for_all_texts():
    values = written()
    work = values[0].work
    assert work.prompt == values[0].text.prompt_length
    assert work.generated == sum(int(value.text.generated) for value in values)
    assert work.calls == work.rewards == sum(int(value.steps) for value in values)
    assert work.reused == (len(values) - 1) * work.prompt  # nothing was copied


def classifier(labels):
    config = DecoderConfig(
        LM.tokenizer.vocab_size, 16, 16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, context_length=32, tied_head=False, labels=labels
    )
    decoder = Decoder(config, rngs=nnx.Rngs(1))
    found = Classifier.of(decoder, LM.tokenizer, "judge")
    return found.replace(weights=jax.tree.map(lambda x: 10.0 * x if x.ndim == 2 else x, found.weights))


@pytest.mark.parametrize("labels", [("good",), pytest.param(("bad", "good"), marks=pytest.mark.slow)])
def test_a_reward_model_reads_each_token_once_and_follows_its_texts(labels):
    judge = classifier(labels)
    program = po.reason(LM, "ab", reward=judge, delimiter="c", max_steps=3, max_step_tokens=4)
    posterior = po.smc(jax.random.key(1), program, n=8, threshold=1.0)
    assert posterior.resampled[1]
    values = jax.device_get(posterior.values)
    tokens = [values.text.tokens[i, : values.text.length[i]] for i in range(8)]
    padded = np.array([np.pad(row, (0, 32 - len(row))) for row in tokens])
    hidden = judge.decoder.logits(judge.decoder(padded)[0])
    for i, row in enumerate(tokens):
        logits = np.asarray(hidden[i, len(row) - 1])
        expected = 1 / (1 + np.exp(-logits[0])) if len(labels) == 1 else np.exp(logits[1]) / np.exp(logits).sum()
        assert float(values.scores[i, values.steps[i] - 1]) == pytest.approx(float(expected), abs=1e-4)


def test_potentials_are_those_of_the_literature():
    shares = {kind: jax.nn.softmax(log_potential(jnp.array([0.9, 0.5, 0.1]), kind)) for kind in POTENTIALS}
    np.testing.assert_allclose(shares["identity"], [0.6, 1 / 3, 0.0666667], atol=1e-6)
    np.testing.assert_allclose(shares["exp"], [0.471776, 0.316241, 0.211983], atol=1e-6)
    np.testing.assert_allclose(shares["odds"], [0.890110, 0.098901, 0.010989], atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(jnp.array([2.1, -1.2, 1.3, 0.1])), [0.616695, 0.022746, 0.277099, 0.083461], atol=1e-6)  # scores that are logits
    logits = jnp.array([2.1, -1.2, 1.3, 0.1])
    np.testing.assert_allclose(log_potential(jax.nn.sigmoid(logits), "odds"), logits, atol=1e-5)
    assert bool(jnp.all(jnp.isfinite(log_potential(jnp.array([0.0, 1.0]), "odds"))))


def test_scores_that_are_none_stop_the_run():
    program = po.reason(LM, "c", reward=lambda text: 2.0 * text.generated, delimiter=None, max_steps=2, max_step_tokens=1)
    with pytest.raises(ValueError, match="NaN"):
        po.smc(jax.random.key(0), program, n=4)


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        ("1+1\n2\n", "last_line", "2"),
        (r"so \boxed{\frac{1}{2}} or \boxed{x^{2}}.", "boxed", "x^{2}"),
        ("none", "boxed", ""),
        (r"\boxed{open", "boxed", ""),
        ("a=1, a=22", r"regex:a=(\d+)", "22"),
        ("7 8", r"regex:\d", "8"),
        ("", r"regex:\d", ""),
        ('first {"x": 1} then {"x": {"y": "z"}}', "json:x.y", "z"),
        ('{"x": [1, 2]}', "json:x", "[1, 2]"),
        ('{"x": ', "json:x", ""),
        (r"\boxed{0.5}", "boxed+sympy", "1/2"),
    ],
)
def test_answers_are_read_by_name(text, rule, answer):
    assert extractor(rule)(text) == answer
    assert extractor(rule) == extractor(rule)  # so that the same name compiles nothing anew


def test_equal_expressions_are_one_answer_and_nothing_is_executed():
    for together in (["1/2", "0.5", r"\frac{1}{2}", "50%"], ["x^2-1", "(x-1)*(x+1)"], [r"2\sqrt{2}".replace("2\\", "2*\\"), "sqrt(8)"], ["1,000", "10^3"]):
        assert len({canonical(text) for text in together}) == 1
    assert len({canonical(text) for text in ("1/2", "1/3", "x", "y", "")}) == 5
    for hostile in ("__import__('os').getcwd()", "9**9**9", "().__class__", "lambda: 0", "x" * 20_000, "(" * 5_000, "1/0", "x^(10^9)"):
        assert canonical(hostile)  # comes back, whatever it is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"potential": "logit"}, "potential must be one of identity, exp, odds"),
        ({"rule": "sum"}, "rule must be one of product, telescoped, prefix"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_step_tokens": 1.5}, "max_step_tokens"),
        ({"delimiter": ""}, "delimiter"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"sharpness": math.nan}, "sharpness"),
        ({"temperature": -1.0}, "temperature"),
        ({"extract": "box"}, "extract must be one of last_line"),
        ({"extract": "regex:("}, "no regular expression"),
        ({"extract": "regex:"}, "extract"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        po.reason(LM, "c", **options)


def test_rewards_that_are_none_are_refused():
    with pytest.raises(TypeError, match="reward must be"):
        po.reason(LM, "c", reward=0.5)
    with pytest.raises(ValueError, match="other tokens"):
        po.reason(language_model(), "c", reward=RewardModel(classifier(("good",))))
    with pytest.raises(ValueError, match="context"):
        po.reason(LM, "ab", reward=classifier(("good",)))
    reward = as_reward(length)
    assert as_reward(reward) is reward


@pytest.mark.parametrize("limit", ["tokens", "calls", "rewards"])
def test_limits_hold_for_every_value_and_say_so(limit):
    program = po.reason(LM, "c", reward=length, delimiter="ab", max_steps=3, max_step_tokens=5)
    run = jax.jit(lambda program: po.importance(jax.random.key(0), program, n=8).values)
    free = run(program.within()).work
    whole = {"tokens": int(free.prompt[0] + free.generated[0]), "calls": int(free.calls[0]), "rewards": int(free.rewards[0])}[limit]
    for most in itertools.chain(range(0, whole, 7), (whole - 1, whole, whole + 1)):
        values = run(program.within(**{limit: most}))
        spent = {"tokens": values.work.prompt + values.work.generated, "calls": values.work.calls, "rewards": values.work.rewards}[limit]
        assert int(spent[0]) <= most or (limit == "tokens" and int(values.work.generated[0]) == 0)
        assert bool(jnp.all(values.complete)) == (most >= whole)


def test_a_pool_that_is_too_small_is_told_and_one_that_suffices_changes_nothing():
    lm = language_model()
    reason = lambda pool: po.reason(lm, "a", reward=length, delimiter=None, max_steps=3, max_step_tokens=4, pool=pool)  # noqa: E731
    whole, enough = (po.smc(jax.random.key(0), reason(pool), n=16) for pool in (None, 176))
    np.testing.assert_array_equal(whole.values.text.tokens, enough.values.text.tokens)
    assert whole.values.text.memory()["reserved"] > enough.values.text.memory()["reserved"]
    for run in (po.smc, po.search.best_of_n):
        with pytest.raises(ValueError, match=r"the pool for generated tokens is too small: .* pool=\.\.\.\) at least [0-9]+ tokens"):
            run(jax.random.key(0), reason(8), n=16)
