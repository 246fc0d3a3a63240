"""A run that is kept on disk goes on bit for bit, whatever stopped it; what cannot be read or written is said."""

import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po
from posterity.tests.fixtures.references import constant, walk

# Orbax reads all arrays at once. When one cannot be read, the others come back to an event loop that is closed, some only while a later test runs.
LATE = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.slow, LATE]

KEY = jax.random.key(3)
YS = jnp.linspace(-1.0, 2.0, 6)
LONG = 400

LONG_RUN = f"""
import sys, jax, jax.numpy as jnp, posterity as po
from posterity.tests.fixtures.references import walk

po.smc(jax.random.key(3), walk(jnp.linspace(0.0, 1.0, {LONG})), n=8, checkpoint=po.Checkpoint(sys.argv[1], every=5))
"""


def same(one, other):
    return all(np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def steps_in(folder):
    return sorted(int(step.name) for step in pathlib.Path(folder).iterdir() if step.name.isdigit())


def run(folder, ys=YS, n=8, key=KEY, every=2, **options):
    return po.smc(key, walk(ys), n=n, checkpoint=po.Checkpoint(folder, every=every), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    assert steps_in(folder) == [4, 6]
    return folder


@pytest.fixture
def kept(finished, tmp_path):
    """A copy of the checkpoints of a run, at steps 4 and 6."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def uninterrupted():
    return po.smc(KEY, walk(YS), n=8)


def wait_for_steps(folder, beyond, going=lambda: True):
    while going() and not (folder.exists() and max(steps_in(folder), default=0) > beyond):
        time.sleep(0.01)


def interrupt_when_kept(folder):
    """Ctrl-C, as soon as there is a checkpoint."""
    wait_for_steps(folder, 0)
    signal.raise_signal(signal.SIGINT)


def test_a_run_that_is_interrupted_and_killed_goes_on_bit_for_bit(tmp_path):
    folder, ys = tmp_path / "run", jnp.linspace(0.0, 1.0, LONG)
    threading.Thread(target=interrupt_when_kept, args=[folder]).start()
    with pytest.raises(KeyboardInterrupt):
        run(folder, ys, every=5)
    stopped = max(steps_in(folder))
    process = subprocess.Popen([sys.executable, "-c", LONG_RUN, str(folder)])
    wait_for_steps(folder, stopped, lambda: process.poll() is None)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < stopped < max(steps_in(folder)) < LONG
    assert same(po.smc(KEY, walk(ys), n=8), run(folder, ys, every=50))


def test_a_run_that_is_kept_is_the_run_that_is_not(kept, uninterrupted, tmp_path):
    assert same(uninterrupted, run(kept))
    shutil.rmtree(kept / "6")
    assert same(uninterrupted, run(kept, progress=True))
    assert steps_in(kept) == [4, 6]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"key": jax.random.key(4)}, r"key \(\[0, 3\] there, \[0, 4\] now\)"),
        ({"n": 9}, r"n \(8 there, 9 now\)"),
        ({"ys": YS + 1}, "data of the program"),
        ({"resampling": "multinomial"}, "algorithm"),
        ({"threshold": 0.25}, "algorithm"),
        ({"history": False}, "options"),
    ],
)
def test_another_run_is_told_apart(kept, other, named):
    with pytest.raises(ValueError, match=f"holds another run, which differs in .*{named}.*; give another path, or remove it"):
        run(kept, **other)


def test_another_program_of_the_same_name_is_told_apart(kept):
    @po.program
    def walk(ys):
        x = po.sample("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            x = po.sample("x", dist.Normal(x, 1.5))
            po.observe("y", dist.Normal(x, 0.5), y)
            return x

        return po.scan(step, x, ys)

    with pytest.raises(ValueError, match="differs in the code that it runs"):
        po.smc(KEY, walk(YS), n=8, checkpoint=po.Checkpoint(kept, every=2))


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
def test_of_a_damaged_checkpoint_the_one_before_is_used_aloud(kept, damage, uninterrupted):
    for file in (kept / "6" / "run").rglob("d/*"):
        damage(file)
    with pytest.warns(UserWarning, match=r"checkpoint: step 6 \(.*\) at .* is damaged, and removed; going on from step 4"):
        assert same(uninterrupted, run(kept))
    assert same(uninterrupted, run(kept))  # it was written anew


def test_when_all_checkpoints_are_damaged_that_is_an_error(kept):
    for step, file in (("4", "about/metadata"), ("6", "run/manifest.ocdbt")):
        truncate(kept / step / file)
    with pytest.raises(ValueError, match=r"is damaged: step 6 \(.*\); step 4 \(.*\)\. Remove it to begin anew"):
        run(kept)


def test_a_path_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to .*file/run: Not a directory; nothing was run"):
        run(tmp_path / "file" / "run")


def test_when_the_disk_is_full_what_was_written_before_stands(kept, uninterrupted):
    shutil.rmtree(kept / "6")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # no file may grow beyond it: writes fail as on a full disk
    try:
        with pytest.raises(OSError, match=r"step 6 could not be written to .*; the checkpoint of step 4 stands, from which the same call goes on"):
            run(kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps_in(kept) == [4]
    assert same(uninterrupted, run(kept))


def test_no_steps_and_one_particle_can_be_kept(tmp_path):
    for _ in range(2):
        posterior = run(tmp_path / "none", jnp.zeros(0), n=1)
        assert posterior.steps == 0
    assert same(posterior, po.smc(KEY, walk(jnp.zeros(0)), n=1))


@po.program
def height(ys):
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.observe("ys", dist.Normal(x, 0.5), ys)
    return x


KEEPING = {
    "smc": partial(po.smc, program=walk(YS)),
    "importance": partial(po.importance, program=walk(YS)),
    "branching_smc": partial(po.branching_smc, program=walk(YS)),
    "paris": partial(po.paris, program=walk(YS), functional=lambda t, before, after: (after - before) ** 2),
    "resample_move": partial(po.resample_move, program=walk(YS)),
    "ibis": partial(po.ibis, program=constant(YS), moves=1, kernel=po.kernels.prior()),
    "tempering": partial(po.tempering, program=height(YS), ess=0.9, moves=1, kernel=po.kernels.prior()),
    "smc2": partial(po.smc2, parameters=dist.Normal(0.0, 1.0), model=lambda _: walk.bind(YS), inner=2),
    "sharded_smc": partial(po.sharded_smc, program=walk(YS), mesh=jax.make_mesh((1,), ("particles",))),
    "island_smc": partial(po.island_smc, program=walk(YS), islands=2),
    "pmmh": partial(po.pmmh, parameters=dist.Normal(0.0, 1.0), model=lambda _: walk.bind(YS), draws=4, warmup=1),
    "particle_gibbs": partial(po.particle_gibbs, program=walk(YS), draws=4, warmup=1),
    "pimh": partial(po.pimh, program=walk(YS), draws=4, warmup=1),
}


@pytest.mark.parametrize("method", ["branching_smc", "paris", "ibis", "tempering", "particle_gibbs"])
def test_what_is_no_filter_goes_on_bit_for_bit_too(method, tmp_path):
    keeping = partial(KEEPING[method], KEY, n=8, checkpoint=po.Checkpoint(tmp_path, every=2))
    uninterrupted = KEEPING[method](KEY, n=8)
    assert same(uninterrupted, keeping())
    *_, before, last = steps_in(tmp_path)
    shutil.rmtree(tmp_path / str(last))  # as if it had been stopped after the step before
    assert before > 0
    assert same(uninterrupted, keeping(progress=True))
    assert steps_in(tmp_path) == [before, last]
    for step in (before, last):
        for file in (tmp_path / str(step) / "run").rglob("d/*"):
            flip(file)
    with pytest.raises(ValueError, match=rf"is damaged: step {last} \(.*\); step {before} \(.*\)\. Remove it to begin anew"):
        keeping()


def test_what_a_controlled_run_has_learned_is_kept_too(tmp_path):
    def controlled(**options):
        return po.controlled(KEY, walk(YS), jnp.atleast_1d, n=8, rounds=2, **options)

    uninterrupted = controlled()
    assert same(uninterrupted, controlled(checkpoint=po.Checkpoint(tmp_path, every=2)))
    assert (steps_in(tmp_path / "learned"), steps_in(tmp_path / "run")) == ([1, 2], [4, 6])
    shutil.rmtree(tmp_path / "learned" / "2")
    shutil.rmtree(tmp_path / "run")
    assert same(uninterrupted, controlled(checkpoint=po.Checkpoint(tmp_path, every=2), progress=True))


@pytest.mark.parametrize("method", KEEPING)
def test_every_inference_that_keeps_its_runs_says_what_is_no_checkpoint(method):
    with pytest.raises(TypeError, match=r"checkpoint must be a po\.Checkpoint\(path, every=steps\), got 'here'"):
        KEEPING[method](KEY, n=8, checkpoint="here")


def test_a_checkpoint_that_makes_no_sense_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="every must be a number of steps, at least 1, got 0"):
        run(tmp_path, every=0)
    with pytest.raises(ValueError, match=r"a run inside jit .* cannot be kept"):
        jax.jit(lambda ys: run(tmp_path, ys))(YS)
