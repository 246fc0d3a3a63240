"""One of the two processes that `test_devices.py` starts; each has two devices and prints what it found as JSON."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

import posterity as po
from posterity.tests.fixtures.references import walk


def main(rank, address, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    mesh = jax.make_mesh((4,), ("particles",))
    program = po.in_blocks(walk(jnp.linspace(0.0, 2.0, 6)), size=16)
    key = jax.random.key(0)
    alone = po.smc(key, program, n=64, threshold=1.0)
    together = po.sharded_smc(key, program, n=64, mesh=mesh, threshold=1.0, checkpoint=po.Checkpoint(folder, every=4))
    if rank == 0:
        shutil.rmtree(f"{folder}/6")  # as if the run had been stopped after step 4
    sync_global_devices("removed")
    rest = po.sharded_smc(key, program, n=64, mesh=mesh, threshold=1.0, checkpoint=po.Checkpoint(folder, every=4))
    return {
        "processes": jax.process_count(),
        "devices": [device.process_index for device in mesh.devices],
        "ancestors": bool(np.array_equal(alone.ancestors, together.ancestors)),
        "log_evidence": [float(alone.log_evidence), float(together.log_evidence)],
        "estimate": [alone.estimate().value, together.estimate().value],  # of all particles, those of the other process too
        "gone on": all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(rest), strict=True)),
    }


print(json.dumps(main(int(sys.argv[1]), *sys.argv[2:])))
