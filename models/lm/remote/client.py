"""A language model behind a server: calls of its API that lose nothing, cost no more than they may, and can be repeated."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from posterity.models.lm.remote import loop
from posterity.models.lm.remote.attempt import Passing, client_of, events, listed, spelled
from posterity.models.lm.remote.completion import Answer, Completion, Stop, Unclear
from posterity.models.lm.remote.ledger import Account, Budget, Cost, Ledger, checked
from posterity.models.lm.remote.run_log import RunLog, key_of
from posterity.models.lm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 600.0  # seconds: a server that asks for more is no server for this run
SEEDS = 2**31  # servers read seeds as signed numbers, and llama.cpp takes 2^32 - 1 for "any"
PROBES = ("Seventeen 12345678  naïve\n\tπ≈3.14159;", "antidisestablishmentarianism, 東京 🙂 x_y == {z}", "Größe, it's \\frac{1}{2} of HTTP2's 0xFF!")


class Patience(NamedTuple):
    """How long a call may take, and how often it is made again."""

    seconds: float = 300.0  # one attempt, whole
    retries: int = 8  # after the first attempt
    pause: float = 0.5  # seconds: attempt k is followed by a pause uniform on [0, pause * 2^k] beside what the server asks for
    longest_pause: float = 60.0  # seconds


class Remote:
    """A language model behind an OpenAI-compatible server; `po.load("openai:URL", ...)` makes one."""

    def __init__(
        self,
        url: str,
        model: str,
        client: "httpx.AsyncClient",
        *,
        patience: Patience,
        concurrency: int,
        budget: Budget,
        log: RunLog | None,
        tokenizer: Tokenizer | None,
        extract: Callable[[str], str],
    ):
        self.url, self.model, self.concurrency, self.log, self.tokenizer = url, model, concurrency, log, tokenizer
        self.extract = extract  # the answer in a generated text
        self.ledger = Ledger()
        self._client, self._patience = client, patience
        self._slots = asyncio.Semaphore(concurrency)
        told = Cost() if log is None else sum((_cost(call) for call in log.calls.values()), Cost())
        self._account = Account(budget, told)
        self._tells_log_probs: bool | None = None  # not known before the first call
        self._refused: set[str] = set()  # fields of a request that it does not know
        self._tells_ends = True  # whether what it says of an end tells a stop string from the end of a text

    def __repr__(self) -> str:
        return f"Remote({self.model!r} at {self.url})"

    @property
    def log_probs(self) -> str:
        """Whether the server tells log-probabilities, said plainly."""
        known = {
            None: "not known before the first call",
            True: "told by the server, of its own law before temperature and truncation unless it is set otherwise",
            False: "not told by this server: log_prob is None, and nothing can be weighed by it",
        }
        return known[self._tells_log_probs]

    def complete(self, prompt: str, *, seed: int, **options: Any) -> Completion:
        """A continuation of `prompt`. The arguments are those of `begin`; waits for it, also where an event loop is running already."""
        return loop.wait(self.begin(prompt, seed=seed, **options))

    async def begin(
        self,
        prompt: str,
        *,
        seed: int,
        max_tokens: int = 256,
        stop: str | Sequence[str] | re.Pattern | None = None,
        temperature: float = 1.0,
        top_p: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Completion:
        """A continuation of `prompt`, as a coroutine of the background loop (`loop.submit`).

        Args:
          prompt: text; the server adds no chat template to it.
          seed: with the rest it determines the call: the run log answers one that it has seen.
          max_tokens: the largest number of tokens written.
          stop: where it ends: a text or several, which the server looks for, or a compiled pattern, looked for here, where the call is cut.
          temperature, top_p: of the law that tokens are drawn from.
          options: further fields of the request, such as {"top_k": 40}, as this server knows them.

        Raises:
          BudgetExhausted: when it could cost more than is left.
          ConnectionError: when the last attempt failed.
          PermissionError, LookupError, ValueError: for a wrong key, an unknown path or model, a request that the server refuses.
          OSError: when the run log cannot be written.
        """
        stops = Stop.of(stop)
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f"{self.model}: prompt must be a text that is not empty, got {prompt!r}")
        if max_tokens < 1:
            raise ValueError(f"{self.model}: max_tokens must be at least 1, got {max_tokens!r}")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"{self.model}: seed must be a whole number, got {seed!r}")
        law = {"temperature": temperature} | ({} if top_p is None else {"top_p": top_p}) | dict(options or {})
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "seed": seed % SEEDS, **law}
        key = key_of({**body, "stop": list(stops.sent) if stops.pattern is None else stops.pattern.pattern})
        if self.log and key in self.log.calls:
            self._count(replayed=1)
            return _replayed(self.log.calls[key])
        async with self._slots:
            completion = await self._insist(body, stops)
        if self.log:
            if key in self.log.calls:  # a twin, with the same prompt and seed, was faster
                return _replayed(self.log.calls[key])
            self.log.append({"key": key, "model": self.model, "seed": body["seed"], **completion._asdict()})
        return completion

    async def _insist(self, body: dict[str, Any], stops: Stop) -> Completion:
        """Attempts until one succeeds, or there were enough."""
        most = Cost(self._bound(body["prompt"]), body["max_tokens"])
        for attempt in itertools.count():
            await self._account.reserve(most)
            cost = most  # of an attempt that breaks off, nobody says what it was
            try:
                start = time.monotonic()
                completion = await self._attempt(body, stops if self._tells_ends else stops.here())
                cost = self._cost(body["prompt"], completion)
                self._count(calls=1, prompt_tokens=cost.prompt, generated_tokens=cost.generated, seconds=time.monotonic() - start)
                return completion
            except Unclear:
                self._tells_ends, pause = False, 0.0
                self._count(lost=1, lost_tokens=sum(most), retries=1)
            except Passing as trouble:
                cost = most if trouble.started else Cost()
                self._count(lost=int(trouble.started), lost_tokens=sum(cost))
                pause = self._pause(attempt, trouble)
                self._count(retries=1)
            except (PermissionError, LookupError, ValueError) as error:
                cost = Cost()
                raise type(error)(f"{self.model} at {self.url}: {error}") from error
            finally:
                self._account.settle(most, cost)
            await asyncio.sleep(pause)
        raise AssertionError

    async def _attempt(self, body: dict[str, Any], stops: Stop) -> Completion:
        asked = {**body, **({"stop": list(stops.sent)} if stops.sent else {}), "stream": True}
        extras: dict[str, Any] = {"stream_options": {"include_usage": True}, "logprobs": 1}
        if stops.pattern:  # it will be cut off, so usage must come as it goes: by vLLM's and by llama.cpp's name for that
            extras |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "timings_per_token": True}
        asked |= {name: value for name, value in extras.items() if name not in self._refused}
        answer = Answer(stops)
        try:
            async with contextlib.aclosing(events(self._client, "completions", asked, self._patience.seconds)) as told:
                async for event in told:
                    if not answer.take(event):
                        break
        except ValueError as error:  # a server may know less than we ask for
            if not (unknown := {name for name in extras.keys() - self._refused if name in str(error)}):
                raise
            self._refused |= unknown
            return await self._attempt(body, stops)
        try:
            completion = answer.completion()
        except Unclear:
            spelling = await spelled(self._client, self.url.removesuffix("/v1"), answer.ids) if answer.ids else None
            if spelling is None:
                raise
            completion = answer.completion(spelling)
        if completion.tokens != 0:
            self._tells_log_probs = completion.log_prob is not None
        return completion

    def _pause(self, attempt: int, trouble: Passing) -> float:
        """Seconds before the next attempt: exponential, with full jitter (Brooker 2015, "Exponential backoff and jitter"), beside what the server asks for."""
        patience = self._patience
        kept = " (the run log has what was completed: run again to go on)" if self.log else ""
        if attempt >= patience.retries:
            raise ConnectionError(f"{self.model} at {self.url}: {attempt + 1} attempts failed, the last one so: {trouble}{kept}") from trouble
        if trouble.wait > LONGEST_WAIT:
            raise ConnectionError(f"{self.model} at {self.url}: the server asks to wait for {trouble.wait:,.0f} seconds ({trouble}){kept}") from trouble
        return trouble.wait + random.uniform(0.0, min(patience.longest_pause, patience.pause * 2.0**attempt))

    def _bound(self, prompt: str) -> int:
        """The prompt's tokens, or at least as many: a token has a byte, and texts may get one put before them."""
        return len(prompt.encode()) + 2 if self.tokenizer is None else len(self.tokenizer.encode(prompt))

    def _cost(self, prompt: str, completion: Completion) -> Cost:
        if completion.prompt_tokens is not None and completion.tokens is not None:
            return Cost(completion.prompt_tokens, completion.tokens)
        self._count(uncounted=1)
        if self.tokenizer is not None:
            return Cost(self._bound(prompt), len(self.tokenizer.encode(completion.text + completion.stop)))
        if self._account.budget.tokens is None and self._account.budget.money is None:
            return Cost()
        raise ValueError("the server tells no usage, so that no budget can be kept; give the model's tokenizer=, by which tokens are counted here")

    def _count(self, **more: float) -> None:
        now = self.ledger._asdict()
        self.ledger = Ledger(**{name: value + more.get(name, 0) for name, value in now.items()})

    async def _check(self, model: str | None) -> None:
        """Finds the model at the server, and that its tokenizer is the one given."""
        try:
            found = await listed(self._client, min(30.0, self._patience.seconds))
        except LookupError as error:  # some servers serve one model and list none
            if model is None:
                raise ValueError(f"load: {self.url} lists no models ({error}); say which as model=, or mend the address, which mostly ends in /v1") from error
            found = [model]
        except (ConnectionError, PermissionError, ValueError) as error:
            raise type(error)(f"load: {self.url}: {error}") from error
        if model is None and len(found) != 1:
            raise ValueError(f"load: {self.url} serves {len(found)} models; say which as model=: {', '.join(found)}")
        if model is not None and model not in found:
            raise ValueError(f"load: {self.url} does not serve {model!r}; it serves {', '.join(map(repr, found)) or 'no model'}")
        self.model = found[0] if model is None else model
        if self.tokenizer is None:
            return
        for probe in PROBES:
            body = {"model": self.model, "prompt": probe, "max_tokens": 1, "seed": 0, "temperature": 0.0}
            there, here = (await self._insist(body, Stop((), None))).prompt_tokens, len(self.tokenizer.encode(probe))
            if there is not None and there != here:
                whose = f"load: {self.model} at {self.url} has another tokenizer than the one given"
                raise ValueError(f"{whose}: {probe!r} has {there} tokens there, {here} here")

    def close(self) -> None:
        """Ends its connections and lets go of its run log."""
        loop.wait(self._client.aclose())
        if self.log:
            self.log.close()
            self.log = None


