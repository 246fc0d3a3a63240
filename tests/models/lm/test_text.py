"""Texts as state components: the law of what a program samples is the model's, and the cache follows its particles.

The oracle is the decoder over whole sequences (itself compared with an independent Llama in test_decoder.py).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from numpyro import handlers
from scipy import stats

import posterity as po
from posterity.models.lm.text import NextToken
from posterity.tests.fixtures import references
from posterity.tests.fixtures.tiny_lm import END, language_model

KEY = jax.random.key(0)
STEPS = 3
LM = language_model()


def log_probabilities(lm, tokens):
    """Next-token log probabilities after every token of whole sequences, [n, tokens, vocab]."""
    return np.asarray(whole_sequences(lm, jnp.asarray(tokens)))


@jax.jit
def whole_sequences(lm, tokens):
    return jax.nn.log_softmax(lm.decoder.logits(lm.decoder(tokens)[0]))


@po.program
def spelled(lm, prompt):
    """Up to three letters, with a potential on each, in which a never follows b, and that hold a c."""

    def step(text, _):
        before = text.last
        token = po.sample("token", text.next())
        po.factor("taste", jnp.where(token == 3, 0.7, -0.2))
        po.factor("no ba", jnp.where((before == 1) & (token == 0), -jnp.inf, 0.0))
        return text.push(token)

    text = po.scan(step, lm.start(prompt), length=STEPS)
    positions = jnp.arange(len(text.tokens))
    po.factor("a c", jnp.where(jnp.any((text.tokens == 2) & (positions >= text.prompt_length) & (positions < text.length)), 0.0, -jnp.inf))
    return text


def every_string(lm, prompt):
    """The unnormalised probability of every string that `spelled` may end in, {tokens: weight}, from whole sequences."""
    strings = np.array(list(itertools.product(range(5), repeat=STEPS)))
    start = lm.tokenizer.encode(prompt)
    whole = np.concatenate([np.tile(start, (len(strings), 1)), strings], axis=1)
    logs = log_probabilities(lm, whole)[:, len(start) - 1 : -1]
    weights = {}
    for string, log in zip(strings, logs):
        ended = np.flatnonzero(string == END)
        length = ended[0] + 1 if len(ended) else STEPS
        tokens = tuple(int(token) for token in string[:length])
        pairs = itertools.pairwise((start[-1], *tokens))
        if 2 in tokens and (1, 0) not in pairs:
            weights[tokens] = np.exp(sum(log[t, token] + (0.7 if token == 3 else -0.2) for t, token in enumerate(tokens)))
    return weights


@pytest.mark.parametrize("algorithm", [po.smc, po.importance])
def test_the_law_of_a_program_is_the_models(algorithm):
    # Z_hat / Z * P(string) over 64 independent runs: unbiased for every string. Some of ~60 comparisons exceeds five
    # standard errors at fewer than 1e-4 of the seeds.
    weights = every_string(LM, "ab")
    evidence, strings = sum(weights.values()), list(weights)
    rows = jnp.array([string + (-1,) * (STEPS - len(string)) for string in strings])

    def which(text):
        generated = jnp.where(jnp.arange(STEPS) < text.generated, jax.lax.dynamic_slice(text.tokens, (text.prompt_length,), (STEPS,)), -1)
        return jnp.all(rows == generated, axis=-1)

    options = {"threshold": 1.0} if algorithm is po.smc else {}
    log_evidence, shares = references.runs(algorithm, spelled(LM, LM.prompt("ab")), which, n=200, **options)
    ratio = np.exp(log_evidence) / evidence
    assert abs(references.z_scores(ratio, 1.0)) < 4
    assert ratio.std() < 0.3
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)  # nothing but these strings
    scores = references.z_scores(ratio[:, None] * shares, np.array(list(weights.values())) / evidence)
    often = np.array(list(weights.values())) / evidence > 2e-3  # rarer ones are not Gaussian over 64 runs
    assert np.abs(scores[often]).max() < 5


@po.program
def two_texts(lm, first, second):
    """Two texts that take the same letters; every law that was drawn from is recorded. Weights differ, so particles are copied."""

    def step(carry, _):
        a, b, seen, t = carry["a"], carry["b"], carry["seen"], carry["t"]
        token = po.sample("token", a.next(temperature=2.0))
        po.factor("weight", jnp.array([1.0, -1.0, 0.5, 0.0, 0.0])[token])
        seen = seen.at[t].set(jnp.stack([a.next().logits, b.next().logits]))
        return {"a": a.push(token), "b": b.push(token), "seen": seen, "t": t + 1}

    return po.scan(step, {"a": lm.start(first), "b": lm.start(second), "seen": jnp.zeros((6, 2, 5)), "t": 0}, length=6)


@pytest.fixture(scope="module")
def copied():
    return po.smc(KEY, two_texts(LM, LM.prompt("abca"), LM.prompt("d" * 17)), n=12, threshold=1)


def test_after_resampling_every_text_has_the_logits_of_its_own_past(copied):
    assert copied.resampled[1:].sum() >= 3
    assert len(set(np.asarray(copied.eves))) < 12
    for row, (name, start) in enumerate((("a", 4), ("b", 17))):
        texts = copied.values[name]
        recorded = np.asarray(jax.nn.log_softmax(copied.values["seen"][:, :, row]))
        exact = log_probabilities(LM, texts.tokens)[:, start - 1 : start + 5]
        made = np.arange(6) < np.asarray(texts.generated)[:, None]
        np.testing.assert_allclose(recorded[made], exact[made], atol=1e-5)


def test_two_texts_in_one_carry_take_the_same_letters(copied):
    a, b = copied.values["a"], copied.values["b"]
    for i in range(12):
        written = [np.asarray(text.tokens[i, text.prompt_length[i] : text.length[i]]).tolist() for text in (a, b)]
        assert written[0] == written[1]


def test_an_end_token_ends_a_text(copied):
    texts = copied.values["a"]
    ended = 0
    for i in range(12):
        tokens = np.asarray(texts.tokens[i, 4 : texts.length[i]])
        assert END not in tokens[:-1]
        assert bool(texts.ended[i]) == (tokens[-1] == END)
        assert len(tokens) == 6 or tokens[-1] == END
        assert (np.asarray(texts.tokens[i, texts.length[i] :]) == 0).all()
        ended += tokens[-1] == END
    assert ended > 0


@po.program
def plainly(lm, prompt, length):
    def step(text, _):
        return text.push(po.sample("token", text.next()))

    return po.scan(step, lm.start(prompt), length=length)


def test_a_full_context_ends_a_text():
    lm = language_model(context=6)
    posterior = po.smc(KEY, plainly(lm, "abc", 10), n=20)
    assert int(posterior.steps) == 3
    assert posterior.values.ended.all()
    assert int(posterior.values.length.max()) == 6


def test_a_text_reads_as_what_was_generated():
    posterior = po.smc(KEY, plainly(LM, LM.prompt("ab"), STEPS), n=30)
    texts = jax.device_get(posterior.values)
    for i in range(30):
        text = jax.tree.map(lambda x, i=i: x[i], texts)
        tokens = text.tokens[2 : 2 + int(text.generated)]
        assert str(text) == "".join("abcd"[token] for token in tokens if token != END)
        assert text.last == tokens[-1]
    assert set(posterior.answers()) <= {"".join(s) for n in range(STEPS + 1) for s in itertools.product("abcd", repeat=n)}


@pytest.mark.slow
def test_a_program_with_a_text_is_a_numpyro_model():
    with handlers.trace() as sites, handlers.seed(rng_seed=1):
        text = plainly(LM, "ab", STEPS)
    written = np.asarray(text.tokens[2 : int(text.length)])
    np.testing.assert_array_equal(np.asarray(sites["token"]["value"])[: len(written)], written)
    exact = log_probabilities(LM, text.tokens[None])[0, 1 : 1 + len(written)]
    laws = sites["token"]["fn"]
    np.testing.assert_allclose(jax.nn.log_softmax(laws.logits)[: len(written)], exact, atol=1e-5)


def stepping(step, before=lambda text: text, after=lambda text: text):
    @po.program
    def program():
        return after(po.scan(step, before(LM.start("ab")), length=2))

    return program()


def push_twice(text, _):
    return text.push(0).push(1)


def next_after_push(text, _):
    return text.push(text.push(po.sample("token", text.next())).next().logits.argmax())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (stepping(push_twice), "takes one token a step"),
        (stepping(next_after_push), "a token was pushed in this step already"),
        (stepping(lambda text, _: text, before=lambda text: text.push(0)), "this text is started"),
        (stepping(lambda text, _: text, before=lambda text: [text, text.next()]), "the model runs when the scan begins"),
        (stepping(lambda text, _: text, after=lambda text: text.next()), "this is a finished text"),
        (stepping(lambda text, _: text, after=lambda text: text.push(0)), "this text is finished"),
        (stepping(lambda text, _: text, before=lambda text: text.rewind(0)), "this text is started"),
        (stepping(lambda text, _: text.rewind(0).rewind(0)), "once; this text is rewound"),
        (stepping(lambda text, _: text.rewind(0).push(0)), "this text is rewound"),
        (stepping(lambda text, _: text.push(text.next(temperature=0).logits.argmax())), "temperature must be positive, got 0"),
        (stepping(lambda text, _: text, before=lambda text: text.replace(length=1)), "copied or computed with before scan"),
        (stepping(lambda text, _: LM.start("ba")), "returned one that is started"),
        (stepping(lambda texts, _: texts[::-1], before=lambda text: [text, LM.start("ba")]), "moved a Text to the place of another"),
        (stepping(lambda texts, _: [t.push(0) for t in texts[::-1]], before=lambda text: [text, LM.start("ba")]), "moved a Text to the place of another"),
    ],
)
def test_misuse_of_a_text_is_explained(program, message):
    with pytest.raises(ValueError, match=message):
        po.smc(KEY, program, n=2)


def test_a_step_may_leave_a_text_as_it_is():
    posterior = po.smc(KEY, stepping(lambda text, _: text), n=2)
    np.testing.assert_array_equal(posterior.values.length, [2, 2])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "tiny: the prompt is empty"),
        ("a" * 33, "tiny: the prompt has 33 tokens, more than the model's context of 32"),
        ("a" * 32, "tiny: the prompt has 32 tokens, which fill the model's context of 32"),
        ("abxz", "no token for 'xz'"),
    ],
)
def test_prompts_must_fit(prompt, message):
    with pytest.raises(ValueError, match=message):
        LM.prompt(prompt)
    with pytest.raises(ValueError, match=message):
        po.smc(KEY, plainly(LM, prompt, 2), n=2)


@po.program
def wandering(lm, prompt):
    """Letters that are taken back now and then, to a place that the letter decides, with every law that was drawn from."""

    def step(carry, t):
        text, seen = carry
        token = po.sample("token", text.next())
        seen = seen.at[t].set(jnp.concatenate([jax.nn.log_softmax(text.next().logits), text.generated[None].astype(jnp.float32)]))
        po.factor("weight", jnp.array([1.0, -1.0, 0.5, 0.0, 0.0])[token])
        text = text.push(token)
        return text.rewind(jnp.where(token == 1, 0, jnp.where(token == 2, text.generated - 3, jnp.where(token == 3, t % 3, text.generated)))), seen

    return po.scan(step, (lm.start(prompt), jnp.zeros((8, 6))), jnp.arange(8))


def test_a_rewound_text_has_the_law_of_what_it_kept():
    posterior = po.smc(KEY, wandering(LM, LM.prompt("ab")), n=12, threshold=1)
    texts, seen = posterior.values
    assert posterior.resampled.sum() >= 3
    exact = log_probabilities(LM, texts.tokens)
    went_back = checked = 0
    for i in range(12):
        laws, generated = np.asarray(seen[i, :, :5]), np.asarray(seen[i, :, 5]).astype(int)
        went_back += (np.diff(generated) < 0).sum()
        made = laws.any(axis=1)
        for t in np.flatnonzero(made):
            kept = (generated[made] >= generated[t])[t:].all()
            if kept and generated[t] <= int(texts.generated[i]):
                np.testing.assert_allclose(laws[t], exact[i, 1 + generated[t]], atol=1e-5)
                checked += 1
    assert checked > 20
    assert went_back > 5


@pytest.mark.slow
def test_a_pool_for_fewer_tokens_is_enough_for_particles_that_share_their_pasts():
    @po.program
    def letters(lm, prompt, pool):
        def step(text, _):
            token = po.sample("token", text.next())
            po.factor("weight", jnp.array([1.0, -1.0, 2.0, 0.0, -5.0])[token])
            return text.push(token)

        return po.scan(step, lm.start(prompt, pool=pool), length=17)

    whole, small = (po.smc(KEY, letters(LM, LM.prompt("ab"), pool), n=6, threshold=1) for pool in (None, 96))
    np.testing.assert_array_equal(whole.values.tokens, small.values.tokens)
    held = small.values.memory()
    assert held["peak"] == whole.values.memory()["peak"] < held["reserved"] < whole.values.memory()["reserved"]
    assert held["used"] < held["dense"]
    with pytest.raises(ValueError, match=r"letters>: the pool for generated tokens is too small: .* lm.start\(prompt, pool=...\) at least [0-9]+ tokens"):
        po.smc(KEY, letters(LM, LM.prompt("ab"), 24), n=6, threshold=1)
    with pytest.raises(ValueError, match="pool must be at least 1 token, got 0"):
        LM.start("ab", pool=0)


@pytest.mark.slow
def test_particle_sets_of_many_prompts_are_those_of_each_and_the_weights_are_not_copied():
    prompts = LM.prompts(["a", "abca", "d" * 17])
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key, prompt: po.smc(key, spelled(LM, prompt), n=8, threshold=1)))
    posterior = together(keys, prompts)
    for i in range(3):
        alone = po.smc(keys[i], spelled(LM, jax.tree.map(lambda x, i=i: x[i], prompts)), n=8, threshold=1)
        np.testing.assert_array_equal(posterior.values.tokens[i], alone.values.tokens)
        np.testing.assert_allclose(posterior.log_evidence[i], alone.log_evidence, rtol=1e-4)
    kernels = {x.shape for x in jax.tree.leaves(LM.weights) if x.ndim == 2} - {LM.decoder.embed.embedding.shape}
    right_sides = [eqn.invars[1].aval.shape for eqn in equations(jax.make_jaxpr(together)(keys, prompts).jaxpr) if eqn.primitive.name == "dot_general"]
    assert kernels <= set(right_sides)
    assert not kernels & {shape[1:] for shape in right_sides}


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def test_a_prompt_may_leave_room_for_a_single_token():
    posterior = po.smc(KEY, plainly(LM, "a" * 31, 2), n=3)
    np.testing.assert_array_equal(posterior.values.length, [32, 32, 32])


def test_a_scan_of_no_steps_leaves_the_prompt():
    posterior = po.smc(KEY, plainly(LM, "ab", 0), n=2)
    assert list(posterior.answers()) == [""]


def test_tokens_that_write_a_letter():
    np.testing.assert_array_equal(LM.tokens_containing("b"), [False, True, False, False, False])
    with pytest.raises(ValueError, match="text must not be empty"):
        LM.tokens_containing("")


def test_next_tokens_are_drawn_by_their_law():
    # Pearson's chi-square on 20,000 draws of a fixed seed; a right sampler would fail at a fraction 1e-4 of the seeds.
    logits = jnp.array([-jnp.inf, 0.5, -1.0, -jnp.inf, 2.0, 0.0, -jnp.inf])
    counts = np.bincount(NextToken(logits).sample(KEY, (20_000,)), minlength=7)
    possible = np.isfinite(logits)
    assert (counts[~possible] == 0).all()
    expected = np.asarray(jax.nn.softmax(logits), float)[possible]
    assert stats.chisquare(counts[possible], 20_000 * expected / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("u", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_impossible_tokens_are_not_drawn_at_the_ends(u, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.full(shape, u))
    drawn = NextToken(jnp.array([-jnp.inf, 1.0, -jnp.inf, 0.0, -jnp.inf])).sample(KEY)
    assert int(drawn) == (1 if u == 0 else 3)


def test_impossible_tokens_are_not_drawn_where_sums_round(monkeypatch):
    # Uniforms just below every sum at an impossible token, where the sums of a large vocabulary are not monotone.
    rng = np.random.default_rng(0)
    logits = np.where(rng.random(50_000) < 0.5, -np.inf, 2 * rng.normal(size=50_000)).astype(np.float32)
    sums = np.asarray(jnp.cumsum(jax.nn.softmax(logits)))
    assert (np.diff(sums) < 0).any()
    uniforms = np.nextafter(sums[np.isneginf(logits)][::25] / sums.max(), np.float32(0))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.asarray(uniforms))
    drawn = np.asarray(NextToken(jnp.asarray(logits)).sample(KEY, uniforms.shape))
    assert np.isfinite(logits[drawn]).all()
