"""A server for any language model of this process, with the API that clients of OpenAI, vLLM and llama.cpp speak: `posterity serve`.

It answers /v1/models, /v1/completions (with stop, seed, logprobs, usage and streaming) and /metrics. The same seed gives the same text, whatever
else is asked at the time. vLLM's `stop_reason` says which stop string ended a text, and null where the model did.
"""

import codecs
import functools
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.next_token import checked_law, next_token
from posterity.ppl.effects import draw

LEAST_ROOM = 32  # tokens: room grows in powers of two from here, so that few programs are compiled
MOST_LOG_PROBS = 20
ONLY = {"n": 1, "best_of": 1, "echo": False, "suffix": None, "logit_bias": None, "presence_penalty": 0, "frequency_penalty": 0}  # what else is not served


class Refused(Exception):
    """A request that is not served, with the status that says why."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Request(NamedTuple):
    """A completion as it is asked for."""

    tokens: list[int]
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    law: dict[str, Any]  # options of `next_token`
    log_probs: int | None  # how many of the likeliest tokens are told beside each; None for no log-probabilities
    stream: bool
    usage: str  # in a stream: "never", "last" or "always"


class Token(NamedTuple):
    """One that was drawn, with the text that is now certain."""

    number: int
    log_prob: float  # nats, under the model's own law
    likeliest: dict[int, float]
    text: str
    finish: str | None  # "stop" or "length" at the last
    stop: str | None  # the string that was found


class Server(ThreadingHTTPServer):
    """Serves a model until it is closed; a context manager, with the address as `url`."""

    daemon_threads = True
    request_queue_size = 512  # connections that wait to be taken

    def __init__(self, lm: LanguageModel, host: str, port: int, key: str | None, name: str):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.lm, self.key, self.name = lm, key, name
        self.totals = {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/v1"

    def start(self) -> Self:
        """Serves in a thread."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def count(self, **more: int) -> None:
        with self.lock:
            for name, number in more.items():
                self.totals[name] += number

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def serve(lm: LanguageModel, *, host: str = "127.0.0.1", port: int = 0, key: str | None = None, name: str | None = None) -> Server:
    """A server of `lm`: `.start()` serves in a thread, `.serve_forever()` here; with `key` it answers those alone who have it.

    Raises:
      OSError: when the port is taken.

    >>> import posterity as po
    >>> lm = po.tabular.ngram(["the cat sat", "the dog ran"], order=2, words=True)
    >>> with po.remote.serve(lm).start() as server:
    ...     far = po.load(f"openai:{server.url}")
    ...     completion = far.complete("the", seed=1, max_tokens=8)
    ...     far.close()
    >>> completion.finish, completion.prompt_tokens
    ('eos', 2)
    """
    return Server(lm, host, port, key, name or lm.name)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # small chunks would wait for each other, 40 ms each

    def log_message(self, *_: object) -> None:
        """Nothing: prompts are nobody else's business."""

    def do_GET(self) -> None:
        self._answer({"/v1/models": self._models, "/metrics": self._metrics, "/health": lambda: self._send(200, b"{}")})

    def do_POST(self) -> None:
        self._answer({"/v1/completions": self._completions})

    def _answer(self, known: Mapping[str, Any]) -> None:
        try:
            path = self.path.partition("?")[0].rstrip("/")
            given = self.headers.get("Authorization", "")
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path not in known:
                raise Refused(404, f"there is no {path}; there are /v1/completions, /v1/models, /metrics and /health")
            if self.server.key is not None and path != "/health" and not hmac.compare_digest(given.encode(), f"Bearer {self.server.key}".encode()):
                raise Refused(401, "the API key is missing or wrong")
            known[path]()
        except Refused as error:
            self._send(error.status, json.dumps({"error": {"message": error.message, "type": "invalid_request_error", "code": error.status}}).encode())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away: nothing more is written for it

    def _models(self) -> None:
        row = {"id": self.server.name, "object": "model", "created": 0, "owned_by": "posterity", "max_model_len": self.server.lm.context_length}
        self._send(200, json.dumps({"object": "list", "data": [row]}).encode())

    def _metrics(self) -> None:
        lines = [f"# TYPE posterity:{name}_total counter\nposterity:{name}_total {number}\n" for name, number in self.server.totals.items()]
        self._send(200, "".join(lines).encode(), "text/plain; version=0.0.4")

    def _completions(self) -> None:
        lm = self.server.lm
        request = asked(lm, self.server.name, self.body)
        self.server.count(requests=1, prompt_tokens=len(request.tokens))
        head = {"id": f"cmpl-{secrets.token_hex(8)}", "object": "text_completion", "created": int(time.time()), "model": self.server.name}
        usage, told, offset = {"prompt_tokens": len(request.tokens), "completion_tokens": 0, "total_tokens": len(request.tokens)}, [], 0
        if request.stream:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-cache")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        for token in written(lm, request):
            self.server.count(generated_tokens=1)
            usage = {**usage, "completion_tokens": usage["completion_tokens"] + 1, "total_tokens": usage["total_tokens"] + 1}
            if request.stream:
                event = {**head, "choices": [_choice(lm, [token], request, offset)]}
                self._event(event | ({"usage": usage} if request.usage == "always" else {}))
                offset += len(token.text)
            else:
                told.append(token)
        if not request.stream:
            self._send(200, json.dumps({**head, "choices": [_choice(lm, told, request, 0)], "usage": usage}).encode())
            return
        if request.usage != "never":
            self._event({**head, "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: Mapping[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def asked(lm: LanguageModel, name: str, body: bytes) -> Request:
    """The request that a body holds.

    Raises:
      Refused: for one that is not served, saying which field is to blame.
    """
    try:
        given = json.loads(body)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refused(400, "the body must be a JSON object")
    if given.get("model", name) != name:
        raise Refused(404, f"there is no model {given['model']!r}; there is {name!r}")
    for field, only in ONLY.items():
        if given.get(field) not in (only, None):
            raise Refused(400, f"{field}: only {only!r} is served, got {given[field]!r}")
    tokens = _tokens(lm, given.get("prompt"))
    max_tokens = _whole(given, "max_tokens", 16, 1)
    if len(tokens) + max_tokens > lm.context_length:
        raise Refused(400, f"a prompt of {len(tokens)} tokens and max_tokens {max_tokens} do not fit the model's context of {lm.context_length} tokens")
    stop = given.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) and text for text in stop):
        raise Refused(400, f"stop: must be a text or a list of texts, none empty, got {given['stop']!r}")
    law = {option: given[option] for option in ("temperature", "top_k", "top_p", "min_p") if given.get(option) is not None}
    if law.get("temperature") == 0:
        law = {"top_k": 1}  # the likeliest token
    try:
        law = checked_law("the request", **law)
    except (TypeError, ValueError) as error:
        raise Refused(400, str(error)) from error
    log_probs = None if given.get("logprobs") in (None, False) else _whole(given, "logprobs", 0, 0, MOST_LOG_PROBS)
    seed = secrets.randbits(32) if given.get("seed") is None else _whole(given, "seed", 0, -(2**63), 2**63) % 2**32
    options = given.get("stream_options") or {}
    usage = "always" if options.get("continuous_usage_stats") else "last" if options.get("include_usage") else "never"
    return Request(tokens, max_tokens, tuple(stop), seed, law, log_probs, bool(given.get("stream")), usage)


