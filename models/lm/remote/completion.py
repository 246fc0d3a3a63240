"""What a server has written: the events of its answer, put together, and how it came to an end."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Finish = Literal["stop", "eos", "length"]


class Completion(NamedTuple):
    """The continuation of a prompt."""

    text: str  # up to where it was stopped
    finish: Finish  # at a stop string, by the model's own end of text, or cut off by the largest number of tokens
    stop: str  # the string that it stopped at; "" for other ends
    log_prob: float | None  # nats, of all that was written, its end included, under the law that the server tells; None where it tells none
    prompt_tokens: int | None  # as the server counts; None where it tells none
    tokens: int | None  # that were written, the same


class Unclear(Exception):
    """The server says "stop" both at a stop string and at the end of a text, and nothing else tells which it was."""


class Answer:
    """An answer under way: give it the events as they come."""

    def __init__(self, stop: "Stop"):
        self.stop = stop
        self.text = ""
        self.tokens: list[str] = []
        self.ids: list[int] = []  # of the tokens, where the server tells them
        self.log_probs: list[float] = []
        self.reason: str | None = None
        self.matched: list[Any] = []  # what the server says stopped it, if it says so
        self.usage: Mapping[str, Any] = {}
        self.cut: re.Match | None = None  # where it was stopped here

    def take(self, event: Mapping[str, Any]) -> bool:
        """Whether it goes on: not when what was looked for here has been written."""
        self.usage = event.get("usage") or _timed(event.get("timings")) or self.usage
        for choice in event.get("choices") or ():
            self.text += choice.get("text") or ""
            self._note(choice.get("logprobs") or {})
            self.reason = choice.get("finish_reason") or self.reason
            if choice.get("finish_reason"):
                self.matched = [choice[name] for name in ("stop_reason", "matched_stop") if name in choice]
        self.cut = self.stop.pattern.search(self.text) if self.stop.pattern else None
        return self.cut is None

    def completion(self, spelled: str | None = None) -> Completion:
        """All of it; `spelled` is what its tokens spell, the stop string included, where that is known.

        Raises:
          Unclear: when its end is.
          ValueError: when the server gave it up.
        """
        log_prob = sum(self.log_probs) if self.log_probs else None
        usage = self.usage.get("prompt_tokens"), self.usage.get("completion_tokens")
        if self.cut is not None:
            return Completion(self.text[: self.cut.start()], "stop", self.cut.group(), log_prob, *usage)
        if self.reason == "length":
            return Completion(self.text, "length", "", log_prob, *usage)
        if self.reason != "stop":
            raise ValueError(f"the server gave an answer up: finish_reason {self.reason!r}")
        found = self._matched("".join(self.tokens) if spelled is None else spelled, certain=spelled is not None)
        return Completion(self.text, "stop" if found else "eos", found, log_prob, *usage)

    def _matched(self, spelled: str, certain: bool) -> str:
        """The stop string that the server stopped at, "" at the end of a text."""
        if not self.stop.sent:
            return ""
        if self.matched:
            return next((found for found in self.matched if isinstance(found, str)), "")
        beyond = spelled.removeprefix(self.text) if spelled.startswith(self.text) else ""
        if found := next((text for text in self.stop.sent if beyond.startswith(text)), ""):
            return found
        if certain:
            return ""
        raise Unclear

    def _note(self, told: Mapping[str, Any]) -> None:
        """Takes tokens and their log-probabilities from either of the two forms in which servers tell them."""
        if "content" in told:
            rows = [(row.get("token", ""), row.get("logprob"), row.get("id")) for row in told["content"] or ()]
        else:
            rows = [(*row, None) for row in zip(told.get("tokens") or (), told.get("token_logprobs") or (), strict=False)]
        self.tokens.extend(token for token, _, _ in rows)
        self.log_probs.extend(float(value) for _, value, _ in rows if value is not None)
        self.ids.extend(number for _, _, number in rows if number is not None)


class Stop(NamedTuple):
    """Where a continuation stops: at strings that the server looks for, or at a pattern that is looked for here."""

    sent: tuple[str, ...]
    pattern: re.Pattern | None

    @classmethod
    def of(cls, stop: "str | Sequence[str] | re.Pattern | None") -> "Stop":
        """Raises ValueError for an empty stop."""
        if isinstance(stop, re.Pattern):
            if stop.match(""):
                raise ValueError(f"stop: the pattern {stop.pattern!r} matches nothing at all, so that no text could begin")
            return cls((), stop)
        texts = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop must be a text, several, or a compiled pattern, none of them empty; got {stop!r}")
        return cls(texts, None)

    def here(self) -> "Stop":
        """The same, looked for here."""
        return Stop((), re.compile("|".join(map(re.escape, self.sent)))) if self.sent else self


def _timed(timings: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """llama.cpp's counts of an answer under way, as usage."""
    return timings and {"prompt_tokens": timings.get("prompt_n", 0) + timings.get("cache_n", 0), "completion_tokens": timings.get("predicted_n")}
