"""Nothing is lost and nothing is done twice, whatever the network does: against a real server, through a proxy that fails in every way."""

import json
import math
import time
from collections import Counter

import jax
import numpy as np
import pytest

import posterity as po
from posterity.tests.fixtures.faulty_proxy import FAULTS, FaultyProxy

KEY = jax.random.key(0)
HURRY = po.remote.Patience(seconds=1.0, retries=20, pause=0.002)
TEXTS = ["the cat sat\n", "the dog sat\na cat ran\n", "a cat ran\nthe dog barks\nthe cat sat\n", "a dog barks at the cat\nthe end\n"]


@pytest.fixture(scope="module")
def lm():
    return po.tabular.ngram(TEXTS, order=2, smoothing=0.1)


@pytest.fixture(scope="module")
def server(lm):
    with po.remote.serve(lm).start() as server:
        po.load(f"openai:{server.url}").complete("the", seed=0, max_tokens=12)  # compiles
        yield server


def shape(text, whole):
    return -0.1 * abs(len(text) - 20)


def written(posterior):
    return [str(posterior.values.table[int(i)]) for i in np.asarray(posterior.values.number)]


def run(lm, n):
    program = po.remote.steps(lm, "the", max_steps=25, max_step_tokens=2, potential=shape, temperature=1.5)
    return po.smc(KEY, program, n=n)


@pytest.mark.parametrize(("n", "least"), [(8, 80), pytest.param(90, 1_000, marks=pytest.mark.slow)])
def test_a_thousand_steps_through_the_faulty_proxy_lose_nothing_and_duplicate_nothing(server, tmp_path, n, least):
    """The log has every call of every step once, the result is that without faults, and the ledger equals what came through."""
    far = po.load(f"openai:{server.url}", patience=HURRY)
    clean = run(far, n)
    steps = far.ledger.calls
    log = tmp_path / "run.jsonl"
    with FaultyProxy(server.server_address[1], share=0.2 if n < 20 else 0.1) as proxy:
        lm = po.load(f"openai:{proxy.url}", log=log, patience=HURRY)
        faulty = run(lm, n)
        ledger = lm.ledger
        lm.close()
    assert steps >= least
    assert proxy.made.keys() == set(FAULTS)
    assert written(faulty) == written(clean)
    assert np.array_equal(faulty.log_weights, clean.log_weights)
    assert float(faulty.log_evidence) == float(clean.log_evidence)
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == ledger.calls == steps
    assert (ledger.prompt_tokens, ledger.generated_tokens) == (far.ledger.prompt_tokens, far.ledger.generated_tokens)
    late = ledger.retries - sum(proxy.made.values())  # calls that a busy machine made too slow: they failed like the others
    assert ledger.lost == late + sum(number for fault, number in proxy.made.items() if fault != "too many requests")
    assert 0 <= proxy.delivered - ledger.calls <= late
    told = proxy.usage["prompt_tokens"], proxy.usage["completion_tokens"]
    assert late or told == (ledger.prompt_tokens, ledger.generated_tokens)
    far.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_by_itself_is_got_over(server, fault):
    expected = po.load(f"openai:{server.url}").complete("the", seed=3, max_tokens=12)
    with FaultyProxy(server.server_address[1], share=0.5, faults=(fault,), seed=4) as proxy:
        lm = po.load(f"openai:{proxy.url}", patience=HURRY._replace(seconds=0.25))
        found = [lm.complete("the", seed=3, max_tokens=12) for _ in range(4)]
        lm.close()
    assert proxy.made[fault] > 0
    assert found == [expected] * 4


def test_the_pause_that_a_server_asks_for_is_kept(server):
    with FaultyProxy(server.server_address[1], share=0.7, faults=("too many requests",), retry_after="1", seed=1) as proxy:
        lm = po.load(f"openai:{proxy.url}", patience=HURRY)
        start = time.monotonic()
        lm.complete("the", seed=0, max_tokens=2)
        assert time.monotonic() - start >= proxy.made["too many requests"] >= 1
        lm.close()


def test_a_server_that_stays_broken_is_given_up_with_what_it_said(server, tmp_path):
    with FaultyProxy(server.server_address[1], faults=("server error",)) as proxy:
        lm = po.load(f"openai:{proxy.url}", log=tmp_path / "log", patience=po.remote.Patience(retries=2, pause=0.001))
        with pytest.raises(ConnectionError, match=r"3 attempts failed, the last one so: 500 Internal Server Error: oops \(the run log has what was completed"):
            lm.complete("the", seed=0)
        assert (lm.ledger.calls, lm.ledger.retries, lm.ledger.lost) == (0, 2, 3)
        lm.close()
    with FaultyProxy(server.server_address[1], faults=("too many requests",), retry_after="86400") as proxy:
        lm = po.load(f"openai:{proxy.url}")
        with pytest.raises(ConnectionError, match="the server asks to wait for 86,400 seconds"):
            lm.complete("the", seed=0)
        lm.close()


def test_pauses_grow_and_are_spread_over_all_of_their_range(server):
    lm = po.load(f"openai:{server.url}", patience=po.remote.Patience(pause=1.0, longest_pause=8.0))
    trouble = po.remote.attempt.Passing("busy", wait=5.0)
    for attempt, most in ((0, 1.0), (2, 4.0), (7, 8.0)):
        pauses = [lm._pause(attempt, trouble) - 5.0 for _ in range(200)]
        assert 0.0 <= min(pauses) < 0.1 * most  # each fails once in 10^9
        assert 0.9 * most < max(pauses) <= most
    lm.close()


def test_no_more_calls_are_under_way_than_were_allowed(server):
    with FaultyProxy(server.server_address[1], share=0.0) as proxy:
        lm = po.load(f"openai:{proxy.url}", concurrency=3)
        po.importance(KEY, po.remote.steps(lm, "the", max_steps=1, max_step_tokens=12), n=12)
        assert proxy.most_under_way == 3
        lm.close()


def test_every_call_has_a_seed_of_its_own_and_the_key_says_which(server):
    def seeds(key, **options):
        with FaultyProxy(server.server_address[1], **options) as proxy:
            lm = po.load(f"openai:{proxy.url}", patience=HURRY)
            po.importance(jax.random.key(key), po.remote.steps(lm, "the", max_steps=2, max_step_tokens=3), n=6)
            lm.close()
        return Counter(call["seed"] for call in proxy.asked)

    calm, again, other = seeds(1, share=0.0), seeds(1, share=0.4, faults=("server error",)), seeds(2, share=0.0)
    assert calm.keys() == again.keys()  # a repeated attempt asks with the same seed
    assert set(calm.values()) == {1} < set(again.values())
    assert not calm.keys() & other.keys()


def test_potentials_of_minus_infinity_end_a_text_and_cost_no_more_calls(server):
    lm = po.load(f"openai:{server.url}")
    never = po.importance(KEY, po.remote.steps(lm, "the", max_steps=5, potential=lambda text, whole: -math.inf), n=4)
    assert float(never.log_evidence) == -math.inf
    assert lm.ledger.calls == 4
    lm.close()
