"""A token model as a model of bytes, so that models with different tokenizers speak of the same texts.

A text's bytes can be spelled in tokens in many ways. The model of bytes sums over them: what is kept of a text are hypotheses, the tokens
that ended so far, each with the law of the token under way, of which some bytes are read already.
"""

import functools
from collections import Counter
from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import struct
from jax import Array, lax
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float, Int
from tokenizers import AddedToken, decoders, pre_tokenizers, processors

from posterity.models.lm.experts.together import ending
from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.model import Memory
from posterity.models.lm.tokenizer import Tokenizer, byte_of

END, START, NOTHING = 256, 257, 258  # after the bytes: the end, the start, and what no token writes
NAMES = "<end>", "<start>"


@struct.dataclass
class Hypotheses:
    """What is kept of n texts of bytes: for each the ways to spell it, most probable first."""

    memory: Memory  # of n * beams texts in tokens
    joint: Float[Array, "n beams vocab"]  # log probability, given the bytes so far, of this spelling with this token next; -inf where its bytes are others
    depth: Int[Array, "n beams"]  # how many bytes of the next token are read

    def select(self, ancestors: Int[Array, " m"]) -> Self:
        beams = self.depth.shape[1]
        rows = (ancestors[:, None] * beams + jnp.arange(beams)).reshape(-1)
        return replace(self, memory=self.memory.select(rows), joint=self.joint[ancestors], depth=self.depth[ancestors])

    def rewind(self, lengths: Int[Array, " n"]) -> Self:
        raise ValueError("over_bytes: the spellings of a text before its last byte are not kept; it cannot be rewound")

    def bytes(self) -> dict[str, Array]:
        return {name: held + self.joint.nbytes for name, held in self.memory.bytes().items() if name in ("used", "peak", "reserved", "dense")}


@struct.dataclass
class Bytes:
    """A token model over bytes, as a `Model`."""

    lm: LanguageModel
    before: Int[Array | np.ndarray, " tokens"]  # the model's own prompt
    spelled: Int[Array | np.ndarray, "longest+1 vocab"]  # the byte of each token at each place; END of end tokens; NOTHING after the last
    beams: int = struct.field(pytree_node=False)
    alike: int = struct.field(pytree_node=False)  # the most tokens that write the same bytes
    vocab_size: int = struct.field(pytree_node=False, default=START + 1)

    @property
    def context_length(self) -> int:
        """In bytes: a token writes one at least."""
        return self.lm.context_length - len(self.before)

    def start(self, tokens: Int[Array, " padded"], length: Int[Array, ""], n: int, steps: int) -> tuple[Float[Array, "n vocab"], Hypotheses]:
        """Reads the bytes of the prompt one by one, in all spellings, once for all texts."""
        before = jnp.asarray(self.before)
        logits, memory = self.lm.model().start(before, jnp.asarray(len(before), jnp.int32), self.beams, tokens.shape[0] + steps)
        joint = jnp.where(jnp.arange(self.beams)[:, None] == 0, self._law(logits), -jnp.inf)
        state = Hypotheses(memory, joint[None], jnp.zeros((1, self.beams), jnp.int32))

        def read(state: Hypotheses, at: tuple[Array, Array]) -> tuple[Hypotheses, None]:
            place, byte = at
            return self.advance(state, byte[None], ((place < length) & (byte != START))[None])[1], None

        with jax.disable_jit(False):  # as tabular models do: an enumeration would unroll the loop
            state, _ = lax.scan(read, state, (jnp.arange(tokens.shape[0]), jnp.asarray(tokens)))
        state = state.select(jnp.zeros(n, jnp.int32))
        return self._scores(state), state

    def advance(self, memory: Any, tokens: Int[Array, " n"], active: Bool[Array, " n"]) -> tuple[Float[Array, "n vocab"], Hypotheses]:
        """Each hypothesis goes on with the tokens that write the byte; where one of these ends with it, that is another hypothesis. The best stay."""
        n, beams = memory.depth.shape
        joint = jnp.where(self._byte(memory.depth) == tokens[:, None, None], memory.joint, -jnp.inf)
        depth = memory.depth + 1
        ends = self._byte(depth) == NOTHING
        going = jnp.where(ends, -jnp.inf, joint)
        ended, token = lax.top_k(jnp.where(ends, joint, -jnp.inf), self.alike)
        candidates = jnp.concatenate([logsumexp(going, axis=-1)[..., None], ended], axis=-1)
        best, chosen = lax.top_k(candidates.reshape(n, -1), beams)
        parent, way = chosen // candidates.shape[-1], chosen % candidates.shape[-1]
        takes = (way > 0) & (best > -jnp.inf) & active[:, None]
        parent = jnp.where(active[:, None], parent, jnp.arange(beams))
        of = functools.partial(jnp.take_along_axis, indices=parent, axis=1)

        rows = jnp.arange(n)[:, None] * beams + parent
        taken = token[jnp.arange(n)[:, None], parent, jnp.maximum(way - 1, 0)]
        logits, inner = self.lm.model().advance(memory.memory.select(rows.reshape(-1)), taken.reshape(-1).astype(jnp.int32), takes.reshape(-1))
        total = logsumexp(best, axis=-1, keepdims=True)
        share = jnp.where(best > -jnp.inf, best - total, -jnp.inf)[..., None]
        fresh = share + self._law(logits).reshape(n, beams, -1)
        kept = jnp.take_along_axis(going, parent[..., None], axis=1) - jnp.where(total > -jnp.inf, total, 0.0)[..., None]
        after = jnp.where(share > -jnp.inf, jnp.where(takes[..., None], fresh, kept), -jnp.inf)
        after = jnp.where(active[:, None, None], after, memory.joint)
        state = Hypotheses(inner, after, jnp.where(active[:, None], jnp.where(takes, 0, of(depth)), memory.depth))
        return self._scores(state), state

    def _law(self, logits: Float[Array, "*n vocab"]) -> Float[Array, "*n vocab"]:
        """The law of the next token, given that it writes something or ends the text; all -inf where none may."""
        written = jnp.where(jnp.asarray(self.spelled)[0] == NOTHING, -jnp.inf, jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32)))
        total = logsumexp(written, axis=-1, keepdims=True)
        return written - jnp.where(jnp.isneginf(total), 0.0, total)

    def _byte(self, depth: Int[Array, "n beams"]) -> Int[Array, "n beams vocab"]:
        """What each token writes there."""
        spelled = jnp.asarray(self.spelled)
        return spelled[jnp.minimum(depth, spelled.shape[0] - 1)]

    def _scores(self, state: Hypotheses) -> Float[Array, "n vocab"]:
        """log of the mass of each next byte, by adding up the tokens that write it."""
        n = state.depth.shape[0]
        highest = jnp.max(state.joint, axis=(1, 2), keepdims=True)
        mass = jnp.exp(state.joint - jnp.where(jnp.isneginf(highest), 0.0, highest))
        sums = jnp.zeros((n, NOTHING + 1), mass.dtype).at[jnp.arange(n)[:, None, None], self._byte(state.depth)].add(mass)[:, :START]
        scores = jnp.where(sums > 0, jnp.log(jnp.where(sums > 0, sums, 1.0)) + highest[:, 0], -jnp.inf)
        return ending(jnp.pad(scores, ((0, 0), (0, 1)), constant_values=-jnp.inf), byte_tokenizer())


