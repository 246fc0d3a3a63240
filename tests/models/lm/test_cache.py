"""The genealogical cache against recomputing every text from scratch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posterity.models.lm.cache import CachedDecoder
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.next_token import NextToken

VOCAB, PROMPT, N, STEPS = 11, 6, 5, 12
LLAMA = DecoderConfig(VOCAB, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, context_length=64)
SHALLOW = dataclasses.replace(LLAMA, num_layers=1)
WINDOWED = DecoderConfig(VOCAB, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, context_length=64, windows=(None, 5), attention_softcap=2.0)


@functools.cache
def model(config: DecoderConfig, **options: int) -> tuple:
    """A decoder with weights far from uniform, and its compiled start, advance and recomputation."""
    decoder = Decoder(config, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(decoder)
    weights = jax.tree.map(lambda x: 12.0 * x if x.ndim == 2 else x, weights)

    def cached(weights):
        return CachedDecoder(nnx.merge(graph, weights), **options)

    start = jax.jit(lambda weights, tokens, length: cached(weights).start(tokens, length, N, STEPS))
    advance = jax.jit(lambda weights, memory, tokens, active: cached(weights).advance(memory, tokens, active))

    @jax.jit
    def recomputed(weights, tokens, lengths):
        decoder = nnx.merge(graph, weights)
        return decoder.logits(decoder(tokens)[0][jnp.arange(tokens.shape[0]), lengths - 1])

    return tuple(functools.partial(f, weights) for f in (start, advance, recomputed))


@nnx.jit
def logits_of(decoder, tokens):
    return decoder.logits(decoder(tokens)[0])


@jax.jit
def sampled(logits, key):
    return NextToken(logits).sample(key)


@jax.jit
def moved(memory, ancestors, lengths):
    return memory.select(ancestors).rewind(lengths)


def follow_a_genealogy(seed: int, config: DecoderConfig, page: int, events: int) -> None:
    """Random tokens drawn from the law, rows that wait, ancestors and rewinds: the same logits, and tokens, as from whole sequences."""
    start, advance, recomputed = model(config, page=page)
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, PROMPT + 1))
    tokens = np.zeros((N, PROMPT + STEPS), np.int32)
    tokens[:, :length] = rng.integers(VOCAB, size=length)
    logits, memory = start(tokens[0, :PROMPT], length)
    lengths = np.full(N, length)
    np.testing.assert_allclose(logits, recomputed(tokens, lengths), atol=1e-4)
    logits = np.array(logits)
    for event in range(events):
        active = (rng.random(N) < 0.8) & (lengths < length + STEPS)
        key = jax.random.fold_in(jax.random.key(seed), event)
        new = np.asarray(sampled(logits, key))
        np.testing.assert_array_equal(new, sampled(recomputed(tokens, lengths), key))
        tokens[np.flatnonzero(active), lengths[active]] = new[active]
        lengths = lengths + active
        found, memory = advance(memory, new, active)
        exact = recomputed(tokens, lengths)
        np.testing.assert_allclose(found[active], exact[active], atol=1e-4)
        logits = np.where(active[:, None], found, logits)
        if rng.random() < 0.5:
            ancestors = rng.integers(N, size=N)
            tokens, lengths, logits = tokens[ancestors], lengths[ancestors], logits[ancestors]
            back = np.where(rng.random(N) < 0.3, rng.integers(1, STEPS, size=N), STEPS)
            cut = (lengths - length > back) & (lengths > length)
            lengths = np.where(cut, length + back, lengths)
            tokens = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
            # The last token is taken in again: that gives the logits after it.
            memory = moved(memory, ancestors, lengths - length - cut)
            found, memory = advance(memory, tokens[np.arange(N), lengths - 1], cut)
            logits = np.where(cut[:, None], found, logits)
            np.testing.assert_allclose(logits, recomputed(tokens, lengths), atol=1e-4)


@pytest.mark.parametrize(("config", "page"), [(LLAMA, 1), (WINDOWED, 3)], ids=["llama-1", "windowed-3"])
def test_the_shared_cache_gives_the_logits_and_tokens_of_recomputing_every_text(config, page):
    for seed in range(10):
        follow_a_genealogy(seed, config, page, events=10)


@pytest.mark.slow
@pytest.mark.parametrize("page", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("config", [LLAMA, WINDOWED], ids=["llama", "windowed"])
def test_two_hundred_genealogies_give_the_logits_and_tokens_of_recomputing_every_text(config, page):
    for seed in range(20 * page, 20 * page + 20):
        follow_a_genealogy(seed, config, page, events=24)


def test_memory_follows_the_genealogy():
    start, advance, _ = model(LLAMA, page=1)
    _, memory = start(np.arange(PROMPT), PROMPT)
    token = 2 * 2 * 2 * 4 * 4  # keys and values, layers, kv heads, size, float32
    assert float(memory.bytes()["used"]) == PROMPT * token
    for _ in range(4):
        _, memory = advance(memory, np.arange(N), np.ones(N, bool))
    assert float(memory.bytes()["used"]) == (PROMPT + 4 * N) * token
    memory = moved(memory, np.zeros(N, int), np.full(N, STEPS))
    assert float(memory.bytes()["used"]) == (PROMPT + 4) * token
    _, memory = advance(memory, np.arange(N), np.ones(N, bool))
    held = {name: float(value) for name, value in memory.bytes().items()}
    assert held["used"] == (PROMPT + 4 + N) * token
    assert held["peak"] == (PROMPT + 4 * N) * token
    assert held["dense"] == N * (PROMPT + 5) * token
    assert held["reserved"] == (PROMPT + N * STEPS) * token


def test_a_pool_that_is_too_small_stands_still_and_says_what_it_lacks():
    start, advance, _ = model(LLAMA, page=1, pool=N + 2)
    _, memory = start(np.arange(PROMPT), PROMPT)
    _, memory = advance(memory, np.arange(N), np.ones(N, bool))
    assert float(memory.bytes()["lacking"]) == 0
    _, after = advance(memory, np.arange(N), np.ones(N, bool))
    token = float(after.bytes()["token"])
    assert float(after.bytes()["lacking"]) == (N - 2) * token
    assert float(after.bytes()["used"]) == float(memory.bytes()["used"])


def test_a_long_prompt_goes_through_in_chunks(monkeypatch):
    monkeypatch.setattr("posterity.models.lm.cache.CHUNK", 4)
    start, _, recomputed = model.__wrapped__(WINDOWED)
    tokens = np.random.default_rng(0).integers(VOCAB, size=(N, 23))
    for length in (1, 4, 5, 23):
        logits, memory = start(tokens[0], length)
        np.testing.assert_allclose(logits[0], recomputed(tokens, np.full(N, length))[0], atol=1e-4)
        assert memory.prompt[0].keys.shape == (2, 4, 24)


def test_the_few_texts_that_are_left_are_computed_alone_and_right():
    n, decoder = 32, Decoder(SHALLOW, rngs=nnx.Rngs(1))

    @nnx.jit
    def after(decoder, tokens, active):
        cached = CachedDecoder(decoder, page=2)
        _, memory = cached.start(jnp.arange(4), jnp.asarray(4), n, 4)
        found = []
        for t in range(3):
            logits, memory = cached.advance(memory, tokens[:, 4 + t], active[t])
            found.append(logits)
        lengths = 4 + jnp.cumsum(jnp.stack(active), axis=0)
        return jnp.stack(found), lengths, memory.pages.lengths

    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.tile(np.arange(4), (n, 1)), rng.integers(VOCAB, size=(n, 3))], axis=1)
    active = [np.ones(n, bool), rng.permutation(n) < 8, np.zeros(n, bool)]
    active[2][np.flatnonzero(active[1])[:5]] = True
    found, lengths, held = after(decoder, tokens, active)
    np.testing.assert_array_equal(held, lengths[-1] - 4)
    exact = np.asarray(logits_of(decoder, tokens))
    for t in range(3):
        rows = np.flatnonzero(active[t])
        np.testing.assert_allclose(found[t][rows], exact[rows, 4 + t], atol=1e-5)


def test_many_prompts_together_are_computed_once_and_not_in_every_number():
    n, decoder = 32, Decoder(SHALLOW, rngs=nnx.Rngs(1))
    graph, weights = nnx.split(decoder)
    letters = np.arange(n) % VOCAB

    def after(tokens, length, active):
        cached = CachedDecoder(nnx.merge(graph, weights), page=2)
        _, memory = cached.start(tokens, length, n, 4)
        _, memory = cached.advance(memory, letters, active | True)
        return cached.advance(memory.select(jnp.arange(n) // 2), letters, active)[0]

    prompts, lengths = np.random.default_rng(0).integers(VOCAB, size=(2, 7)), np.array([4, 7])
    active = np.arange(n) < np.array([[5], [n]])
    together = jax.vmap(after)
    assert " cond[" in str(jax.make_jaxpr(after)(prompts[0], lengths[0], active[0]))
    assert " cond[" not in str(jax.make_jaxpr(together)(prompts, lengths, active))
    found = jax.jit(together)(prompts, lengths, active)
    for i, length in enumerate(lengths):
        pushed = np.stack([letters[np.arange(n) // 2], letters], axis=1)
        whole = np.concatenate([np.tile(prompts[i, :length], (n, 1)), pushed], axis=1)
        exact = logits_of(decoder, whole)[:, -1]
        np.testing.assert_allclose(found[i][active[i]], exact[active[i]], atol=1e-5)


def test_more_copies_than_there_were_texts_get_a_larger_pool():
    start, advance, recomputed = model(LLAMA, page=1, pool=2 * N)
    first = np.random.default_rng(0).integers(VOCAB, size=PROMPT)
    _, memory = start(first, PROMPT)
    _, memory = advance(memory, np.arange(N), np.ones(N, bool))
    twice = np.repeat(np.arange(N), 2)
    logits, after = advance(memory.select(twice), np.arange(2 * N), np.ones(2 * N, bool))
    assert float(after.bytes()["lacking"]) == 0
    tokens = np.concatenate([np.tile(first, (2 * N, 1)), twice[:, None], np.arange(2 * N)[:, None]], axis=1)
    np.testing.assert_allclose(logits, recomputed(tokens, np.full(2 * N, PROMPT + 2)), atol=1e-4)


def test_texts_of_many_prompts_go_through_the_decoder_together_and_are_each_its_own(monkeypatch):
    """Random tokens, waiting, copies and rewinds within three prompts of unlike lengths, four texts at a time: logits as of whole sequences."""
    monkeypatch.setattr("posterity.models.lm.cache.TOGETHER", 4)
    prompts, (graph, weights) = 3, nnx.split(Decoder(WINDOWED, rngs=nnx.Rngs(2)))
    weights = jax.tree.map(lambda x: 12.0 * x if x.ndim == 2 else x, weights)
    cached = lambda weights: CachedDecoder(nnx.merge(graph, weights), page=2)  # noqa: E731
    start = jax.jit(jax.vmap(lambda weights, tokens, length: cached(weights).start(tokens, length, N, STEPS), (None, 0, 0)))
    advance = jax.jit(jax.vmap(lambda weights, *of_each: cached(weights).advance(*of_each), (None, 0, 0, 0)))
    rng, lengths = np.random.default_rng(0), np.broadcast_to([[2], [6], [3]], (prompts, N)).copy()
    tokens = np.zeros((prompts, N, PROMPT + STEPS), np.int32)
    tokens[:, :, :PROMPT] = rng.integers(VOCAB, size=(prompts, 1, PROMPT))
    _, memory = start(weights, tokens[:, 0, :PROMPT], lengths[:, 0])
    begun, rows = lengths.copy(), np.arange(prompts)[:, None]
    whole = lambda tokens: logits_of(nnx.merge(graph, weights), tokens.reshape(prompts * N, -1))  # noqa: E731
    for event in range(10):
        active, new = rng.random((prompts, N)) < [0.9, 0.1, 0.6][event % 3], rng.integers(2, size=(prompts, N))  # of two tokens: many texts are the same
        active &= np.array([[True], [event != 4], [event < 6]])
        tokens[(*np.nonzero(active), lengths[active])] = new[active]
        lengths += active
        found, memory = advance(weights, memory, new, active)
        exact = np.asarray(whole(tokens)).reshape(prompts, N, -1, VOCAB)[rows, np.arange(N), lengths - 1]
        np.testing.assert_allclose(np.asarray(found)[active], exact[active], atol=1e-4)
        np.testing.assert_array_equal(memory.pages.lengths, lengths - begun)
        ancestors = np.sort(rng.integers(N, size=(prompts, N)))
        tokens, lengths = tokens[rows, ancestors], lengths[rows, ancestors]
        shorter = np.maximum(lengths - (rng.random((prompts, N)) < 0.2), begun)
        memory, lengths = jax.vmap(moved)(memory, ancestors, shorter - begun), shorter
    assert (np.asarray(memory.pages.counts) > 1).any()
