"""Python functions of text as potentials: verifiers, judges, anything that JAX cannot trace. They run on the host, many at a time."""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.potential import Potential, known

WORKERS = 16  # calls under way at once, by default
KEPT = 65_536  # answers


class Judged(NamedTuple):
    """What one particle has written, and what the text so far weighs."""

    tokens: Int[Array, " capacity"]
    length: Int[Array, ""]
    nats: Float[Array, ""]


@struct.dataclass
class Judge(Potential):
    """A Python function of the text so far as a potential: each token weighs by how the function's value changes."""

    function: "Function" = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)  # tokens

    def start(self) -> Judged:
        return Judged(jnp.zeros(self.capacity, jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(self, state: Judged, token: Array) -> tuple[Judged, Array]:
        token = jnp.asarray(token, jnp.int32)
        tokens, length = state.tokens.at[state.length].set(token, mode="drop"), state.length + 1
        nats = self._nats(tokens, length, jnp.isin(token, jnp.array(self.function.tokenizer.end_ids, jnp.int32)))
        return Judged(tokens, length, nats), nats - known(state.nats)

    def complete(self, state: Judged) -> Array:
        return self._nats(state.tokens, state.length, jnp.ones((), bool)) - known(state.nats)

    def _nats(self, tokens: Array, length: Array, whole: Bool[Array, ""]) -> Array:
        return jax.pure_callback(self.function, jax.ShapeDtypeStruct((), jnp.float32), tokens, length, whole, vmap_method="broadcast_all")


def judge(function: Callable[[str, bool], float], tokenizer: Tokenizer, *, max_tokens: int = 64, workers: int = WORKERS, seconds: float = 60.0) -> Judge:
    """Texts that weigh exp of what a Python function says of them: a verifier, a reward model, a judge.

    The function is told the generated text so far and whether it is whole. Its value for a whole text is the text's weight, in nats; that for
    an unfinished one is a guess, which steers and changes no answer (0 where it cannot say; -inf only where no text that goes on from it
    can weigh anything). It is asked once a text, in threads; bytes that are not yet a character are left out.

    Args:
      function: `function(text, whole)` to nats; the same answer for the same text.
      tokenizer: the model's.
      max_tokens: the largest number of tokens that a program will generate.
      workers: calls under way at once.
      seconds: what a call may take.

    Raises:
      ValueError: for max_tokens or workers below 1, or seconds that are not positive. What the function raises, a value that is NaN or +inf, and a call that
        takes too long end a run with an error that names the text.

    >>> import jax, posterity as po
    >>> lm = po.load("abacus")
    >>> even = po.potentials.judge(lambda text, whole: 0.0 if not whole or text[-1:] in "02468" else -float("inf"), lm.tokenizer, max_tokens=3)
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "7*8=", even, max_tokens=3, temperature=2.0), n=16)
    >>> all(text[-1:] in "02468" for text in posterior.answers())
    True
    """
    if max_tokens < 1 or workers < 1 or not seconds > 0:
        raise ValueError(f"judge: max_tokens and workers must be at least 1 and seconds positive, got {max_tokens}, {workers} and {seconds}")
    return Judge(Function(function, tokenizer, workers, seconds), max_tokens)


class Function:
    """A function of texts, asked in threads, with its answers. Compared by identity."""

    def __init__(self, function: Callable[[str, bool], float], tokenizer: Tokenizer, workers: int, seconds: float):
        self.function, self.tokenizer, self.workers, self.seconds = function, tokenizer, workers, seconds
        self.answers: dict[tuple[str, bool], float] = {}

    def __call__(self, tokens: Any, lengths: Any, whole: Any) -> np.ndarray:
        """The values of the texts that are the first `lengths` [...] of `tokens` [..., capacity], [...] float32."""
        tokens, lengths, whole = np.asarray(tokens), np.asarray(lengths), np.asarray(whole)
        rows = zip(tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1), whole.reshape(-1))
        asked = [(self._text(row[:length].tolist()), bool(ended)) for row, length, ended in rows]
        if new := [call for call in dict.fromkeys(asked) if call not in self.answers]:
            if len(self.answers) + len(new) > KEPT:
                self.answers.clear()
                new = list(dict.fromkeys(asked))
            self.answers.update(zip(new, self._ask(new)))
        return np.array([self.answers[call] for call in asked], np.float32).reshape(lengths.shape)

    def _text(self, tokens: Sequence[int]) -> str:
        spelled = self.tokenizer.token_bytes
        return b"".join(spelled[token] for token in tokens if token not in self.tokenizer.end_ids).decode(errors="ignore")

    def _ask(self, calls: Sequence[tuple[str, bool]]) -> list[float]:
        waiting, answers = queue.SimpleQueue(), queue.SimpleQueue()
        for i in range(len(calls)):
            waiting.put(i)

        def work():
            while True:
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((i, float(self.function(*calls[i]))))
                except Exception as error:
                    answers.put((i, error))

        # Daemons: one that hangs must not keep the process from ending.
        for _ in range(min(self.workers, len(calls))):
            threading.Thread(target=work, daemon=True).start()
        found: dict[int, float] = {}
        until = time.monotonic() + self.seconds * math.ceil(len(calls) / self.workers)
        while len(found) < len(calls):
            try:
                i, answer = answers.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                late = next(calls[i][0] for i in range(len(calls)) if i not in found)
                raise TimeoutError(f"judge: no answer within {self.seconds:g} seconds for {late!r}") from None
            if isinstance(answer, Exception):
                raise RuntimeError(f"judge: the function raised {type(answer).__name__} for {calls[i][0]!r}: {answer}") from answer
            if not answer < math.inf:
                raise ValueError(f"judge: the function must return nats below +inf, it returned {answer} for {calls[i][0]!r}")
            found[i] = answer
        return [found[i] for i in range(len(calls))]
