"""A model behind a server: what it writes, what is told of it, what it costs, and what is said when it cannot be used."""

import asyncio
import math
import os
import re
import signal
import socket
import threading
import time

import jax
import pytest
import tokenizers

import posterity as po
from posterity.models.lm.remote.attempt import retry_after
from posterity.models.lm.remote.completion import Answer, Stop, Unclear
from posterity.models.lm.tokenizer import Tokenizer
from posterity.tests.fixtures.faulty_proxy import FaultyProxy

KEY = jax.random.key(0)
TEXTS = ["the cat sat\n", "the dog sat\na cat ran\n", "a cat ran\nthe dog barks\nthe cat sat\n", "a dog barks at the cat\nthe end\n"]


@pytest.fixture(scope="module")
def local():
    return po.tabular.ngram(TEXTS, order=2, smoothing=0.1)


@pytest.fixture(scope="module")
def server(local):
    with po.remote.serve(local, name="cats").start() as server:
        yield server


@pytest.fixture
def lm(server):
    lm = po.load(f"openai:{server.url}")
    yield lm
    lm.close()


def log_prob(local, prompt, text, *, ended):
    """Of a text, by the same model in this process."""
    automaton, state, total = local.model().reader, 0, 0.0
    given = len(local.tokenizer.encode(prompt))
    for i, token in enumerate(local.tokenizer.encode(prompt + text) + list(local.tokenizer.end_ids) * ended):
        total += float(automaton.log_probs[state, token]) if i >= given else 0.0
        state = int(automaton.following[state, token])
    return total


def test_a_stop_string_the_end_of_a_text_and_a_cut_are_told_apart(lm, local):
    found = {}
    for seed in range(16):
        completion = lm.complete("the", seed=seed, max_tokens=7, stop="\n")
        found[completion.finish] = completion
    assert found.keys() == {"stop", "eos", "length"}
    assert (found["stop"].stop, found["eos"].stop, found["length"].stop) == ("\n", "", "")
    for completion in found.values():
        expected = log_prob(local, "the", completion.text + completion.stop, ended=completion.finish == "eos")
        assert completion.log_prob == pytest.approx(expected, abs=1e-4)
        assert completion.tokens == len(completion.text) + (completion.finish != "length")


def test_a_pattern_cuts_a_call_off_here_and_the_cost_is_known_all_the_same(lm):
    whole = lm.complete("the", seed=5, max_tokens=60)
    word = re.compile(r"[a-z]+ ")
    cut = lm.complete("the", seed=5, max_tokens=60, stop=word)
    found = word.search(whole.text)
    assert (cut.text + cut.stop, cut.finish) == (whole.text[: found.end()], "stop")
    assert cut.tokens == found.end()
    assert lm.ledger.uncounted == 0


def test_what_is_seen_of_an_answer_decides_how_it_ended():
    def end(stop, *choices, usage=None, **kept):
        answer = Answer(Stop.of(stop))
        for choice in choices:
            answer.take({"choices": [choice], "usage": usage})
        return answer.completion(**kept)

    done = {"text": "", "finish_reason": "stop"}
    assert end("\n", {"text": "a"}, done | {"stop_reason": "\n"}).finish == "stop"  # vLLM
    assert end("\n", {"text": "a"}, done | {"stop_reason": None}).finish == "eos"
    assert end("\n", {"text": "a"}, done | {"matched_stop": 2}).finish == "eos"  # SGLang, an end token's number
    assert end("\n", {"text": "a"}, done | {"matched_stop": "\n"}).stop == "\n"
    assert end(None, {"text": "a"}, done).finish == "eos"
    assert end("\n", {"text": "a"}, {"text": "", "finish_reason": "length"}).finish == "length"
    beyond = {"text": "", "logprobs": {"content": [{"token": "\n", "logprob": -1.0, "id": 7}]}}
    assert end("\n", {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5]}}, beyond, done)[2:4] == ("\n", -1.5)
    assert end("\n", {"text": "a"}, done, spelled="a\n").finish == "stop"
    assert end("\n", {"text": "a"}, done, spelled="a</s>").finish == "eos"
    with pytest.raises(Unclear):
        end("\n", {"text": "a"}, done)
    with pytest.raises(ValueError, match="gave an answer up: finish_reason 'content_filter'"):
        end(None, {"text": "a", "finish_reason": "content_filter"})


def test_a_server_that_says_stop_for_either_end_is_cut_off_here_instead(server):
    """The proxy takes out what tells them apart; the results stay the same."""

    class Mute(FaultyProxy):
        async def _answer(self, fault, request, writer):
            write = writer.write
            writer.write = lambda data: write(re.sub(rb'"(stop_reason|logprobs)":', lambda m: b'"' + b"x" * (len(m[0]) - 3) + b'":', data))
            await super()._answer(fault, request, writer)

    plain, found = po.load(f"openai:{server.url}"), []
    with Mute(server.server_address[1], share=0.0) as proxy:
        mute = po.load(f"openai:{proxy.url}")
        for seed in range(6):
            found.append(mute.complete("the", seed=seed, max_tokens=7, stop="\n"))
        assert [row[:3] for row in found] == [plain.complete("the", seed=seed, max_tokens=7, stop="\n")[:3] for seed in range(6)]
        assert {row.log_prob for row in found} == {None}
        assert mute.log_probs.startswith("not told by this server")
        assert mute.ledger.retries == 1
        mute.close()
    plain.close()


