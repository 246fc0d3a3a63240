"""Texts as another model is to read them: written into a template, in that model's own tokens.

Turning text into tokens is the host's work; what is done with the tokens stays on the device, so that the weights are data of the program.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from posterity.models.lm.text import Text
from posterity.models.lm.tokenizer import Tokenizer

BUCKET = 16  # tokens: texts from Python are padded to multiples of it, so that texts of other lengths share compiled code
SLOT = re.compile(r"(\{prompt\}|\{text\})")


class Read(NamedTuple):
    """Texts in the reader's tokens."""

    tokens: Any  # [n, room] int32
    lengths: Any  # [n] int32
    ends: Any  # [n, room] bool: the last tokens of what is to be scored


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a text becomes tokens. A static part of compiled code: two with the same contents are equal."""

    name: str  # in errors
    tokenizer: Tokenizer
    template: str  # with {text}, and perhaps {prompt}
    room: int  # tokens
    delimiter: str | None = None  # ends a step; None: the template as a whole is one piece
    marker: str = ""  # stands at the end of each step, in the delimiter's place

    def __post_init__(self):
        if self.template.count("{text}") != 1:
            raise ValueError(f"{self.name}: the template must hold {{text}} once, and may hold {{prompt}}; got {self.template!r}")
        if self.room < 1:
            raise ValueError(f"{self.name}: max_tokens must be at least 1, got {self.room}")
        if self.delimiter == "":
            raise ValueError(f"{self.name}: delimiter must not be empty; None makes the whole text one step")

    def __call__(self, texts: Text, where: Bool[Array, " n"]) -> Read:
        """The texts [n] in the reader's tokens, those where `where` holds; the others are one token that means nothing.

        Raises:
          ValueError: at run time, for a text that has no tokens here, or more than there is room for.
        """
        n = texts.length.shape[0]
        shapes = Read(*(jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((n, self.room), jnp.int32), ((n,), jnp.int32), ((n, self.room), bool))))
        host = functools.partial(self._on_host, texts.tokenizer)
        return jax.pure_callback(host, shapes, texts.tokens, texts.prompt_length, texts.length, where, vmap_method="broadcast_all")

    def read(self, pairs: Sequence[tuple[str, str]]) -> Read:
        """The same of prompts and texts from Python, padded to a multiple of BUCKET tokens."""
        found = [self.encoded(*pair) for pair in pairs]
        return _padded(found, min(-(-max((len(ids) for ids, _ in found), default=1) // BUCKET) * BUCKET, self.room))

    def encoded(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and the places in them at which pieces end."""
        ids: list[int] = []
        ends: list[int] = []
        for piece, scored in self._pieces(prompt, text):
            ids += self.tokenizer.encode_on(piece) if ids else self.tokenizer.encode(piece)
            ends += [len(ids) - 1] if scored and ids else []
        if not 0 < len(ids) <= self.room:
            raise ValueError(f"{self.name}: a text must come to 1 to {self.room} tokens; {text[:40]!r} in its template has {len(ids)}")
        return ids, ends or [len(ids) - 1]

    def _pieces(self, prompt: str, text: str) -> list[tuple[str, bool]]:
        values = {"{prompt}": prompt, "{text}": text}
        if self.delimiter is None:
            return [("".join(values.get(part, part) for part in SLOT.split(self.template)) + self.marker, True)]
        before, after = (part.replace("{prompt}", prompt) for part in self.template.split("{text}"))
        steps = [step for step in text.split(self.delimiter) if step.strip()]
        return [(before, False), *((step + (self.marker or self.delimiter), True) for step in steps), (after, False)]

    def _on_host(self, tokenizer: Tokenizer, tokens: Any, prompt_lengths: Any, lengths: Any, where: Any) -> Read:
        tokens, shape = np.asarray(tokens), np.shape(lengths)
        rows = zip(tokens.reshape(-1, tokens.shape[-1]).tolist(), *(np.asarray(x).reshape(-1).tolist() for x in (prompt_lengths, lengths, where)), strict=True)
        known: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        found = []
        for ids, start, end, wanted in rows:
            if not wanted:
                found.append(([0], [0]))
                continue
            pair = tokenizer.decode(ids[:start]), written(tokenizer, ids[start:end])
            if pair not in known:
                known[pair] = self.encoded(*pair)
            found.append(known[pair])
        read = _padded(found, self.room)
        return Read(*(np.asarray(x).reshape(*shape, *x.shape[1:]) for x in read))


def written(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What tokens write after others, without end tokens; bytes that are not yet a character are left out."""
    return b"".join(tokenizer.token_bytes[i] for i in ids if i not in tokenizer.end_ids).decode(errors="ignore")


def _padded(found: Sequence[tuple[list[int], list[int]]], room: int) -> Read:
    tokens, ends = np.zeros((len(found), room), np.int32), np.zeros((len(found), room), bool)
    for i, (ids, places) in enumerate(found):
        tokens[i, : len(ids)] = ids
        ends[i, places] = True
    return Read(tokens, np.array([len(ids) for ids, _ in found], np.int32), ends)
