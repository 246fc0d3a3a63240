"""Models that judge texts in tokens of their own: a language model by how probable it finds an answer, a classifier at the end of each step.

Both are rewards, for `reason`, and by `at_end` potentials, for `constrained`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.heads import Classifier, token_scores
from posterity.models.lm.language_model import LanguageModel, Prompt
from posterity.models.lm.text import Text
from posterity.models.potentials.reading import Read, Reader
from posterity.models.potentials.reward import RewardModel
from posterity.ppl.side_by_side import anywhere

# What is asked, and what the answers are worth. The first two: P(True) of Kadavath et al. 2022, arXiv 2207.05221, and Huang et al. 2025, arXiv 2503.00031.
QUESTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "true": ("{prompt}{text}\nIs this answer true or false? Answer with True or False.\n", {"True": 1.0, "False": 0.0}),
    "yes": ("{prompt}{text}\nIs the answer correct? Answer with Yes or No.\n", {"Yes": 1.0, "No": 0.0}),
    "digits": ("{prompt}{text}\nHow good is this answer, from 0 (wrong) to 9 (right)? Answer with one digit.\n", {str(i): i / 9 for i in range(10)}),
}
REDUCTIONS = ("last", "min", "product", "mean")


@struct.dataclass
class LanguageModelJudge:
    """A language model as a reward; see `lm_judge`."""

    lm: LanguageModel
    answers: Int[Array | np.ndarray, " k"]  # tokens
    values: Float[Array | np.ndarray, " k"]  # in [0, 1]
    reader: Reader = struct.field(pytree_node=False)

    def begin(self, prompt: Prompt, n: int, steps: int) -> tuple:
        return ()

    def score(self, state: tuple, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], tuple]:
        return _read_and_judged(self, texts, where), state

    def select(self, state: tuple, ancestors: Int[Array, " m"]) -> tuple:
        return state

    def judged(self, read: Read) -> Float[Array, " n"]:
        """The expected value of the answer, given that it is one of the answers."""

        def one(tokens: Array, length: Array) -> Array:
            return self.lm.model().start(tokens, length, 1, 1)[0][0]

        logits = jax.vmap(one)(jnp.asarray(read.tokens), jnp.asarray(read.lengths))[:, jnp.asarray(self.answers)]
        law = jax.nn.softmax(jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
        return law @ jnp.asarray(self.values, law.dtype)

    def scores(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """The scores of texts from Python, [n]; compiled once for each padded length.

        Raises:
          ValueError: for a text without tokens, or with more than there is room for.
        """
        return np.asarray(_judged(self, self.reader.read([(prompt, text) for text in texts])))


@struct.dataclass
class StepJudge:
    """A classifier as a reward, read at the end of every step; see `reward_model`."""

    model: RewardModel
    reduction: str = struct.field(pytree_node=False)
    reader: Reader = struct.field(pytree_node=False)

    def begin(self, prompt: Prompt, n: int, steps: int) -> tuple:
        return ()

    def score(self, state: tuple, texts: Text, where: Bool[Array, " n"]) -> tuple[Float[Array, " n"], tuple]:
        return _read_and_judged(self, texts, where), state

    def select(self, state: tuple, ancestors: Int[Array, " m"]) -> tuple:
        return state

    def judged(self, read: Read) -> Float[Array, " n"]:
        """The steps' scores as one."""
        p = self.model.probability(token_scores(self.model.classifier.decoder, jnp.asarray(read.tokens)))
        ends = jnp.asarray(read.ends)
        if self.reduction == "last":
            last = ends.shape[1] - 1 - jnp.argmax(ends[:, ::-1], axis=1)
            return jnp.take_along_axis(p, last[:, None], axis=1)[:, 0]
        if self.reduction == "min":
            return jnp.min(jnp.where(ends, p, 1.0), axis=1)
        if self.reduction == "product":
            return jnp.prod(jnp.where(ends, p, 1.0), axis=1)
        return jnp.sum(jnp.where(ends, p, 0.0), axis=1) / jnp.sum(ends, axis=1)

    def scores(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """The scores of texts from Python, [n]; compiled once for each padded length.

        Raises:
          ValueError: for a text without tokens, or with more than there is room for.
        """
        return np.asarray(_judged(self, self.reader.read([(prompt, text) for text in texts])))


def lm_judge(
    lm: LanguageModel, template: str | None = None, *, answers: Literal["true", "yes", "digits"] | Mapping[str, float] = "yes", max_tokens: int | None = None
) -> LanguageModelJudge:
    r"""A language model as a judge: the score of a text is the expected value of the next token of a template filled with it, among the answers.

    With "true" that is P(True), with "yes" P(Yes), each over the sum of both; with "digits" the expectation of 0 to 9, divided by 9.
    The judge may have other tokens than the model that writes; its weights are data of the program.

    Args:
      lm: the judge.
      template: what it reads, with {text} for the generated text and {prompt} for its prompt; by default a question that goes with `answers`.
        Chat models want theirs, as `lm.tokenizer.chat` writes it.
      answers: "true", "yes" or "digits"; or texts of one token each with their values in [0, 1].
      max_tokens: room for the template with a text, by default 512 or the judge's context; a longer one is an error of the run.

    Raises:
      ValueError: for a template without {text}, answers that are not one token each or not two at least, values out of [0, 1], or more room than the
        judge's context.

    >>> import posterity as po
    >>> judge = po.potentials.lm_judge(po.load("abacus"), "{text}", answers={"2": 1.0, "3": 0.0}, max_tokens=16)
    >>> right, wrong = judge.scores(["1+1=", "1+2="])
    >>> bool(right > 0.9), bool(wrong < 0.1)
    (True, True)
    """
    if isinstance(answers, str):
        if answers not in QUESTIONS:
            raise ValueError(f"lm_judge: answers must be one of {', '.join(map(repr, QUESTIONS))}, or texts with their values; got {answers!r}")
        question, answers = QUESTIONS[answers]
        template = question if template is None else template
    if template is None:
        raise ValueError("lm_judge: answers of one's own need a template that asks for them")
    if len(answers) < 2 or not all(0 <= value <= 1 for value in answers.values()):
        raise ValueError(f"lm_judge: answers must be at least two texts with values in [0, 1], got {dict(answers)!r}")
    tokens = []
    for text in answers:
        try:
            ids = lm.tokenizer.encode_on(text)
        except ValueError as error:
            raise ValueError(f"lm_judge: the vocabulary of {lm.name} has no answer {text!r}: {error}") from error
        if len(ids) != 1:
            raise ValueError(f"lm_judge: an answer must be one token; {text!r} is {len(ids)} in the vocabulary of {lm.name}")
        tokens += ids
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"lm_judge: the answers must be different tokens, got {list(answers)!r}")
    room = min(512, lm.context_length) if max_tokens is None else max_tokens
    if room > lm.context_length:
        raise ValueError(f"lm_judge: max_tokens must be at most the context of {lm.name}, {lm.context_length}; got {room}")
    reader = Reader("lm_judge", lm.tokenizer, template, room)
    return LanguageModelJudge(lm, np.array(tokens, np.int32), np.array(list(answers.values()), float), reader)


