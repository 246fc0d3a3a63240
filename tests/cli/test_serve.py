"""The command that serves a model: another process can use it, and an interrupt ends it."""

import signal
import socket
import subprocess
import sys

import pytest

import posterity as po


@pytest.mark.slow  # a process of its own
def test_another_process_can_use_what_is_served_until_an_interrupt(random_model):
    command = [sys.executable, "-m", "posterity", "serve", random_model, "--port", "0", "--key", "open sesame"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        name, _, url = process.stdout.readline().strip().partition(" is served at ")
        lm = po.load(f"openai:{url}", key="open sesame")
        assert (lm.model, name) == (random_model, random_model)
        completion = lm.complete("1+1=", seed=0, max_tokens=3)
        assert completion.prompt_tokens == 4
        lm.close()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0


def test_an_address_that_cannot_be_used_is_refused(posterity, random_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = posterity("serve", random_model, "--port", taken.getsockname()[1])
    assert (result.code, result.out) == (2, "")
    assert "Address already in use" in result.err
    assert "'65536' is not a whole number from 0 to 65535" in posterity("serve", "--port", "65536").err


def test_a_model_behind_a_server_is_refused_where_one_in_this_process_is_needed(posterity, random_model):
    with po.remote.serve(po.load(random_model)).start() as server:
        result = posterity("generate", "1+1=", "--model", f"openai:{server.url}")
    assert (result.code, result.out) == (2, "")
    assert "no language model in this process" in " ".join(result.err.split())
    assert "MODEL" in posterity("serve", "abakus").err
