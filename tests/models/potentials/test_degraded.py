"""Rewards made worse on purpose: by how much, for which text, and that nothing else about them changes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.models.potentials.degraded import normal_of, shifted
from posterity.models.potentials.reward import Reward, as_reward
from posterity.models.weights.evaluate_abacus_prm import auroc

SEED = jnp.zeros((), jnp.uint32)
normal = jax.jit(normal_of)


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    """The numbers of all 4,096 texts of 12 tokens of two kinds."""
    bits = (np.arange(4096)[:, None] >> np.arange(12)) & 1
    return np.asarray(normal(jnp.asarray(bits, jnp.int32), jnp.full(4096, 12), SEED))


def test_the_noise_of_different_texts_is_normal_and_independent(normals):
    """By the tests of Kolmogorov and Smirnov, and for neighbours (texts that differ in one token) of correlation: a false alarm in 100,000 each."""
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in np.sort(normals)])
    steps = np.arange(4097) / 4096
    distance = max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max())
    assert distance < math.sqrt(-math.log(0.5e-5) / 2 / 4096)
    for bit in range(12):
        half = (np.arange(4096) >> bit) & 1 == 0
        pairs = normals[half], normals[np.arange(4096)[half] ^ (1 << bit)]
        assert abs(np.corrcoef(*pairs)[0, 1]) < 4.9 / math.sqrt(2048)  # twelve looks


def test_another_seed_is_another_noise_and_the_same_seed_the_same(normals):
    bits = jnp.asarray((np.arange(4096)[:, None] >> np.arange(12)) & 1, jnp.int32)
    others = np.asarray(normal(bits, jnp.full(4096, 12), jnp.asarray(1, jnp.uint32)))
    assert abs(np.corrcoef(normals, others)[0, 1]) < 4.4 / math.sqrt(4096)
    np.testing.assert_array_equal(normals, np.asarray(normal(bits, jnp.full(4096, 12), SEED)))


def test_the_noise_belongs_to_the_text_and_not_to_the_room_around_it():
    texts = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6], [3, 1, 4, 1, 5, 0, 0, 0], [3, 1, 4, 1, 5, 0, 0, 0], [3, 1, 4, 1, 5, 0, 0, 0], [5, 1, 4, 1, 3, 0, 0, 0]])
    one, other, shorter, longer, turned = np.asarray(normal(texts, jnp.array([5, 5, 4, 6, 5]), SEED))
    assert one == other
    assert len({one, shorter, longer, turned}) == 4
    assert normal(jnp.array([[3, 1, 4, 1, 5]]), jnp.array([5]), SEED)[0] == pytest.approx(one, abs=1e-6)  # another shape may be rounded otherwise


def test_a_shift_is_one_of_logits():
    scores = jnp.array([0.1, 0.5, 0.9])
    moved = jax.jit(shifted)(scores, jnp.array([2.0, -1.0, 0.5]))
    np.testing.assert_allclose(np.log(moved / (1 - moved)), np.log(scores / (1 - scores)) + np.array([2.0, -1.0, 0.5]), atol=1e-5)
    certain = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(jax.jit(shifted)(certain, jnp.array([7.0, -7.0])), certain)


def test_no_shift_changes_no_bit():
    scores = jnp.linspace(0.0, 1.0, 1001) ** 2
    np.testing.assert_array_equal(jax.jit(shifted)(scores, jnp.zeros(1001)), scores)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 4.0])
def test_noise_lowers_the_auroc_by_as_much_as_theory_says(normals, noise):
    """Right texts at logit 1 and wrong ones at -1: Phi(sqrt(2) / noise), within 4.4 of the largest standard errors (a false alarm in 100,000)."""
    right = np.arange(4096) % 2 == 0
    scores = np.asarray(jax.jit(shifted)(jax.nn.sigmoid(jnp.where(right, 1.0, -1.0)), jnp.asarray(noise * normals)))
    expected = 0.5 * math.erfc(-1.0 / noise)
    assert abs(auroc(scores, right) - expected) < 4.4 * 0.5 / math.sqrt(2048)


def length_reward():
    """As sure of a text as its last token's id says."""
    return as_reward(lambda text: (1.0 + text.last) / 20.0)


def test_a_degraded_reward_is_a_reward_and_with_no_noise_and_no_bias_the_same():
    text = po.load("abacus").start("7*8=")  # padded to 16 tokens
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 17, (6, 16)), jnp.int32)
    texts = jax.tree.map(lambda x: jnp.broadcast_to(x, (6, *x.shape)), text)
    texts = dataclasses.replace(texts, tokens=rows, length=texts.prompt_length + jnp.array([1, 2, 3, 4, 5, 6]))
    prompt, everyone = po.load("abacus").prompt("7*8="), jnp.ones(6, bool)

    def scores(reward, texts):
        state = reward.begin(prompt, 6, 8)
        return np.asarray(jax.jit(lambda reward, state, texts: reward.score(reward.select(state, jnp.arange(6)), texts, everyone)[0])(reward, state, texts))

    plain, same, noisy, biased = (scores(reward, texts) for reward in rewards())
    assert isinstance(rewards()[1], Reward)
    np.testing.assert_array_equal(plain, same)
    logits = [np.log(x / (1 - x)) for x in (plain, noisy, biased)]
    np.testing.assert_allclose(logits[1] - logits[0], normal(rows, texts.length, SEED), atol=1e-4)
    np.testing.assert_allclose(logits[2] - logits[0], 0.5 * np.arange(1, 7), atol=1e-4)
    order = jnp.array([3, 1, 0, 5, 4, 2])
    np.testing.assert_allclose(scores(rewards()[2], jax.tree.map(lambda x: x[order], texts)), noisy[order], atol=1e-6)


@pytest.mark.slow
def test_a_degraded_reward_weighs_steps_of_reasoning():
    lm, key = po.load("abacus"), jax.random.key(0)
    plain, worse = (po.smc(key, po.reason(lm, "7*8=", reward=reward, max_steps=3, max_step_tokens=8), n=8) for reward in rewards()[::2])
    assert not np.allclose(plain.values.scores, worse.values.scores)
    assert np.isfinite(worse.log_evidence)


def rewards():
    one = length_reward()
    return one, po.degraded(one), po.degraded(one, noise=1.0), po.degraded(one, length_bias=0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: po.degraded(length_reward(), noise=-1.0), ValueError, "noise must be a finite number of nats, at least 0, got -1.0"),
        (lambda: po.degraded(length_reward(), noise=math.inf), ValueError, "noise must be"),
        (lambda: po.degraded(length_reward(), length_bias=math.nan), ValueError, "length_bias must be"),
        (lambda: po.degraded(length_reward(), seed=-1), ValueError, "seed must lie in"),
        (lambda: po.degraded(3), TypeError, "reward must be"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