def written(lm: LanguageModel, request: Request) -> Iterator[Token]:
    """The tokens of a completion, one after the other."""
    length, count = len(request.tokens), request.max_tokens
    tokens = np.zeros(_room(length, lm.context_length), np.int32)
    tokens[:length] = request.tokens
    logits, memory = _begin(lm, tokens, np.int32(length), _room(count, lm.context_length))
    key, reader, text, sure = jax.random.key(request.seed), codecs.getincrementaldecoder("utf-8")("replace"), "", 0
    for i in range(count):
        number, log_prob, top, logits, memory = _next(lm, logits, memory, key, np.int32(i), request.law, request.log_probs or 0)
        number, ended = int(number), int(number) in lm.tokenizer.end_ids
        last = ended or i + 1 == count
        text += reader.decode(b"" if ended else lm.tokenizer.token_bytes[number], last)
        at, found = min(((text.find(stop), stop) for stop in request.stop if stop in text), default=(-1, None))
        end = at if found else len(text) if last else len(text) - _begun(text, request.stop)
        likeliest = {int(token): float(value) for token, value in zip(*jax.device_get(top))}
        finish = "stop" if found or ended else "length" if last else None
        yield Token(number, float(log_prob), likeliest, text[sure:end], finish, found)
        if finish:
            return
        sure = end


