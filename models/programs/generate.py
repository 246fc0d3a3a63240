"""Texts sampled from a language model."""

import functools

import jax.numpy as jnp
import numpy as np

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.next_token import checked_law
from posterity.models.lm.tokenizer import Tokenizer
from posterity.ppl.effects import sample, scan
from posterity.ppl.program import FunctionProgram, program


def generate(
    lm: LanguageModel,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
) -> FunctionProgram:
    """Continuations of `prompt`, token by token: the law of the model, or a change of it, unconditioned. Its values are texts.

    Args:
      lm: the model.
      prompt: a text it can encode.
      max_tokens: the largest number of tokens generated.
      temperature: logits are divided by it.
      top_k: keeps the k most probable tokens.
      top_p: keeps the most probable tokens that have this probability together.
      min_p: keeps the tokens at least this times as probable as the most probable one.
      stop: a text that ends a continuation once it is written, also across tokens (`trimmed` takes it off).

    Raises:
      ValueError: for an empty or too long prompt, an empty stop, or max_tokens, temperature, top_k, top_p or min_p out of range.

    >>> import jax, posterity as po
    >>> posterior = po.importance(jax.random.key(0), generate(po.load("abacus"), "2+3=", max_tokens=4), n=4)
    >>> len(posterior)
    4
    """
    if max_tokens < 1:
        raise ValueError(f"generate: max_tokens must be at least 1, got {max_tokens}")
    if stop == "":
        raise ValueError("generate: stop must not be empty; leave it out to stop at the model's end tokens only")
    tokens = lm.prompt(prompt)
    if tokens.length + max_tokens > lm.context_length:
        raise ValueError(
            f"generate: a prompt of {tokens.length} tokens and max_tokens={max_tokens} do not fit the context of {lm.name}, {lm.context_length} tokens"
        )
    table = stop_automaton(lm.tokenizer, stop.encode()) if stop else None
    law = checked_law("generate", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return sampled_text(lm, tokens, law, table, max_tokens)


@program
def sampled_text(lm, prompt, law, table, max_tokens):
    """Tokens by `law` (options of `text.next`) until an end token or, with `table` (of `stop_automaton`), until it has read its text."""
    text = lm.start(prompt)

    def step(carry, _):
        text, state = carry
        token = sample("token", text.next(**law))
        return text.push(token), state if table is None else jnp.asarray(table)[state, token]

    def until(carry):
        text, state = carry
        return text.ended if table is None else text.ended | (state == table.shape[0] - 1)

    start = jnp.zeros((), jnp.int32 if table is None else table.dtype)
    return scan(step, (text, start), length=max_tokens, until=until)[0]


def trimmed(text: str, stop: str | None) -> str:
    """The text up to the first `stop`."""
    return text if stop is None else text.split(stop, 1)[0]


@functools.lru_cache(maxsize=32)
def stop_automaton(tokenizer: Tokenizer, stop: bytes) -> np.ndarray:
    """Where reading a token leads in the search for `stop` (Knuth, Morris, Pratt 1977), [bytes of stop + 1, vocab] int32.

    State s has matched s bytes; the last state has found `stop` and is kept. Special tokens write no bytes.
    """
    final = len(stop)
    fail = np.zeros((final + 1, 256), np.int32)  # state after one byte
    for state in range(final):
        for byte in range(256):
            read = stop[:state] + bytes([byte])
            fail[state, byte] = next(k for k in range(len(read), -1, -1) if read.endswith(stop[:k]))
    fail[final] = final
    lengths = np.array([len(token) for token in tokenizer.token_bytes])
    spelled = np.zeros((len(lengths), max(1, lengths.max(initial=0))), np.uint8)
    for i, token in enumerate(tokenizer.token_bytes):
        spelled[i, : len(token)] = np.frombuffer(token, np.uint8)
    state = np.broadcast_to(np.arange(final + 1, dtype=np.int32)[:, None], (final + 1, len(lengths))).copy()
    for position in range(spelled.shape[1]):
        state = np.where(position < lengths, fail[state, spelled[:, position]], state)
    return state
