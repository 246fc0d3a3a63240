"""Texts over one axis of a mesh, heads and columns over another: the run of one device, elsewhere."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from posterity.tests.fixtures.tiny_lm import language_model

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def eight():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, str(HERE / "on_eight_devices.py")]
    process = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["particles", "heads", "both"])
def test_eight_devices_write_what_one_writes(eight, spread):
    found = eight[spread]
    assert found["resampled"] > 0
    assert found["tokens"]
    assert found["ancestors"]
    assert found["logits"] < 1e-4
    assert found["log evidence"] < 1e-4


@pytest.mark.slow
def test_each_device_holds_its_own_texts_and_its_own_weights(eight):
    assert "particles" in eight["both"]["rows"]
    assert eight["particles"]["bytes a device"] == 1
    assert eight["both"]["bytes a device"] == eight["heads"]["bytes a device"] < 0.6


@pytest.mark.slow
def test_what_does_not_come_out_even_is_refused(eight):
    assert eight["refused"] == [
        "tiny.shard: num_kv_heads (2) must be a multiple of the 8 devices along 'heads'",
        "tiny: n must be a multiple of the 4 devices that particles are spread over, got 6",
    ]


MESH = jax.sharding.Mesh(jax.devices()[:1], ("particles",))


@pytest.mark.parametrize(
    ("mesh", "axes", "error", "message"),
    [
        (8, {}, TypeError, "mesh must be a jax.sharding.Mesh, as jax.make_mesh"),
        (MESH, {"heads": "weights"}, ValueError, "the mesh's axes are 'particles', got 'weights'"),
        (MESH, {"particles": "particles", "heads": "particles"}, ValueError, "particles and heads need an axis each, got 'particles' for both"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, axes, error, message):
    with pytest.raises(error, match=message):
        language_model().shard(mesh, **axes)
