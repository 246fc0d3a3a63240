"""Mamba-2 as a model of texts: its memory is a state of constant size. (Its logits are compared with `transformers` in test_families.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posterity as po
from posterity.models.lm import huggingface
from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.model import Model
from posterity.models.lm.recurrent import Mamba2, Mamba2Config
from posterity.tests.fixtures.families import CASES, TOKENS, write

PROMPT = jnp.array([*TOKENS[:5], 9, 9, 9])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return huggingface.load(write(tmp_path_factory.mktemp("mamba"), CASES["Mamba-2"]))


@pytest.fixture(scope="module")
def model(loaded) -> Mamba2:
    return loaded[0]


@nnx.jit
def start(model, prompt, length):
    return model.start(prompt, length, 3, 10)


@nnx.jit
def advance(model, memory, tokens, active):
    return model.advance(memory, tokens, active)


def test_it_is_a_model(model):
    assert isinstance(model, Model)


def test_its_memory_does_not_grow_with_the_text(model):
    short, long = (nnx.eval_shape(lambda model, prompt=prompt: start(model, prompt, jnp.array(5))[1], model) for prompt in (PROMPT, jnp.tile(PROMPT, 400)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), short) == jax.tree.map(lambda x: (x.shape, x.dtype), long)
    per_layer = 3 * (3 * (64 + 2 * 2 * 6) + 8 * 8 * 6) * 4  # texts, last inputs and sums, float32
    assert int(short.bytes()["used"]) == 2 * per_layer
    many = nnx.eval_shape(lambda model: model.start(PROMPT, jnp.array(5), 10**6, 10)[1], model)
    assert float(many.bytes()["used"]) == pytest.approx(2 * per_layer / 3 * 10**6)  # more than int32 counts


def test_what_a_prompt_is_padded_with_does_not_matter(model):
    (one, memory), (other, same) = (start(model, PROMPT.at[5:].set(padding), jnp.array(5)) for padding in (3, 30))
    jax.tree.map(np.testing.assert_array_equal, (one, memory), (other, same))


def test_selected_texts_go_on_as_their_ancestors_would_and_resting_ones_stand_still(model):
    _, memory = start(model, PROMPT, jnp.array(5))
    _, memory = advance(model, memory, jnp.array([1, 2, 3]), jnp.ones(3, bool))
    expected, _ = advance(model, memory, jnp.array([7, 8, 9]), jnp.ones(3, bool))
    ancestors = jnp.array([2, 2, 0])
    _, rested = advance(model, memory.select(ancestors), jnp.array([5, 5, 5]), jnp.zeros(3, bool))
    found, _ = advance(model, rested, jnp.array([7, 8, 9])[ancestors], jnp.ones(3, bool))
    np.testing.assert_array_equal(found, expected[ancestors])


def test_a_state_cannot_be_rewound(model):
    _, memory = start(model, PROMPT, jnp.array(5))
    with pytest.raises(ValueError, match="a recurrent model keeps no past to return to"):
        memory.rewind(jnp.zeros(3, jnp.int32))


def test_it_writes_texts_under_resampling_as_any_language_model(loaded):
    lm = LanguageModel.of(*loaded, name="mamba")
    prompt = "".join(chr(ord("A") + token) for token in TOKENS[:5])

    @po.program
    def texts(lm, prompt):
        def step(text, _):
            token = po.sample("token", text.next())
            po.factor("odd tokens are rare", jnp.where(token % 2 == 1, -2.0, 0.0))
            return text.push(token)

        return po.scan(step, lm.start(prompt), length=8)

    posterior = po.smc(jax.random.key(0), texts(lm, lm.prompt(prompt)), n=16, threshold=1.0)
    tokens = np.asarray(posterior.values.tokens)[:, 5:13]
    assert len({tuple(row) for row in tokens}) > 1
    assert np.mean(tokens % 2) < 0.35
    assert not np.isnan(posterior.log_evidence)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_groups": 3}, r"num_heads \(8\) must be a multiple of num_groups \(3\)"),
        ({"state_size": 0}, "state_size must be at least 1, got 0"),
        ({"step_limits": (0.1, 0.0)}, "step_limits must be two numbers in order"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changed, reason):
    shape = {"vocab_size": 40, "hidden_size": 32, "num_layers": 1, "num_heads": 8, "head_dim": 8, "state_size": 6}
    with pytest.raises(ValueError, match=reason):
        Mamba2Config(**shape | changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_bias": True}, "config.json: use_bias = True is not supported"),
        ({"expand": 3}, r"config.json: expand \* hidden_size must be num_heads \* head_dim"),
        ({"n_groups": 3}, r"config.json: Mamba2Config: num_heads"),
        ({"conv_kernel": 3}, r"tensor backbone.layers.0.mixer.conv1d.weight has shape \(88, 1, 4\), its configuration calls for \(88, 1, 3\)"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, changed, reason):
    write(tmp_path, CASES["Mamba-2"])
    text = (tmp_path / "config.json").read_text()
    for key, value in changed.items():
        old = CASES["Mamba-2"][key]
        text = text.replace(f'"{key}": {str(old).lower()}', f'"{key}": {str(value).lower()}')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        huggingface.load(tmp_path)


def test_fresh_weights_are_finite_and_forget_at_many_rates():
    config = Mamba2Config(vocab_size=40, hidden_size=16, num_layers=1, num_heads=4, head_dim=8, state_size=4, tied_head=True)
    model = nnx.jit(lambda: Mamba2(config, rngs=nnx.Rngs(0)))()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(model)))
    forgotten = np.exp(model.layers[0].log_rate[...]) * np.logaddexp(0.0, model.layers[0].step_bias[...])  # nats a token
    assert forgotten.max() > 100 * forgotten.min()
    assert model.head is None
