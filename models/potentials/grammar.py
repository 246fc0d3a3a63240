"""Context-free grammars, by llguidance: its parsers run on the host, one call a token for all particles at once."""

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Int, UInt32

from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.potential import Potential

# Else only one way to write what must follow would be allowed, and a grammar would be about tokens instead of texts.
ANY_TOKENS = '\n%llguidance {"no_forcing": true}\n'
KEPT = 8_192  # parsers of the texts that were met last


class Written(NamedTuple):
    """What one particle has written, and which tokens may follow."""

    tokens: Int[Array, " capacity"]
    length: Int[Array, ""]
    allowed: UInt32[Array, " words"]  # a bit a token


@struct.dataclass
class Grammar(Potential):
    """The texts of a grammar as a potential of tokens: 0 where a text may go on, -inf where not."""

    allowed: UInt32[Array | np.ndarray, " words"]  # at the beginning
    parsers: "Parsers" = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)  # tokens

    def start(self) -> Written:
        return Written(jnp.zeros(self.capacity, jnp.int32), jnp.zeros((), jnp.int32), jnp.asarray(self.allowed))

    def update(self, state: Written, token: Array) -> tuple[Written, Array]:
        token = jnp.asarray(token, jnp.int32)
        gain = jnp.where(_bit(state.allowed, token), 0.0, -jnp.inf)
        tokens, length = state.tokens.at[state.length].set(token, mode="drop"), state.length + 1
        allowed = jax.pure_callback(self.parsers, jax.ShapeDtypeStruct(state.allowed.shape, jnp.uint32), tokens, length, vmap_method="broadcast_all")
        return Written(tokens, length, allowed), gain

    def scores(self, state: Written) -> Array:
        return jnp.where(_bit(state.allowed, jnp.arange(self.parsers.tokenizer.vocab_size)), 0.0, -jnp.inf)

    def complete(self, state: Written) -> Array:
        return jnp.where(_bit(state.allowed, jnp.asarray(self.parsers.tokenizer.end_ids[0])), 0.0, -jnp.inf)


def grammar(lark: str, tokenizer: Tokenizer, *, max_tokens: int = 64) -> Grammar:
    """The texts of a context-free grammar, in the Lark-like notation of llguidance, whatever their tokens.

    The parsers run on the host, so that a step waits for a call; where the texts are regular, `regex` is faster. There is no
    looking ahead: a text may run out of room, and then weighs nothing.

    Args:
      lark: the grammar, whose texts derive from `start`.
      tokenizer: the model's.
      max_tokens: the largest number of tokens that a program will generate.

    Raises:
      ValueError: for a grammar that is none, with the place of the error; for a tokenizer without an end token; when no token can come first.
      ModuleNotFoundError: without llguidance (the extra `constraints`).

    >>> import jax, posterity as po
    >>> lm = po.load("abacus")
    >>> nested = po.potentials.grammar('start: "(" start ")" | "1"', lm.tokenizer, max_tokens=16)
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "2+3=", nested, max_tokens=16), n=30)
    >>> all(text.count("(") == text.count(")") for text in posterior.answers())
    True
    """
    if max_tokens < 1:
        raise ValueError(f"grammar: max_tokens must be at least 1, got {max_tokens}")
    if not tokenizer.end_ids:
        raise ValueError("grammar: the tokenizer has no token that ends a text")
    parsers = Parsers(lark, tokenizer)
    allowed = parsers(np.zeros((1, 1), np.int32), np.zeros(1, np.int32))[0]
    if not allowed.any():
        raise ValueError("grammar: no text of this vocabulary begins as the grammar says; its evidence is zero")
    return Grammar(allowed, parsers, max_tokens)


class Parsers:
    """A parser for each of the texts that were met last, each grown from that of its beginning. Compared by identity."""

    def __init__(self, lark: str, tokenizer: Tokenizer):
        library = _llguidance()
        self.tokenizer, self.lock = tokenizer, threading.Lock()
        own = library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.vocab_size, eos_token=list(tokenizer.end_ids))
        source = library.LLMatcher.grammar_from_lark(lark + ANY_TOKENS)
        if complaint := library.LLMatcher.validate_grammar(source, own):
            raise ValueError(f"grammar: line(column) {complaint.removeprefix('at ')}" if complaint[:1].isdigit() else f"grammar: {complaint}")
        self.words = -(-tokenizer.vocab_size // 32)
        self.ends = np.zeros(self.words, np.uint32)
        for token in tokenizer.end_ids:
            self.ends[token // 32] |= np.uint32(1 << token % 32)
        self.met: OrderedDict[tuple[int, ...], Any] = OrderedDict({(): library.LLMatcher(own, source)})

    def __call__(self, tokens: Any, lengths: Any) -> np.ndarray:
        """Which tokens may follow the first `lengths` [...] of `tokens` [..., capacity], as bits, [..., words] uint32."""
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        texts = [tuple(row[:length].tolist()) for row, length in zip(tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1))]
        with self.lock:
            found = {text: self._allowed(text) for text in dict.fromkeys(texts)}
        return np.stack([found[text] for text in texts]).reshape(*lengths.shape, self.words)

    def _allowed(self, text: tuple[int, ...]) -> np.ndarray:
        parser = self._parser(text)
        if parser.is_error():
            return np.zeros(self.words, np.uint32)
        # The library stops where nothing but the end can follow, and shows the end where nothing at all can.
        going_on = 0 if parser.is_stopped() else np.frombuffer(parser.compute_bitmask(), np.uint32)[: self.words] & ~self.ends
        return (going_on | self.ends if parser.is_accepting() else going_on + np.zeros_like(self.ends)).astype(np.uint32)

    def _parser(self, text: tuple[int, ...]) -> Any:
        if text not in self.met:
            known = next(text[:length] for length in range(len(text) - 1, -1, -1) if text[:length] in self.met)
            parser = self.met[known].deep_copy()
            parser.consume_tokens(list(text[len(known) :]))  # of tokens that are not allowed it stays in error
            self.met[text] = parser
            if len(self.met) > KEPT:
                oldest = iter(self.met)
                next(oldest)  # that of the empty text stays
                del self.met[next(oldest)]
        elif text:
            self.met.move_to_end(text)
        return self.met[text]


class _Vocabulary:
    """A tokenizer as llguidance asks for it. Tokens that write nothing are special, and called by bytes that no text has."""

    def __init__(self, tokenizer: Tokenizer):
        silent = [i for i, token in enumerate(tokenizer.token_bytes) if not token or i in tokenizer.end_ids]
        self.eos_token_id, self.bos_token_id, self.special_token_ids = tokenizer.end_ids[0], None, silent
        self.tokens = list(tokenizer.token_bytes)
        for i in silent:
            self.tokens[i] = b"\xff<%d>" % i
        self.ids = {token: i for i, token in reversed(list(enumerate(tokenizer.token_bytes))) if token}
        self.longest = max(map(len, self.ids))

    def __call__(self, text: bytes) -> list[int]:
        """Some tokens that write the bytes, the longest first; none for bytes that no token writes."""
        found, place = [], 0
        while place < len(text):
            size = next((size for size in range(self.longest, 0, -1) if text[place : place + size] in self.ids), 0)
            if size:
                found.append(self.ids[text[place : place + size]])
            place += max(size, 1)
        return found


def _bit(words: Array, token: Array) -> Array:
    return (words[token // 32] >> (token % 32).astype(jnp.uint32)) & 1 == 1


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("grammars need llguidance: pip install 'posterity[constraints]'", name="llguidance") from error
    return llguidance
