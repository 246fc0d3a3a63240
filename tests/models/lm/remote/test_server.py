"""Our own server answers as OpenAI's API says, whoever asks."""

import json
import math
import time

import httpx
import numpy as np
import pytest

import posterity as po

TEXTS = ["the cat sat\n", "the dog sat\na cat ran\n", "à la carte\n", "a dog barks at the cat\nthe end\n"]


@pytest.fixture(scope="module")
def lm():
    return po.tabular.ngram(TEXTS, order=2, smoothing=0.1)


@pytest.fixture(scope="module")
def server(lm):
    with po.remote.serve(lm, name="cats").start() as server:
        yield server


@pytest.fixture(scope="module")
def post(server):
    with httpx.Client(base_url=server.url) as client:
        yield lambda **body: client.post("/completions", json=body)


def events(response):
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_holds_what_the_whole_answer_holds(post):
    asked = {"prompt": "the", "max_tokens": 30, "seed": 4, "stop": ["at\n", "end"], "logprobs": 2}
    whole, stream = post(**asked).json(), events(post(**asked, stream=True, stream_options={"include_usage": True}))
    choices = [event["choices"][0] for event in stream[:-1]]
    (choice,) = whole["choices"]
    assert "".join(part["text"] for part in choices) == choice["text"]
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == (choice["finish_reason"], choice["stop_reason"])
    assert {part["finish_reason"] for part in choices[:-1]} == {None}
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [row for part in choices for row in part["logprobs"][field]] == choice["logprobs"][field]
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == len(choices) == whole["usage"]["total_tokens"] - whole["usage"]["prompt_tokens"]


def test_no_part_of_a_stop_string_is_ever_sent(post):
    for seed in range(6):
        stream = events(post(prompt="the", max_tokens=40, seed=seed, stop="at the", stream=True))
        text = "".join(event["choices"][0]["text"] for event in stream)
        last = stream[-1]["choices"][0]
        assert "at the" not in text
        assert last["stop_reason"] == ("at the" if last["stop_reason"] else None)


def test_the_law_is_the_models(post, lm):
    """First tokens of 400 seeds against their probabilities: each within 4.4 standard errors (a false alarm in 100,000 a token)."""
    automaton, state = lm.model().reader, 0
    for token in lm.tokenizer.encode("the "):
        state = int(automaton.following[state, token])
    law = np.exp(automaton.log_probs[state])
    found = np.bincount([first(post, lm, seed) for seed in range(400)], minlength=len(law)) / 400
    assert (np.abs(found - law) <= 4.4 * np.sqrt(law * (1 - law) / 400) + 1e-9).all()


def first(post, lm, seed):
    request = po.remote.server.Request(lm.tokenizer.encode("the "), 1, (), seed, {}, None, False, "never")
    return next(po.remote.server.written(lm, request)).number


def test_options_of_the_law_are_kept(post, lm):
    greedy = post(prompt="the", max_tokens=12, temperature=0, logprobs=1).json()["choices"][0]
    told = greedy["logprobs"]
    assert all(math.isclose(drawn, max(top.values()), abs_tol=1e-6) for drawn, top in zip(told["token_logprobs"], told["top_logprobs"]))
    assert post(prompt="the", max_tokens=12, top_k=1, seed=9).json()["choices"][0]["text"] == greedy["text"]
    ids = lm.tokenizer.encode("the")
    assert post(prompt=ids, max_tokens=12, temperature=0).json()["choices"][0]["text"] == greedy["text"]


def test_characters_of_several_bytes_come_whole(post):
    found = post(prompt="à l", max_tokens=8, temperature=0, stream=True, stop="zzz")
    assert all("\ufffd" not in event["choices"][0]["text"] for event in events(found))


def test_without_a_seed_texts_differ(post):
    assert len({post(prompt="the", max_tokens=30).json()["choices"][0]["text"] for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "prompt: must be a text, or a list of token ids"),
        ({"prompt": "Z"}, 400, "prompt: Tokenizer: no token for 'Z'"),
        ({"prompt": "a", "model": "dogs"}, 404, "there is no model 'dogs'; there is 'cats'"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens: must be a whole number from 1"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature must be positive"),
        ({"prompt": "a", "temperature": "hot"}, 400, "'>' not supported"),
        ({"prompt": "a", "top_p": 2}, 400, "top_p must lie above 0 and be at most 1"),
        ({"prompt": "a", "stop": [""]}, 400, "stop: must be a text or a list of texts, none empty"),
        ({"prompt": "a", "echo": True}, 400, "echo: only False is served"),
        ({"prompt": "a", "logprobs": 21}, 400, "logprobs: must be a whole number from 0 to 20"),
        ({"prompt": "a", "max_tokens": 2**30}, 400, "do not fit the model's context of"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(post, body, status, message):
    answer = post(**body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_other_paths_and_bodies_are_refused(server):
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/chat").status_code == 404
        assert "no JSON" in client.post("/completions", content=b"{").json()["error"]["message"]
        assert "must be a JSON object" in client.post("/completions", content=b"[]").json()["error"]["message"]
        assert client.get("/models").json()["data"][0]["id"] == "cats"
        assert "posterity:generated_tokens_total" in client.get(server.url.replace("/v1", "/metrics")).text


def test_a_client_that_goes_away_ends_its_text(server, post):
    endless = {"prompt": "the", "temperature": 0}
    assert post(**endless, max_tokens=100).json()["choices"][0]["finish_reason"] == "length"
    with httpx.Client(base_url=server.url) as client, client.stream("POST", "/completions", json={**endless, "max_tokens": 2_000, "stream": True}) as answer:
        next(answer.iter_lines())
    before, after = -1, server.totals["generated_tokens"]
    first = after
    while after != before:
        time.sleep(0.2)
        before, after = after, server.totals["generated_tokens"]
    assert after - first < 1_500
