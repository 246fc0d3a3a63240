"""Several language models as one: a rule makes the scores of the next token of what each of them says.

The law of the next token is exp(scores), normalised: a local law. What it takes to normalise them is thrown away by it, and kept by
`globally`, for which texts weigh the product of exp(scores) itself.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.model import Memory
from posterity.models.lm.tokenizer import Tokenizer

DEAD = -1e30  # the score of the end where no token is left: it makes a law of what has none, and `globally` knows it
LEAST = 1e-9  # what a probability counts as, at least, where it is divided by

Members = Sequence[LanguageModel | tuple[LanguageModel, float]]


class Rule(Protocol):
    """How what several models say becomes one. A pytree."""

    def __call__(self, laws: Float[Array, "k n vocab"]) -> Float[Array, "n vocab"]:
        """The scores of the next token, nats, from its log probabilities under each model; -inf forbids."""
        ...


@struct.dataclass
class Memories:
    """What several models keep of the same n texts."""

    members: tuple[Memory, ...]

    def select(self, ancestors: Int[Array, " n"]) -> Self:
        return replace(self, members=tuple(memory.select(ancestors) for memory in self.members))

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        return replace(self, members=tuple(memory.rewind(lengths) for memory in self.members))

    def bytes(self) -> dict[str, Array]:
        held = [memory.bytes() for memory in self.members]
        return {name: sum((each[name] for each in held), jnp.zeros(())) for name in ("used", "peak", "reserved", "dense")}


@struct.dataclass
class Panel:
    """Models that read the same tokens side by side."""

    members: tuple[LanguageModel, ...]

    @property
    def context_length(self) -> int:
        return min(lm.context_length for lm in self.members)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.members[0].tokenizer

    def start(self, tokens: Array, length: Array, n: int, steps: int) -> tuple[Float[Array, "k n vocab"], Memories]:
        """Log probabilities of the next token under each model, and their memories."""
        logits, memories = zip(*(lm.model().start(tokens, length, n, steps) for lm in self.members), strict=True)
        return _laws(logits), Memories(memories)

    def advance(self, memories: Memories, tokens: Array, active: Array) -> tuple[Float[Array, "k n vocab"], Memories]:
        pairs = (lm.model().advance(memory, tokens, active) for lm, memory in zip(self.members, memories.members, strict=True))
        logits, after = zip(*pairs, strict=True)
        return _laws(logits), Memories(after)


@struct.dataclass
class Together:
    """Models and a rule, as one `Model`."""

    panel: Panel
    rule: Rule

    @property
    def vocab_size(self) -> int:
        return self.panel.tokenizer.vocab_size

    @property
    def context_length(self) -> int:
        return self.panel.context_length

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Memories]:
        laws, memories = self.panel.start(tokens, length, n, steps)
        return ending(self.rule(laws), self.panel.tokenizer), memories

    def advance(self, memory: Any, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Memories]:
        laws, memories = self.panel.advance(memory, tokens, active)
        return ending(self.rule(laws), self.panel.tokenizer), memories


@struct.dataclass
class Product:
    """The weighted sum of log probabilities."""

    weights: Float[Array | np.ndarray, " k"]

    def __call__(self, laws: Float[Array, "k n vocab"]) -> Float[Array, "n vocab"]:
        return jnp.sum(jnp.asarray(self.weights, laws.dtype)[:, None, None] * laws, axis=0)


@struct.dataclass
class Contrast:
    """What the first model says beyond the second, on tokens that the first finds plausible."""

    strength: Array | np.ndarray  # []
    plausible: Array | np.ndarray  # []

    def __call__(self, laws: Float[Array, "2 n vocab"]) -> Float[Array, "n vocab"]:
        expert, amateur = laws
        scores = expert - jnp.asarray(self.strength, laws.dtype) * jnp.maximum(amateur, math.log(LEAST))
        kept = expert >= jnp.max(expert, axis=-1, keepdims=True) + jnp.log(jnp.asarray(self.plausible, laws.dtype))
        return jnp.where(kept, scores, -jnp.inf)


def product(members: Members) -> LanguageModel:
    """The language model whose next token has probability proportional to the product of the members' probabilities, each to the power of its weight.

    The law is normalised token by token. That of whole texts, in which a text weighs the product of what the members say of it, is another:
    `globally(program)`. Where the members have no token in common a text ends (without end tokens the first token of the vocabulary follows).

    Args:
      members: language models, or pairs of one and its weight (1 where it is left out), over one vocabulary.

    Raises:
      ValueError: for no members, weights that are not positive and finite, or vocabularies that differ (with what differs).

    Source: products of experts (Hinton 2002).

    >>> import posterity as po
    >>> a, b = (po.tabular.ngram(text, order=1, smoothing=0) for text in ("xxxy", "xyyy"))
    >>> lm = po.experts.product([a, (b, 2.0)])
    >>> {text: round(estimate.value, 4) for text, estimate in po.exact(po.constrained(lm, "", po.potentials.regex("."), max_tokens=1)).answers().items()}
    {'y': 0.75, 'x': 0.25}
    """
    models, weights = of_one_vocabulary("product", members)
    return named("product", models, Together(Panel(models), Product(weights)))


def contrast(expert: LanguageModel, amateur: LanguageModel, *, strength: float = 1.0, plausible: float = 0.1) -> LanguageModel:
    """Contrastive decoding: tokens by p_expert / p_amateur^strength, among those at least `plausible` times as probable as the expert's most probable one.

    The law is normalised token by token, as that of `product`; `globally` has that of whole texts. The amateur's probabilities count as 1e-9 at least.

    Args:
      expert, amateur: language models over one vocabulary; the same model under two prompts, say.
      strength: how much of the amateur is taken away; 0 for nothing.
      plausible: in [0, 1]; 0 keeps every token, 1 only the expert's most probable ones.

    Raises:
      ValueError: for a strength that is negative or not finite, another `plausible`, or vocabularies that differ.

    Source: Li et al. 2023, arXiv 2210.15097, equations 2 to 4.

    >>> import posterity as po
    >>> expert, amateur = (po.tabular.ngram(text, order=1, smoothing=0) for text in ("xxyyz", "xxxyz"))
    >>> lm = po.experts.contrast(expert, amateur, plausible=0.6)
    >>> {text: round(estimate.value, 4) for text, estimate in po.exact(po.constrained(lm, "", po.potentials.regex("."), max_tokens=1)).answers().items()}
    {'y': 0.75, 'x': 0.25}
    """
    if not (strength >= 0 and math.isfinite(strength)):
        raise ValueError(f"contrast: strength must be from 0 on and finite, got {strength}")
    if not 0 <= plausible <= 1:
        raise ValueError(f"contrast: plausible must lie in [0, 1], got {plausible}")
    models, _ = of_one_vocabulary("contrast", [expert, amateur])
    return named("contrast", models, Together(Panel(models), Contrast(np.array(strength, float), np.array(plausible, float))))


def of_one_vocabulary(caller: str, members: Members) -> tuple[tuple[LanguageModel, ...], np.ndarray]:
    """The models and their weights [k].

    Raises:
      ValueError: in the name of `caller`, for no members, weights that are not positive and finite, or vocabularies that differ.
      TypeError: for a member that is no language model.
    """
    pairs = [member if isinstance(member, tuple) else (member, 1.0) for member in members]
    if not pairs:
        raise ValueError(f"{caller}: give at least one language model")
    for lm, weight in pairs:
        if not isinstance(lm, LanguageModel):
            raise TypeError(f"{caller}: members must be language models, or pairs of one and its weight; got {type(lm).__name__}")
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"{caller}: the weight of {lm.name} must be positive and finite, got {weight}; `contrast` takes an expert away")
    (first, _), *others = pairs
    for lm, _ in others:
        if differing := difference(first.tokenizer, lm.tokenizer):
            raise ValueError(f"{caller}: {first.name} and {lm.name} have different vocabularies: {differing}; experts.over_bytes makes them one")
    return tuple(lm for lm, _ in pairs), np.array([weight for _, weight in pairs], float)


def named(kind: str, models: Sequence[LanguageModel], model: Any) -> LanguageModel:
    """The language model of `model`, with the tokenizer of the first of `models`, whose end tokens end its texts."""
    names = ", ".join(lm.name for lm in models)
    return LanguageModel.of(model, models[0].tokenizer, f"{kind} of {names}", models[0].extract)


def ending(scores: Float[Array, "n vocab"], tokenizer: Tokenizer) -> Float[Array, "n vocab"]:
    """The scores; where every token is forbidden, DEAD for the end tokens (the first token, where there are none)."""
    ends = jnp.isin(jnp.arange(scores.shape[-1]), jnp.array(tokenizer.end_ids or (0,)))
    return jnp.where(jnp.all(jnp.isneginf(scores), axis=-1, keepdims=True) & ends, DEAD, scores)


def log_law(logits: Float[Array, "*n vocab"]) -> Float[Array, "*n vocab"]:
    """Log probabilities, float32 at least."""
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def _laws(logits: Sequence[Array]) -> Float[Array, "k n vocab"]:
    return jnp.stack([log_law(each) for each in logits])


def difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """What two vocabularies disagree about: the same tokens must have the same numbers. How texts are split into them may differ."""
    if one == other:
        return None
    if one.vocab_size != other.vocab_size:
        return f"{one.vocab_size:,} and {other.vocab_size:,} tokens"
    both = one.token_bytes, other.token_bytes
    for i, (left, right) in enumerate(zip(*both, strict=True)):
        if left != right:
            return f"token {i} is {left!r} in one and {right!r} in the other"
    return None
