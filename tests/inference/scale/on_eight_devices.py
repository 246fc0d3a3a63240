"""What `test_devices.py` asks of a process with eight devices; prints what it found as JSON.

Started by the test, in its own process, since the number of devices is fixed when JAX starts.
"""

import json
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import posterity as po
from posterity.inference.scale.sharded import split

YS = 0.5 * jax.random.normal(jax.random.key(7), (20,))
KEYS = jax.random.split(jax.random.key(1), 16)
N = 256


@po.program
def stochastic_volatility(ys):
    """Returns whose log variance is an autoregression; its value is the last log variance."""
    x = po.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(0.95 * x, 0.3))
        po.observe("y", dist.Normal(0.0, jnp.exp(x / 2)), y)
        return x

    return po.scan(step, x, ys)


MESH = jax.make_mesh((8,), ("particles",))
PROGRAM = po.in_blocks(stochastic_volatility(YS), size=N // 8)


def sharded(key, **options):
    return po.sharded_smc(key, PROGRAM, n=N, mesh=MESH, **options)


def islands(key):
    return po.island_smc(key, stochastic_volatility(YS), n=N, islands=8, mesh=MESH, exchange=0.9)


def equal(one, other):
    close = {"values": bool(np.allclose(one.values, other.values, rtol=1e-5))}  # up to the rounding of two compilations
    return close | {name: bool(np.array_equal(getattr(one, name), getattr(other, name))) for name in ("ancestors", "eves", "resampled")}


def estimates(infer, keys=KEYS):
    """Log evidence and posterior mean for every key."""
    found = [infer(key) for key in keys]
    return {"log_evidence": [float(p.log_evidence) for p in found], "mean": [float(p.expect()) for p in found]}


def communicated(posterior):
    """Bytes a step, and what the compiled code sends in one hop each way."""
    program = split("test", PROGRAM, N, MESH, "particles")
    particles = jax.eval_shape(lambda key: program.inner.init(key, N)[0], KEYS[0])
    code = jax.jit(program.select).lower(particles, jax.ShapeDtypeStruct((N,), jnp.int32)).compile().as_text()
    sent = re.findall(r"= (.*) collective-permute(?:-start)?\(", code)
    sizes = {"f32": 4, "s32": 4, "pred": 1}
    row = sum(sizes[kind] * int(rows) for result in sent for kind, rows in re.findall(r"(\w+)\[(\d+)\]", result))
    return {"bytes": po.communication(posterior, PROGRAM, mesh=MESH).tolist(), "particles there and back": 8 * row}


def gone_on(folder):
    """Steps kept, and whether from the first of them the same comes out."""
    whole = sharded(KEYS[0], checkpoint=po.Checkpoint(folder, every=8))
    steps = sorted(int(step.name) for step in folder.iterdir())
    shutil.rmtree(folder / str(steps[-1]))
    rest = sharded(KEYS[0], checkpoint=po.Checkpoint(folder, every=8))
    return {"kept steps": steps, "gone on": all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True))}


def main(folder):
    alone, together = po.smc(KEYS[0], PROGRAM, n=N), sharded(KEYS[0])
    return {
        "resampled": int(alone.resampled.sum()),
        "as alone": equal(alone, together),
        "sharding": str(together.values.sharding.spec),
        "communicated": communicated(together),
        "alone": estimates(lambda key: po.smc(key, PROGRAM, n=N), jax.random.split(jax.random.key(2), 16)),
        "sharded": estimates(sharded),
        "islands": estimates(islands),
        **gone_on(folder),
    }


print(json.dumps(main(pathlib.Path(sys.argv[1]))))
