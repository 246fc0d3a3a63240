"""A killed run goes on from its log to the result of an unbroken one; no call is lost, and none is made twice."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import jax
import pytest

import posterity as po

TEXTS = ["the cat sat\n", "the dog sat\na cat ran\n", "a cat ran\nthe dog barks\nthe cat sat\n", "a dog barks at the cat\nthe end\n"]
KILLED = """
import sys
from posterity.tests.models.lm.remote.test_run_log import run
run(*sys.argv[1:])
"""


def weight(text, whole):
    return -0.3 * text.count("a")


def run(url, log=None):
    """The result of a run, and its ledger."""
    lm = po.load(f"openai:{url}", log=log, concurrency=4)
    posterior = po.smc(jax.random.key(7), po.remote.steps(lm, "the", max_steps=6, max_step_tokens=3, potential=weight), n=12)
    lm.close()
    return (posterior.answers(), float(posterior.log_evidence), posterior.ancestors.tolist()), lm.ledger


@pytest.fixture(scope="module")
def server():
    with po.remote.serve(po.tabular.ngram(TEXTS, order=2, smoothing=0.1)).start() as server:
        yield server


@pytest.mark.parametrize("fractions", [(0.6,), pytest.param((0.2, 0.5, 0.8), marks=pytest.mark.slow)])
def test_a_killed_run_has_the_result_of_an_unbroken_one(server, tmp_path, fractions):
    """Killed by SIGKILL in the middle of calls, and with half of a line on the disk."""
    log = tmp_path / "log"
    expected, unbroken = run(server.url)
    for fraction in fractions:
        with subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(log)]) as process:
            until = time.monotonic() + 120
            while time.monotonic() < until and (not log.exists() or log.read_bytes().count(b"\n") < fraction * unbroken.calls):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        with log.open("ab") as file:
            file.write(b'{"key": "0123')
    kept = log.read_bytes().count(b"\n")
    assert fractions[-1] * unbroken.calls <= kept < unbroken.calls
    found, resumed = run(server.url, log)
    assert found == expected
    assert (resumed.calls, resumed.replayed) == (unbroken.calls - kept, kept)
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == unbroken.calls


def test_a_full_disk_is_an_error_that_loses_nothing(server, tmp_path):
    """The file may not grow: the same that a full disk does to the write, after a part of the line."""
    log = tmp_path / "log"
    lm = po.load(f"openai:{server.url}", log=log)
    first = lm.complete("the", seed=0, max_tokens=5)
    size, limits = log.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))
    try:
        with pytest.raises(OSError, match=r"log cannot be written \(File too large\): 1 calls are in it, 1 more in this process; make room and run again"):
            lm.complete("the", seed=1, max_tokens=5)
        assert log.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    second, third = (lm.complete("the", seed=seed, max_tokens=5) for seed in (1, 2))
    assert (lm.ledger.calls, lm.ledger.replayed) == (3, 1)
    lm.close()
    again = po.load(f"openai:{server.url}", log=log)
    assert [again.complete("the", seed=seed, max_tokens=5) for seed in (0, 1, 2)] == [first, second, third]
    assert (again.ledger.calls, again.ledger.replayed) == (0, 3)
    again.close()


def test_a_disk_that_takes_nothing_is_told_as_such(tmp_path):
    log = po.remote.RunLog(tmp_path / "log")
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), log.file)
    with pytest.raises(OSError, match=r"log cannot be written \(No space left on device\): 0 calls are in it, 1 more in this process"):
        log.append({"key": "k"})
    log.close()


def test_a_call_is_known_by_all_that_determines_it_and_by_nothing_else(server, tmp_path):
    lm = po.load(f"openai:{server.url}", log=tmp_path / "log")
    asked = {"seed": 1, "max_tokens": 4, "stop": "\n"}
    lm.complete("the", **asked)
    for change in ({"seed": 2}, {"max_tokens": 5}, {"stop": "a"}, {"stop": None}, {"temperature": 0.5}, {"top_p": 0.5}, {"options": {"top_k": 3}}):
        lm.complete("the", **(asked | change))
    lm.complete("a", **asked)
    assert (lm.ledger.calls, lm.ledger.replayed) == (9, 0)
    lm.complete("the", **asked)
    assert (lm.ledger.calls, lm.ledger.replayed) == (9, 1)
    lm.close()


def test_two_runs_cannot_write_one_log_and_another_file_is_no_log(server, tmp_path):
    lm = po.load(f"openai:{server.url}", log=tmp_path / "log")
    with pytest.raises(BlockingIOError, match="another process writes to it"):
        po.load(f"openai:{server.url}", log=tmp_path / "log")
    lm.close()
    for content, line in (("not a log\n", 1), ("notes", 1), ('{"key": "a", "text": ""}\n[]\n', 2)):
        (tmp_path / "other").write_text(content)
        with pytest.raises(ValueError, match=f"other, line {line}: not a completed call; is it another file"):
            po.load(f"openai:{server.url}", log=tmp_path / "other")
        assert (tmp_path / "other").read_text() == content
    with pytest.raises(FileNotFoundError):
        po.load(f"openai:{server.url}", log=tmp_path / "missing" / "log")