def test_the_ledger_is_the_servers_own_count(server, lm, local):
    before = dict(server.totals)
    for seed in range(5):
        lm.complete("a dog", seed=seed, max_tokens=9, stop="\n")
    assert lm.ledger.calls == server.totals["requests"] - before["requests"] == 5
    assert lm.ledger.prompt_tokens == server.totals["prompt_tokens"] - before["prompt_tokens"] == 5 * len(local.tokenizer.encode("a dog"))
    assert lm.ledger.generated_tokens == server.totals["generated_tokens"] - before["generated_tokens"]


@pytest.mark.parametrize(
    "budget",
    [po.remote.Budget(tokens=150), po.remote.Budget(money=0.15, prices=(1_000.0, 1_000.0))],
)
def test_a_budget_is_never_exceeded_and_what_was_paid_for_is_kept(server, tmp_path, budget):
    def run(**options):
        lm = po.load(f"openai:{server.url}", log=tmp_path / "log", **options)
        try:
            return str(po.smc(KEY, po.remote.steps(lm, "the", max_steps=6, max_step_tokens=4), n=5)), lm.ledger
        except po.remote.BudgetExhausted as error:
            return str(error), lm.ledger
        finally:
            lm.close()

    message, first = run(budget=budget)
    assert message.startswith("budget: ")
    assert 100 < first.tokens <= 150
    assert len((tmp_path / "log").read_text().splitlines()) == first.calls
    message, second = run(budget=budget)
    assert message.startswith("budget: ")
    assert (second.calls, second.replayed) == (0, first.calls)  # what the log tells was paid for as well
    found, third = run()
    assert third.replayed >= first.calls
    assert found == str(po.smc(KEY, po.remote.steps(po.load(f"openai:{server.url}"), "the", max_steps=6, max_step_tokens=4), n=5))


def test_an_interrupt_ends_the_calls_under_way(server):
    with FaultyProxy(server.server_address[1], faults=("silence",)) as proxy:
        lm = po.load(f"openai:{proxy.url}")

        def interrupt():
            while proxy.under_way < 3:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            po.importance(KEY, po.remote.steps(lm, "the", max_steps=1), n=3)
        until = time.monotonic() + 5
        while lm._account.under_way and time.monotonic() < until:
            time.sleep(0.01)
        assert (lm._account.under_way, sum(lm._account.reserved)) == (0, 0)
        lm.close()


def test_a_running_event_loop_does_not_mind(lm):
    async def notebook():
        return lm.complete("the", seed=1, max_tokens=3)

    assert asyncio.run(notebook()) == lm.complete("the", seed=1, max_tokens=3)


def test_the_same_call_is_the_same_text_whatever_else_is_asked(lm):
    alone = [lm.complete("a cat", seed=seed, max_tokens=9) for seed in range(4)]
    together = [po.remote.loop.submit(lm.begin("a cat", seed=seed, max_tokens=9)) for seed in range(4)]
    assert [call.result() for call in together] == alone
    assert len({completion.text for completion in alone}) > 1


# -- what cannot be used ----------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_wrong_key_is_told_as_such_and_no_key_is_ever_written(local, tmp_path):
    with po.remote.serve(local, key="open sesame").start() as server:
        for wrong in ({}, {"key": "open barley"}):
            with pytest.raises(PermissionError, match=r"refuses the key \(401 Unauthorized: the API key is missing or wrong\); give the right one"):
                po.load(f"openai:{server.url}", **wrong)
        lm = po.load(f"openai:{server.url}", key="open sesame", log=tmp_path / "log")
        lm.complete("the", seed=0, max_tokens=2)
        assert "sesame" not in repr(lm) + (tmp_path / "log").read_text()
        lm.close()


def test_no_server_no_route_another_model_and_another_tokenizer_are_named(server, local):
    with pytest.raises(ConnectionError, match=r"load: http://127.0.0.1:\d+/v1: no server answers .*; is it running, and is the address right\?"):
        po.load(f"openai:http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(ConnectionError, match="no server answers"):
        po.load("openai:http://no.such.host.invalid/v1")
    with pytest.raises(ValueError, match="does not serve 'dogs'; it serves 'cats'"):
        po.load(f"openai:{server.url}", model="dogs")
    with pytest.raises(ValueError, match=r"lists no models \(404.*mend the address, which mostly ends in /v1"):
        po.load(f"openai:{server.url.removesuffix('/v1')}")


def test_another_tokenizer_is_told_by_how_it_cuts_texts():
    letters = po.tabular.ngram(po.remote.client.PROBES, order=1)
    with po.remote.serve(letters).start() as server:
        po.load(f"openai:{server.url}", tokenizer=letters.tokenizer).close()
        with pytest.raises(ValueError, match=r"ngram at .* has another tokenizer than the one given: 'Seventeen .*' has 38 tokens there, 41 here"):
            po.load(f"openai:{server.url}", tokenizer=bytes_as_tokens())


def bytes_as_tokens():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend)