@functools.partial(jax.jit, static_argnames="steps")
def _begin(lm: LanguageModel, tokens: Array, length: Array, steps: int) -> tuple[Array, Any]:
    return lm.model().start(tokens, length, 1, steps)


@functools.partial(jax.jit, static_argnames="most", donate_argnames="memory")
def _next(lm: LanguageModel, logits: Array, memory: Any, key: Array, i: Array, law: Mapping[str, Any], most: int) -> tuple:
    """One token drawn, its log-probability, the `most` likeliest with theirs, and what follows it."""
    law_of_text = next_token(logits[0], **law)
    token = jnp.asarray(draw(jax.random.fold_in(key, i), "token", law_of_text), jnp.int32)
    log_probs = jax.nn.log_softmax(logits[0])
    values, likeliest = jax.lax.top_k(log_probs, most)
    logits, memory = lm.model().advance(memory, token[None], jnp.ones(1, bool))
    return token, log_probs[token], (likeliest, values), logits, memory


def _tokens(lm: LanguageModel, prompt: Any) -> list[int]:
    if isinstance(prompt, list) and prompt and all(isinstance(i, int) and 0 <= i < lm.tokenizer.vocab_size for i in prompt):
        return prompt
    if not isinstance(prompt, str):
        raise Refused(400, f"prompt: must be a text, or a list of token ids below {lm.tokenizer.vocab_size}")
    try:
        tokens = lm.tokenizer.encode(prompt)
    except ValueError as error:
        raise Refused(400, f"prompt: {error}") from error
    if not tokens:
        raise Refused(400, "prompt: it is empty; give at least one token of text")
    return tokens


def _whole(given: Mapping[str, Any], field: str, default: int, least: int, most: int = 2**31) -> int:
    value = given.get(field, default)
    value = default if value is None else value
    if not isinstance(value, int) or not least <= value <= most:
        raise Refused(400, f"{field}: must be a whole number from {least} to {most}, got {value!r}")
    return int(value)


def _room(tokens: int, most: int) -> int:
    """A power of two with room for so many, but no more than the model has."""
    return max(min(max(1 << (tokens - 1).bit_length(), LEAST_ROOM), most), tokens)


def _begun(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    longest = max(map(len, stops), default=1) - 1
    return next((k for k in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-k:]) for stop in stops)), 0)


def _choice(lm: LanguageModel, tokens: list[Token], request: Request, offset: int) -> dict[str, Any]:
    last = tokens[-1]
    choice = {"index": 0, "text": "".join(token.text for token in tokens), "finish_reason": last.finish, "stop_reason": last.stop, "logprobs": None}
    if request.log_probs is not None:
        spelled = functools.partial(_spelled, lm)
        choice["logprobs"] = {
            "tokens": [spelled(token.number) for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": [{spelled(number): value for number, value in token.likeliest.items()} for token in tokens],
            "text_offset": [offset + sum(len(before.text) for before in tokens[:i]) for i in range(len(tokens))],
        }
    return choice


def _spelled(lm: LanguageModel, token: int) -> str:
    return lm.tokenizer.token_bytes[token].decode(errors="replace") or str(lm.tokenizer.backend.id_to_token(token))