def connect(
    url: str,
    *,
    model: str | None = None,
    key: str | None = None,
    concurrency: int = 16,
    budget: Budget | None = None,
    log: str | os.PathLike | None = None,
    tokenizer: Tokenizer | None = None,
    patience: Patience = Patience(),  # noqa: B008 - a constant
    extract: Callable[[str], str] = str.strip,
) -> Remote:
    """The language model that an OpenAI-compatible server (vLLM, llama.cpp, SGLang, `posterity serve`) serves at `url`, which mostly ends in /v1.

    Args:
      url: the address, http:// or https://.
      model: its name there; may be left out where the server has one.
      key: the server's, if it wants one. It is written nowhere.
      concurrency: how many calls may be under way at once.
      budget: what they all may cost; see `Budget`.
      log: a file that keeps completed calls: a run with the same key and log goes on where it was killed.
      tokenizer: the model's, if it is known here: checked against the server's, and used to count tokens in advance.
      patience: how long calls may take and how often they are made again.
      extract: the answer in a generated text.

    Raises:
      ConnectionError: when no server answers there.
      PermissionError: when it refuses the key.
      ValueError: for a model that it does not have, another tokenizer, an address that is none, or options out of range.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"load: after openai: comes an address such as http://localhost:8000/v1, got {url!r}")
    if not isinstance(concurrency, int) or concurrency < 1:
        raise ValueError(f"load: concurrency must be a whole number of at least 1, got {concurrency!r}")
    if not patience.seconds > 0 or patience.retries < 0 or patience.pause < 0 or patience.longest_pause < 0:
        raise ValueError(f"load: patience must have positive seconds and no negative number, got {patience}")
    url = url.rstrip("/")
    budget, client = checked(budget), client_of(url, key, concurrency, patience.seconds)
    kept = None if log is None else RunLog(log)
    options: dict[str, Any] = {"patience": patience, "concurrency": concurrency, "budget": budget, "log": kept, "tokenizer": tokenizer, "extract": extract}
    lm = Remote(url, model or "", client, **options)
    try:
        loop.wait(lm._check(model))
    except BaseException:
        lm.close()
        raise
    return lm


def _replayed(call: Mapping[str, Any]) -> Completion:
    return Completion(*(call[name] for name in Completion._fields))


def _cost(call: Mapping[str, Any]) -> Cost:
    return Cost(call["prompt_tokens"] or 0, call["tokens"] or 0)
