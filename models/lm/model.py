"""What a language model must offer so that texts can be written with it, and what its memory must offer so that particles can.

A model is a pytree whose leaves are its weights; a memory is a pytree that belongs to n texts under way. A decoder's memory
is a cache of keys and values, a recurrent model's its states, a hidden Markov model's its filter.
"""

from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Array, Bool, Float, Int


class Memory(Protocol):
    """What a model keeps of n texts, beside their tokens."""

    def select(self, ancestors: Int[Array, " n"]) -> Self:
        """The memory of n texts whose i-th is a copy of number `ancestors[i]`."""
        ...

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        """The memory when only the first `lengths[i]` generated tokens of text i had been taken in; never more than there are.

        Its caller gets the next logits by rewinding to one token less and taking the last one in again.

        Raises:
          ValueError: where the model keeps no past to return to.
        """
        ...

    def bytes(self) -> dict[str, Array]:
        """What is held, in bytes: "used" now, "peak" so far, "reserved" in all, and "dense" for the same texts without sharing; each []."""
        ...


@runtime_checkable
class Model(Protocol):
    """A law of the next token given the past, with a memory of it. The leaves of a model are its weights."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int:
        """The largest number of tokens that a text may have, prompt included."""
        ...

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Memory]:
        """Next-token logits of n texts that begin with the first `length` of `tokens`, and their memory, with room for `steps` tokens each."""
        ...

    def advance(self, memory: Any, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Memory]:
        """Takes one more token of each active text into its memory: the logits after it, and the memory. Others stand still, and their logits mean nothing."""
        ...
