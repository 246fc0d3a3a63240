"""Programs whose steps are Python: the same algorithms, the same laws."""

import asyncio
import math
import random
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import posterity as po

KEY = jax.random.key(0)


def climb(height, seed):
    """A biased step up, rewarded."""
    up = random.Random(seed).random() < 0.3
    return height + up, math.log(2.0) * up


@po.program
def climbing():
    def step(height, _):
        up = po.sample("up", dist.Bernoulli(0.3))
        po.factor("reward", math.log(2.0) * up)
        return height + up

    return po.scan(step, 0, length=3)


@pytest.mark.parametrize("infer", [po.importance, po.smc])
def test_the_posterior_is_that_of_the_same_program_in_jax(infer):
    """Evidence and answers of one run of 1,000 particles, within 4.4 standard errors of the exact ones (a false alarm in 20,000 each)."""
    exact, found = po.exact(climbing()), infer(KEY, po.host_scan(climb, 0, length=3), n=1_000)
    assert abs(float(found.log_evidence - exact.log_evidence)) < 4.4 * float(found.log_evidence_error)
    for height, (probability, error) in found.answers().items():
        assert abs(probability - exact.answers()[height].value) < 4.4 * error


def test_a_key_reproduces_a_run_and_another_key_does_not():
    program = po.host_scan(climb, 0, length=20)
    first, again, other = (po.smc(jax.random.key(seed), program, n=30) for seed in (0, 0, 1))
    states = [[run.values.table[i] for i in np.asarray(run.values.number)] for run in (first, again, other)]
    assert states[0] == states[1] != states[2]
    assert np.array_equal(first.ancestors, again.ancestors)


def test_the_steps_of_all_particles_are_under_way_together_up_to_the_number_of_workers():
    most, now, lock = [0], [0], threading.Lock()

    def enter(by):
        with lock:
            now[0] += by
            most[0] = max(most[0], now[0])

    def in_thread(state, seed):
        enter(1)
        time.sleep(0.02)
        enter(-1)
        return (state,)

    async def in_loop(state, seed):
        enter(1)
        await asyncio.sleep(0.02)
        enter(-1)
        return (state,)

    for step in (in_thread, in_loop):
        most[0] = 0
        po.importance(KEY, po.host_scan(step, "x", length=2, workers=4), n=12)
        assert most[0] == 4


def test_a_running_event_loop_does_not_mind():
    async def step(state, seed):
        return (state + 1,)

    async def notebook():
        return po.importance(KEY, po.host_scan(step, 0, length=3), n=2)

    assert asyncio.run(notebook()).answers() == {3: (1.0, 0.0)}


def test_states_are_shared_by_descendants_and_none_is_copied():
    class Path(tuple):
        __slots__ = ()

        def __deepcopy__(self, memo):
            raise AssertionError("a state was copied")

    posterior = po.smc(KEY, po.host_scan(lambda path, seed: (Path((*path, seed % 2)), float(seed % 2)), Path(), length=6), n=16, threshold=1.0)
    assert all(len(path) == 6 for path in posterior.answers())
    assert len(posterior.values.table) == 1 + 6 * 16


def test_particles_that_have_ended_are_not_called_again():
    calls = []

    def step(count, seed):
        calls.append(count)
        return count + 1, 0.0, count == 1

    posterior = po.importance(KEY, po.host_scan(step, 0, length=10), n=3)
    assert posterior.answers() == {2: (1.0, 0.0)}
    assert (len(calls), int(posterior.steps)) == (6, 2)


def test_transformations_and_options_work_on_it():
    program = po.host_scan(climb, 0, length=6)
    chunked = po.smc(KEY, po.chunk(program, lambda value: value.state % 2 == 0), n=40, history="full")
    tempered = po.smc(KEY, po.temper(program, jnp.array([0.5, 1.0])), n=40)
    assert sum(share for share, _ in chunked.answers().values()) == pytest.approx(1.0)
    assert abs(float(tempered.log_evidence) - 6 * math.log(1.3)) < 4.4 * float(tempered.log_evidence_error)
    assert po.smc(KEY, program, n=4, progress=True).steps == 6


def test_what_a_step_raises_is_raised_with_a_note():
    def step(state, seed):
        raise RuntimeError("the server is gone")

    async def later(state, seed):
        await asyncio.sleep(0)
        raise RuntimeError("the server is gone")

    for function in (step, later):
        with pytest.raises(RuntimeError, match="the server is gone") as caught:
            po.importance(KEY, po.host_scan(function, 0, length=1), n=3)
        assert "in call" in caught.value.__notes__[0]


def test_invalid_potentials_are_errors_and_no_survivor_is_an_evidence_of_zero():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"3 of 3 log potentials were NaN or \+inf at step 1"):
            po.importance(KEY, po.host_scan(lambda state, seed, bad=bad: (state, bad), 0, length=2), n=3)
    gone = po.smc(KEY, po.host_scan(lambda state, seed: (state, -math.inf), 0, length=5), n=3)
    assert (float(gone.log_evidence), int(gone.steps)) == (-math.inf, 1)


def test_no_steps_and_one_particle():
    assert po.smc(KEY, po.host_scan(climb, 7, length=0), n=1).answers() == {7: (1.0, 0.0)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: po.host_scan(3, 0, length=1), TypeError, "step must be a function"),
        (lambda: po.host_scan(climb, 0, length=-1), ValueError, "length must be a whole number of at least 0, got -1"),
        (lambda: po.host_scan(climb, 0, length=1, workers=0), ValueError, "workers must be a whole number of at least 1, got 0"),
        (lambda: po.importance(KEY, po.host_scan(lambda s, seed: s, 0, length=1), n=2), TypeError, "a step must return"),
        (lambda: jax.jit(lambda key: po.smc(key, po.host_scan(climb, 0, length=1), n=2).log_evidence)(KEY), TypeError, "runs in Python"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="runs on the host"):
        po.smc(KEY, po.host_scan(climb, 0, length=1), n=2, checkpoint=po.Checkpoint(tmp_path))


def test_values_of_a_host_program_are_no_jax_arrays_to_compute_with():
    posterior = po.importance(KEY, po.host_scan(climb, 0, length=2), n=5)
    assert posterior.answers(lambda value: f"at {value.state}").keys() <= {"at 0", "at 1", "at 2"}
    assert jnp.asarray(posterior.values.number).shape == (5,)