def over_bytes(lm: LanguageModel, before: str = "", *, beams: int = 8) -> LanguageModel:
    """The model with bytes for tokens: of bytes, the probability that the tokens of the model write them, however they are split into tokens.

    Exact where a text's bytes can be spelled in at most `beams` ways, counted by the tokens that have ended and of which one is under way;
    where there are more, the most probable ones are kept, and the law of the next byte is that of their sum. Tokens that write no bytes and
    end no text are left out of the law. It takes one pass of n * beams texts a byte. A text cannot be rewound.

    Args:
      lm: a model of tokens.
      before: a prompt of its own, in its own tokens, read before that of the program; needed where no token of the model starts texts.
      beams: how many spellings are kept of a text.

    Raises:
      ValueError: for beams below 1, or a prompt that is none.

    Source: the sum over coverings of a prefix, and its beam (Vieira et al. 2024, arXiv 2412.03719, "From Language Models over Tokens to ...").

    >>> import posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> words = po.tabular.ngram(["to be", "to bed"], order=2, smoothing=0, words=True)
    >>> round(po.exact(generate(po.experts.over_bytes(words), " to be", max_tokens=1)).answers()["d"].value, 4)
    0.5
    """
    if not isinstance(beams, int) or beams < 1:
        raise ValueError(f"over_bytes: beams must be a whole number from 1 on, got {beams!r}")
    try:
        prompt = lm.prompt(before)
    except ValueError as error:
        raise ValueError(f"over_bytes: {lm.name} needs a prompt of its own, `before`, that it can read: {error}") from error
    own = np.asarray(prompt.tokens)[: int(prompt.length)]
    ends, spellings = lm.tokenizer.end_ids, lm.tokenizer.token_bytes
    longest = max(1, max(map(len, spellings)))
    spelled = np.full((longest + 1, len(spellings)), NOTHING, np.int16)
    for i, written in enumerate(spellings):
        spelled[: len(written), i] = np.frombuffer(written, np.uint8)
    spelled[:, list(ends)] = NOTHING
    spelled[0, list(ends)] = END
    alike = max(Counter(written for i, written in enumerate(spellings) if written and i not in ends).values(), default=1)
    model = Bytes(lm, own, spelled, beams, max(alike, len(ends), 1))
    return LanguageModel.of(model, byte_tokenizer(), f"{lm.name} over bytes", lm.extract)


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """A token for each byte, then the end, then the start, with which every text begins.

    >>> byte_tokenizer().encode("aé"), byte_tokenizer().decode([97, 195, 169])
    ([257, 97, 195, 169], 'aé')
    """
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=byte_of(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    backend.post_processor = processors.TemplateProcessing(single=f"{NAMES[1]} $A", special_tokens=[(NAMES[1], START)])
    return Tokenizer(backend, end_ids=(END,), bos_token=NAMES[1], eos_token=NAMES[0])
