"""What `test_devices.py` asks of a process with eight devices; prints what it found as JSON.

Started by the test, in its own process, since the number of devices is fixed when JAX starts.
"""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

import posterity as po
from posterity.inference import blocks, drive
from posterity.inference.scale.sharded import _step_with, split
from posterity.tests.fixtures.volatility import moments, reference, volatility

TRUTH = reference()
KEYS = jax.random.split(jax.random.key(1), 32)
N = 256
RETURNS = volatility(jnp.asarray(TRUTH.ys), TRUTH.times[-1])
MESH = jax.make_mesh((8,), ("particles",))
PROGRAM = po.in_blocks(RETURNS, size=N // 8)


def sharded(key, **options):
    return po.sharded_smc(key, PROGRAM, n=N, mesh=MESH, **options)


def islands(key):
    return po.island_smc(key, RETURNS, n=N, islands=8, mesh=MESH, exchange=0.9)


def equal(one, other):
    close = {"values": bool(np.allclose(one.values, other.values, rtol=1e-5))}  # up to the rounding of two compilations
    return close | {name: bool(np.array_equal(getattr(one, name), getattr(other, name))) for name in ("ancestors", "eves", "resampled")}


def estimates(infer):
    """Log evidence and posterior moments for every key."""
    found = [infer(key) for key in KEYS]
    return {"log_evidence": [float(p.log_evidence) for p in found], "moments": [p.expect(moments).tolist() for p in found]}


def communicated(posterior):
    """Bytes a step as counted, bytes of one hop each way as compiled, and the largest array in any other exchange of the whole run."""
    program = split("test", PROGRAM, N, MESH, "particles")
    step = jax.tree_util.Partial(_step_with(program.mesh, "particles"), threshold=0.5)
    code = drive._compiled.lower(KEYS[0], program, N, blocks.spawn, step, "ancestors", False).compile().as_text()
    sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
    hops, others = [], [0]
    for result, exchange in re.findall(r" = (.*?) (collective-permute|all-gather|all-reduce|all-to-all|reduce-scatter)(?:-start)?\(", code):
        arrays = [sizes[kind] * math.prod(map(int, filter(None, shape.split(",")))) for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)]
        (hops if exchange == "collective-permute" else others).extend(arrays)
    return {"bytes": po.communication(posterior, PROGRAM, mesh=MESH).tolist(), "there and back": 8 * sum(hops), "largest other": max(others)}


def main():
    alone, together = po.smc(KEYS[0], PROGRAM, n=N), sharded(KEYS[0])
    return {
        "resampled": int(alone.resampled.sum()),
        "as alone": equal(alone, together),
        "sharding": str(together.values.sharding.spec),
        "communicated": communicated(together),
        "sharded": estimates(sharded),
        "islands": estimates(islands),
    }


print(json.dumps(main()))
