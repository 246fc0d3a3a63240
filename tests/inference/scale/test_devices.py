"""One run over eight devices, and over two processes: the run of one device, with its particles elsewhere."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.inference.scale.sharded import _ancestors as device_ancestors
from posterity.inference.smc.resampling import Systematic
from posterity.tests.fixtures import volatility
from posterity.tests.fixtures.references import walk

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent
KEY = jax.random.key(0)
# Small programs on virtual devices: what takes long is to compile them.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of all JAX versions


def start(script, devices, *arguments):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def found(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def eight():
    return found(start("on_eight_devices.py", 8))


def test_eight_devices_draw_what_one_draws(eight):
    assert eight["resampled"] > 0
    assert all(eight["as alone"].values()), eight["as alone"]
    assert eight["sharding"] == "P('particles',)", "each device holds its own particles to the end"


@pytest.mark.parametrize("method", ["sharded", "islands"])
def test_on_stochastic_volatility_the_estimates_are_those_of_a_million_particles_on_one_device(eight, method):
    """Z_hat and Z_hat * expect(x, x^2) of 32 runs, which Student's law lets fail at 4e-4 each for a right algorithm (the seed is fixed)."""
    log_evidence, means = (np.array(eight[method][what])[:, None] for what in ("log_evidence", "moments"))
    truth = volatility.reference()
    last = truth._replace(times=truth.times[-1:], log_evidence=truth.log_evidence[:, -1:], moments=truth.moments[:, -1:])
    assert np.abs(volatility.z_scores(last, log_evidence, means)).max() < 4
    assert log_evidence.std() < 0.5


def test_what_is_sent_is_counted_and_bounded(eight):
    """By the compiled code of the whole run: particles go to the neighbours, a hop at a time, and everything else is some numbers a device."""
    sent = eight["communicated"]
    print("bytes sent by all devices, step by step:", sent["bytes"])
    hops = np.array(sent["bytes"]) / (sent["there and back"] / 2)
    assert np.array_equal(hops, np.round(hops))
    assert np.sum(hops > 0) == eight["resampled"]
    assert hops.max() <= 4
    assert sent["largest other"] <= 64


def test_two_processes_run_what_one_runs(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start("on_two_processes.py", 2, rank, address, tmp_path) for rank in range(2)]
    for rank in map(found, processes):
        assert rank["processes"] == 2
        assert rank["devices"] == [0, 0, 1, 1]
        assert rank["ancestors"]
        assert rank["gone on"], "from a checkpoint, bit for bit"
        np.testing.assert_allclose(*rank["log_evidence"], rtol=1e-5)
        np.testing.assert_allclose(*rank["estimate"], rtol=1e-5)


ONE = jax.make_mesh((1,), ("particles",))
EIGHT = jax.sharding.AbstractMesh((8, 2), ("particles", "weights"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 12, "mesh": EIGHT}, ValueError, "n must be a multiple of the 8 devices along mesh axis 'particles', got 12"),
        ({"n": 4, "mesh": EIGHT}, ValueError, "n must be a multiple of the 8 devices"),
        ({"n": 8, "mesh": EIGHT, "axis": "islands"}, ValueError, "axis must be one of the mesh's, which are 'particles', 'weights', got 'islands'"),
        ({"n": 8, "mesh": jax.devices()}, TypeError, r"mesh must be a jax.sharding.Mesh, as jax.make_mesh\(\(8,\), \('particles',\)\) makes, got list"),
        ({"n": 0, "mesh": ONE}, ValueError, "n must be at least 1 particle, got 0"),
        ({"n": 8, "mesh": ONE, "threshold": 2.0}, ValueError, "threshold must lie in"),
    ],
)
def test_mismatched_devices_are_named(options, error, message):
    with pytest.raises(error, match=message):
        po.sharded_smc(KEY, walk(jnp.ones(2)), **options)


def test_blocks_are_not_split_between_devices():
    with pytest.raises(ValueError, match="n must be a multiple of the 8 devices along mesh axis 'particles' times the blocks of 3, got 32"):
        po.sharded_smc(KEY, po.in_blocks(walk(jnp.ones(2)), size=3), n=32, mesh=EIGHT)


def test_islands_share_the_particles_evenly():
    with pytest.raises(ValueError, match="n must be a multiple of the number of islands, 3, got 8"):
        po.island_smc(KEY, walk(jnp.ones(2)), n=8, islands=3)


@pytest.mark.parametrize("infer", [lambda p: po.sharded_smc(KEY, p, n=1, mesh=ONE), lambda p: po.island_smc(KEY, p, n=1, islands=1)])
def test_no_steps_and_one_particle(infer):
    posterior = infer(walk(jnp.zeros(0)))
    assert len(posterior) == 1
    assert posterior.log_evidence == 0
    assert posterior.steps == 0


def test_a_text_is_not_split():
    lm = po.load("abacus")

    @po.program
    def answer(lm, prompt):
        return po.scan(lambda text, _: text.push(po.sample("token", text.next())), lm.start(prompt), length=2)

    with pytest.raises(TypeError, match=r"in_blocks: .* in its particles, which is shared between them; only rows of arrays can be split"):
        po.in_blocks(answer(lm, lm.prompt("1+1=")), size=2).init(KEY, 4)


WEIGHTS = {
    "even": jnp.zeros(64),
    "spread": 3 * jax.random.normal(KEY, (64,)),
    "some zero": jnp.where(jax.random.bernoulli(KEY, 0.4, (64,)), -jnp.inf, jax.random.normal(KEY, (64,))),
    "one of the last": jnp.full(64, -jnp.inf).at[61].set(-1e4),
}


def test_ancestors_over_devices_are_those_of_systematic_resampling():
    """The same point decides the same ancestors, whoever holds the weights; here the devices are the entries of a mapped axis."""

    def over_devices(log_weights, u):
        shares = log_weights.reshape(4, -1)
        return jax.vmap(lambda log_weights: device_ancestors("particles", u, log_weights), axis_name="particles")(shares).reshape(-1)

    def alone(log_weights, u):
        return Systematic(log_weights)._at(u)

    weights, points = jnp.stack(list(WEIGHTS.values())), jax.random.bits(KEY, (50,), jnp.uint32)
    by_point = [jax.vmap(jax.vmap(draw, (None, 0)), (0, None)) for draw in (over_devices, alone)]
    found, expected = (jax.jit(draw, compiler_options=QUICK)(weights, points) for draw in by_point)
    for name, one, other in zip(WEIGHTS, found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_a_step_in_blocks_needs_less_memory():
    @po.program
    def wide():
        def step(x, _):
            z = po.sample("z", dist.Normal(0.0, 1.0).expand([64]))
            return x + jnp.sum(jnp.sort(z))

        return po.scan(step, 0.0, length=2)

    def temporary(program, n=4_096):
        particles = jax.eval_shape(lambda key: program.init(key, n)[0], KEY)
        return jax.jit(lambda key, particles: program.step(key, particles)).lower(KEY, particles).compile(QUICK).memory_analysis().temp_size_in_bytes

    whole, blocks = temporary(wide()), temporary(po.in_blocks(wide(), size=128))
    print(f"temporary memory of a step: {whole:,} bytes, in 32 blocks {blocks:,}")
    assert blocks < whole / 16
