"""What `test_many_devices.py` asks of a process with eight devices; prints what it found as JSON.

Started by the test, in its own process, since the number of devices is fixed when JAX starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posterity as po
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.lm.language_model import LanguageModel
from posterity.tests.fixtures import tiny_lm

CONFIG = DecoderConfig(
    vocab_size=5, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, context_length=48, attention_bias=True
)
MESH = jax.make_mesh((4, 2), ("particles", "heads"))
KEY = jax.random.key(0)


@po.program
def letters(lm, prompt):
    """Letters among which c weighs most; the logits before the last of them are kept."""

    def step(carry, _):
        text, _ = carry
        token = po.sample("token", text.next())
        po.factor("taste", jnp.where(token == 2, 1.0, 0.0))
        return text.push(token), text.next().logits

    return po.scan(step, (lm.start(prompt), jnp.zeros(5)), length=8)


def run(lm, n=16):
    return po.smc(KEY, letters(lm, lm.prompt("abcabd")), n=n, threshold=1.0)


def spread(lm, alone, axes):
    """How a run of the model on many devices differs from that on one, and where things lie."""
    there = lm.shard(MESH, **axes)
    together = run(there)
    (text, logits), (own_text, own_logits) = together.values, alone.values
    weights, all_weights = jax.tree.leaves(there.weights), jax.tree.leaves(lm.weights)
    return {
        "tokens": bool(np.array_equal(text.tokens, own_text.tokens)),
        "ancestors": bool(np.array_equal(together.ancestors, alone.ancestors)),
        "logits": float(np.abs(np.asarray(logits) - np.asarray(own_logits)).max()),
        "log evidence": abs(float(together.log_evidence - alone.log_evidence)),
        "resampled": int(together.resampled.sum()),
        "rows": str(text.tokens.sharding.spec),
        "bytes a device": sum(x.addressable_shards[0].data.nbytes for x in weights) / sum(x.nbytes for x in all_weights),
    }


def refusals(lm):
    """What is said when things do not come out even."""
    heads = jax.make_mesh((8,), ("heads",))
    attempts = (lambda: lm.shard(heads, heads="heads"), lambda: run(lm.shard(MESH, particles="particles"), n=6))
    said = []
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            said.append(str(error))
    return said


def main():
    lm = LanguageModel.of(Decoder(CONFIG, rngs=nnx.Rngs(0)), tiny_lm.tokenizer(), "tiny")
    lm = lm.replace(weights=jax.tree.map(lambda x: 15.0 * x if x.ndim == 2 else x, lm.weights))
    alone = run(lm)
    particles, heads = {"particles": "particles"}, {"heads": "heads"}
    report = {name: spread(lm, alone, axes) for name, axes in {"particles": particles, "heads": heads, "both": particles | heads}.items()}
    print(json.dumps(report | {"refused": refusals(lm)}))


main()