def test_what_answers_but_is_no_such_server_is_told_so():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ValueError, match="what answers is no OpenAI-compatible server"):
            po.load(f"openai:http://127.0.0.1:{listening.getsockname()[1]}/v1")


def test_what_the_server_refuses_is_told_and_not_tried_again(lm):
    with pytest.raises(ValueError, match=r"refuses the request \(400 Bad Request: n: only 1 is served, got 3"):
        lm.complete("the", seed=0, options={"n": 3})
    with pytest.raises(ValueError, match=r"refuses the request \(400 Bad Request: prompt: Tokenizer: no token for 'X'"):
        lm.complete("X", seed=0)
    assert lm.ledger.retries == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda lm: po.load("openai:localhost:8000"), ValueError, "an address such as http://localhost:8000/v1, got 'localhost:8000'"),
        (lambda lm: po.load(f"openai:{lm.url}", dtype="float32"), TypeError, "it has no dtype"),
        (lambda lm: po.load("abacus", key="k"), TypeError, "load: key: for models behind a server"),
        (lambda lm: po.load(f"openai:{lm.url}", concurrency=0), ValueError, "concurrency must be a whole number of at least 1, got 0"),
        (lambda lm: po.load(f"openai:{lm.url}", patience=po.remote.Patience(seconds=0)), ValueError, "patience must have positive seconds"),
        (lambda lm: po.load(f"openai:{lm.url}", budget=po.remote.Budget(tokens=-1)), ValueError, "budget: tokens must be at least 0, got -1"),
        (lambda lm: po.load(f"openai:{lm.url}", budget=po.remote.Budget(money=1.0)), ValueError, "money needs prices"),
        (lambda lm: lm.complete("", seed=0), ValueError, "prompt must be a text that is not empty"),
        (lambda lm: lm.complete("a", seed=None), ValueError, "seed must be a whole number, got None"),
        (lambda lm: lm.complete("a", seed=0, stop=["x", ""]), ValueError, "none of them empty"),
        (lambda lm: lm.complete("a", seed=0, stop=re.compile("x*")), ValueError, "matches nothing at all"),
        (lambda lm: lm.complete("a", seed=0, max_tokens=0), ValueError, "max_tokens must be at least 1"),
        (lambda lm: po.remote.steps(lm, "a", max_steps=0), ValueError, "max_steps must be a whole number of at least 1, got 0"),
        (lambda lm: po.remote.steps(lm, "", max_steps=1), ValueError, "prompt must be a text"),
        (lambda lm: po.remote.steps(lm, "a", max_steps=1, temperature=-1.0), ValueError, "temperature must be at least 0"),
        (lambda lm: po.remote.steps(lm, "a", max_steps=1, potential=3), TypeError, "potential must be a function"),
        (lambda lm: po.remote.steps("abacus", "a", max_steps=1), TypeError, "lm must be a model behind a server"),
    ],
)
def test_bad_input_is_named(lm, call, error, message):
    with pytest.raises(error, match=message):
        call(lm)


def test_retry_after_is_seconds_or_a_date():
    assert [retry_after(given) for given in (None, "3", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")] == [0.0, 3.0, 0.0, 0.0, 0.0]
    assert 5 < retry_after(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 10))) <= 10


def test_a_potential_that_raises_or_gives_no_number_is_named(lm):
    def fails(text, whole):
        raise ZeroDivisionError("no")

    for potential, error, message in ((fails, RuntimeError, "the potential raised ZeroDivisionError for"), (lambda *_: math.nan, ValueError, "returned nan")):
        with pytest.raises(error, match=message):
            po.importance(KEY, po.remote.steps(lm, "the", max_steps=1, max_step_tokens=2, potential=potential), n=2)


def test_requests_are_those_of_the_api_and_no_more(server):
    with FaultyProxy(server.server_address[1], share=0.0) as proxy:
        lm = po.load(f"openai:{proxy.url}")
        lm.complete("the", seed=2**32 - 1, max_tokens=2, stop="\n", top_p=0.5, options={"top_k": 2})
        lm.close()
    law = {"temperature": 1.0, "top_p": 0.5, "top_k": 2}
    asked = {"model": "cats", "prompt": "the", "max_tokens": 2, "seed": 2**31 - 1, "stop": ["\n"], "stream": True, "logprobs": 1}
    assert proxy.asked == [asked | law | {"stream_options": {"include_usage": True}}]