def reward_model(
    classifier: Classifier,
    *,
    reduction: Literal["last", "min", "product", "mean"] = "last",
    delimiter: str | None = "\n",
    marker: str = "",
    template: str = "{prompt}{text}",
    label: int = -1,
    max_tokens: int | None = None,
) -> StepJudge:
    r"""A classifier as a reward that reads whole texts anew, in its own tokens: a process reward model by steps, an outcome reward model by the whole answer.

    It needs no tokens of the writer's, and takes a pass over all of the text where `RewardModel`, which has a cache, takes one token.

    Args:
      classifier: as `po.load_classifier` reads it. Its score is its probability of `label`; of one label, the logistic function.
      reduction: how the scores of the steps become one: the last, the smallest, their product, or their mean.
      delimiter: what ends a step; None makes the whole answer one step (an outcome reward model).
      marker: what the model was trained to see at the end of a step (a special token, say), in the delimiter's place.
      template: how prompt and text are put together; what follows {text} is read but not scored.
      label: which label means "right".
      max_tokens: room for a text, by default 512 or the model's context; a longer one is an error of the run.

    Raises:
      ValueError: for another reduction, an empty delimiter, a template without {text}, a label that is not there, or more room than the context.

    >>> import posterity as po
    >>> reward_model(po.load_classifier("hf:PATH/OF/A/REWARD/MODEL"), reduction="min")  # doctest: +SKIP
    """
    context, labels = classifier.decoder.config.context_length, len(classifier.labels)
    room = min(512, context) if max_tokens is None else max_tokens
    if reduction not in REDUCTIONS:
        raise ValueError(f"reward_model: reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    if room > context:
        raise ValueError(f"reward_model: max_tokens must be at most the context of {classifier.name}, {context}; got {room}")
    if not -labels <= label < labels:
        raise ValueError(f"reward_model: label must be one of the {labels} of {classifier.name}, by number; got {label}")
    return StepJudge(RewardModel(classifier, label), reduction, Reader("reward_model", classifier.tokenizer, template, room, delimiter, marker))


def _read_and_judged(judge: Any, texts: Text, where: Bool[Array, " n"]) -> Float[Array, " n"]:
    """The scores of the texts `where`; nothing is computed when there is none."""

    def scores() -> Array:
        return judge.judged(judge.reader(texts, where)).astype(float)

    return jax.lax.cond(anywhere(jnp.any(where)), scores, lambda: jnp.zeros(where.shape, float))


@jax.jit
def _judged(judge: Any, read: Read) -> Float[Array, " n"]:
    return judge.judged(read)
