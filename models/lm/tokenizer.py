"""Text to token ids and back: a `tokenizers.Tokenizer` with what a language model needs to know beside it."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from posterity.models.lm import chat


class Tokenizer:
    r"""A tokenizer of the `tokenizers` library, the tokens that end a text, and the chat template.

    `size` is the model's vocabulary where it is larger than the tokenizer's own (padded embeddings): ids beyond the
    tokenizer's have no bytes and decode to nothing. Two tokenizers are equal when their contents are, so that one can be
    a static part of a compiled program.

    Raises:
      ValueError: when the tokenizer has more tokens than `size`, or an end token lies outside.

    >>> backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"0": 0, "1": 1, "\n": 2}, unk_token=""))
    >>> backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    >>> backend.decoder = tokenizers.decoders.Fuse()
    >>> Tokenizer(backend, end_ids=(2,)).encode("1001")
    [1, 0, 0, 1]
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        end_ids: Sequence[int] = (),
        size: int | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        chat_template: str | None = None,
    ):
        defined = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.vocab_size = defined if size is None else size
        if defined > self.vocab_size:
            raise ValueError(f"Tokenizer: it has {defined} tokens, more than the model's vocabulary of {self.vocab_size}")
        if outside := [i for i in end_ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"Tokenizer: end_ids must lie in 0..{self.vocab_size - 1}, got {outside}")
        self.backend = backend
        self.end_ids = tuple(sorted(set(end_ids)))
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.chat_template = chat_template
        self.special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens in it are recognised; one that starts texts is added where the model asks for it and the text lacks it.

        Raises:
          ValueError: when the vocabulary has no token for a character of the text, or, where tokens are words, for a word.
        """
        opened = self.bos_token is not None and text.startswith(self.bos_token)
        try:
            return self.backend.encode(text, add_special_tokens=not opened).ids
        except Exception as error:  # the Rust library raises bare exceptions
            raise ValueError(self._unknown(text)) from error

    def encode_on(self, text: str) -> list[int]:
        """Token ids of what goes on from another text: those of `encode`, without the token that starts texts.

        Raises:
          ValueError: as `encode`.
        """
        ids = self.encode(text) if text else []
        return ids[1:] if self.bos_token is not None and ids[:1] == [self.backend.token_to_id(self.bos_token)] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, `[{"role": "user", "content": "..."}, ...]`, ready for the model's answer; see `chat.render`.

        Raises:
          ValueError: when the model has no chat template, or its template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("Tokenizer: this model has no chat template; give it plain text instead")
        special = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        return chat.render(self.chat_template, messages, add_generation_prompt=add_generation_prompt, **special)

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id writes [vocab_size]; b"" for special tokens and for ids without a token."""
        spell = _spelling(json.loads(self.backend.to_str())["decoder"])
        found = [b""] * self.vocab_size
        for token, i in self.backend.get_vocab(with_added_tokens=False).items():
            found[i] = spell(token)
        for i, token in self.backend.get_added_tokens_decoder().items():
            found[i] = b"" if token.special else token.content.encode()
        return tuple(found)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that defines the tokenizer."""
        rest = [self.end_ids, self.vocab_size, self.bos_token, self.eos_token, self.chat_template]
        return hashlib.sha256((self.backend.to_str() + json.dumps(rest)).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and (self is other or self.fingerprint == other.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, end_ids={self.end_ids}, {self.fingerprint[:8]})"

    def _unknown(self, text: str) -> str:
        """Which parts of a text no token is for."""
        splitter, vocabulary = self.backend.pre_tokenizer, self.backend.get_vocab(with_added_tokens=False)
        parts = [part for part, _ in splitter.pre_tokenize_str(text)] if splitter else list(text)
        unknown = [part for part in dict.fromkeys(parts) if not self._knows(part)]
        if all(len(part) == 1 for part in parts):
            alphabet = "".join(sorted(token for token in vocabulary if len(token) == 1))
            return f"Tokenizer: no token for {''.join(unknown)!r} in {text[:80]!r}; its characters are {alphabet!r}"
        words = [part.removeprefix("\u2581") for part in unknown]
        return f"Tokenizer: no token for {', '.join(map(repr, words))} in {text[:80]!r}; it has {len(vocabulary):,} words"

    def _knows(self, part: str) -> bool:
        try:
            return bool(self.backend.encode(part, add_special_tokens=False).ids)
        except Exception:
            return False


def _spelling(decoder: Mapping | None):
    """How the tokens of a vocabulary spell bytes, by the decoder that turns them into text."""
    parts = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return lambda token: bytes(byte_of()[character] for character in token) if set(token) <= byte_of().keys() else token.encode()
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        single = re.compile(r"<0x([0-9A-Fa-f]{2})>")
        return lambda token: bytes.fromhex(match[1]) if (match := single.fullmatch(token)) else token.replace("\u2581", " ").encode()
    return str.encode


@functools.cache
def byte_of() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: a printable byte stands for itself, the others, in order, for the characters from 256 on."""
    alphabet = sorted(ByteLevel.alphabet())
    kept = {character: ord(character) for character in alphabet if ord(character) < 256}
    moved = sorted(set(range(256)) - set(kept.values()))
    return kept | dict(zip(alphabet[len(kept) :], moved, strict=True))
