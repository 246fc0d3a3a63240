"""Reasoning in steps: texts of a language model, written a step at a time, each weighed by a reward of what stands so far."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

from posterity.models.lm.language_model import PROMPT_BUCKET, LanguageModel, Prompt
from posterity.models.lm.next_token import checked_law
from posterity.models.lm.text import Text, Texts, TextSource
from posterity.models.potentials.reward import Reward, RewardModel, as_reward, mark, rewind
from posterity.models.programs.extract import extractor
from posterity.models.programs.generate import stop_automaton
from posterity.ppl.answer import Answer
from posterity.ppl.effects import draw, loop, particle_map
from posterity.ppl.randomness import with_own_key
from posterity.ppl.side_by_side import anywhere
from posterity.ppl.transform import active, known

POTENTIALS = ("identity", "exp", "odds")
RULES = ("product", "telescoped", "prefix")
FINISHES = ("running", "end", "steps", "context", "budget")  # why a text goes no further
CLIP = 1e-7  # scores nearer to 0 or 1 have the odds of this
UNLIMITED = 2**31 - 1


@struct.dataclass
class Work:
    """What a run has done so far, for all its texts together; each int32 []."""

    prompt: Array  # tokens read once, for all texts
    generated: Array  # tokens written, those of texts that were dropped later included
    reused: Array  # tokens, of the prompt and of ancestors, that copies had no need to read again
    calls: Array  # steps that the language model was asked for, of one text each
    rewards: Array  # texts that the reward was asked about


class Limits(NamedTuple):
    """The most that a run may do; each int32 []."""

    tokens: Array | int = UNLIMITED  # read and written
    calls: Array | int = UNLIMITED
    rewards: Array | int = UNLIMITED


@struct.dataclass
class Reasoning(Answer):
    """What queries see of one particle: its text, the scores of its steps, and why it stopped."""

    text: Text
    scores: Float[Array, " max_steps"]  # in [0, 1], of the text after each of its steps; 0 after the last
    ends: Int[Array, " max_steps"]  # how many tokens were generated when each step ended; 0 after the last
    steps: Int[Array, ""]
    finish: Int[Array, ""]  # an index of FINISHES
    log_probability: Float[Array, ""]  # nats, of the generated tokens under the law they were drawn from
    work: Work  # of all texts together, the same for each
    extract: Callable[[str], str] = struct.field(pytree_node=False)

    @property
    def reward(self) -> Float[Array, ""]:
        """The last score; 1 before the first step."""
        last = jnp.take_along_axis(jnp.asarray(self.scores), jnp.maximum(self.steps - 1, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(self.steps > 0, last, 1.0)

    @property
    def complete(self) -> Bool[Array, ""]:
        """Whether the text came to an end of its own: not under way, nor cut off by a budget."""
        return (self.finish != FINISHES.index("running")) & (self.finish != FINISHES.index("budget"))

    @property
    def finish_reason(self) -> str:
        """Why the text goes no further: "end" (an end token), "steps", "context" or "budget" (no room for more), or "running" (outside compiled code)."""
        return FINISHES[int(self.finish)]

    def parts(self) -> list[str]:
        """The text of each step, delimiters included (outside compiled code)."""
        tokens, ends = np.asarray(self.text.tokens)[int(self.text.prompt_length) :], [0, *np.asarray(self.ends)[: int(self.steps)].tolist()]
        return [self.text.tokenizer.decode(tokens[start:end].tolist()) for start, end in itertools.pairwise(ends)]

    def __str__(self) -> str:
        return str(self.text)

    def answer(self) -> str:
        return self.extract(str(self))


@struct.dataclass
class Particles:
    """Texts in steps."""

    texts: Texts
    reward: Any  # the reward's own state
    scores: Float[Array, "n max_steps"]
    ends: Int[Array, "n max_steps"]
    steps: Int[Array, " n"]  # steps written
    rounds: Int[Array, " n"]  # steps taken: by the rule "prefix" also those in which a text that has ended was weighed again
    log_probability: Float[Array, " n"]
    cut: Bool[Array, " n"]  # there was no budget to go on
    work: Work


class Given(NamedTuple):
    """The choices of a step, n times."""

    tokens: Int[Array, "n max_step_tokens"]
    count: Int[Array, " n"]  # how many of them count; 0 where a text that has ended stood still


class Writing(NamedTuple):
    """A step under way."""

    time: Array  # tokens so far
    going: Bool[Array, " n"]
    cut: Bool[Array, " n"]
    texts: Texts
    state: Int[Array, " n"]  # of the search for the delimiter
    log_probability: Float[Array, " n"]
    generated: Int[Array, ""]


@struct.dataclass
class Reason:
    """A program whose steps are steps of reasoning; see `reason`."""

    source: TextSource
    reward: Reward | None
    law: dict[str, Any]  # options of `text.next`
    delimiter: Int[Array | np.ndarray, "states vocab"] | None  # see `stop_automaton`
    sharpness: Float[Array, ""] | float
    limits: Limits | None
    potential: str = struct.field(pytree_node=False)
    rule: str = struct.field(pytree_node=False)
    max_steps: int = struct.field(pytree_node=False)
    max_step_tokens: int = struct.field(pytree_node=False)
    room: int = struct.field(pytree_node=False)  # tokens for which there is memory, a text
    extract: Callable[[str], str] = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        return f"<reason: {self.source.lm.name}, {self.rule} of {self.potential}{'' if self.reward is not None else ', without a reward'}>"

    @property
    def length(self) -> int:
        return self.max_steps

    def init(self, key: Array, n: int) -> tuple[Particles, Float[Array, " n"]]:
        texts, zero, none = self.source.spawn(n, self.room), jnp.zeros((), jnp.int32), jnp.zeros(n, jnp.int32)
        read = jnp.asarray(self.source.prompt.length, jnp.int32)
        state = () if self.reward is None else self.reward.begin(self.source.prompt, n, self.room)
        cut = jnp.broadcast_to(False if self.limits is None else read > self.limits.tokens, (n,))
        rows = (n, self.max_steps)
        work = Work(read, zero, (n - 1) * read, zero, zero)
        return Particles(texts, state, jnp.zeros(rows), jnp.zeros(rows, jnp.int32), none, none, jnp.zeros(n), cut, work), jnp.zeros(n)

    def step(self, key: Array, particles: Particles, *, where: Array | None = None) -> tuple[Particles, Float[Array, " n"]]:
        """A step of every text: tokens until the delimiter, an end token or the limit, then its score, and by the rule its weight."""
        return self._step(key, particles, where, None, None)[:2]

    def told(
        self, key: Array, particles: Particles, given: Given, which: Bool[Array, " n"] | None = None, *, where: Array | None = None
    ) -> tuple[Particles, Float[Array, " n"], Float[Array, " n"]]:
        """`step` in which the texts `which` (None: all, then nothing is drawn) make the choices `given`; also the log density of these, [n] nats."""
        return self._step(key, particles, where, given, which)

    def past(self, particles: Particles) -> tuple[Given, Int[Array, " n"]]:
        """The choices of all steps that were made, what `told` takes, leaves [n, max_steps, ...]; and how many were made, [n]."""
        text = particles.texts.text
        starts = jnp.pad(particles.ends[:, :-1], ((0, 0), (1, 0)))
        place = text.prompt_length[:, None, None] + starts[:, :, None] + jnp.arange(self.max_step_tokens)
        tokens = jnp.take_along_axis(text.tokens[:, None, :], jnp.minimum(place, text.tokens.shape[1] - 1), axis=2)
        count = jnp.where(jnp.arange(self.max_steps) < particles.steps[:, None], particles.ends - starts, 0)
        return Given(tokens, count), particles.rounds

    def select(self, particles: Particles, ancestors: Int[Array, " m"]) -> Particles:
        p, generated = particles, particles.texts.text.generated
        again = jnp.maximum(jnp.bincount(ancestors, length=generated.shape[0]) - 1, 0)  # the first copy of each is no copy
        work = replace(p.work, reused=p.work.reused + jnp.sum(again * generated, dtype=jnp.int32))
        state = () if self.reward is None else self.reward.select(p.reward, ancestors)
        scores, ends, steps, rounds, log_probability, cut = (x[ancestors] for x in (p.scores, p.ends, p.steps, p.rounds, p.log_probability, p.cut))
        return Particles(p.texts.select(ancestors), state, scores, ends, steps, rounds, log_probability, cut, work)

    def done(self, particles: Particles) -> Bool[Array, " n"]:
        over = particles.rounds >= self.max_steps
        return over | particles.cut if self.rule == "prefix" else over | particles.cut | particles.texts.text.ended

    def value(self, particles: Particles) -> Reasoning:
        p, text = particles, particles.texts.result()
        last = jnp.take_along_axis(text.tokens, text.length[:, None] - 1, axis=1)[:, 0]
        by_token = jnp.isin(last, jnp.array(text.tokenizer.end_ids, last.dtype)) & (text.generated > 0)
        why = [(p.cut, "budget"), (by_token, "end"), (text.ended, "context"), (p.steps >= self.max_steps, "steps")]
        finish = jnp.select([holds for holds, _ in why], [FINISHES.index(name) for _, name in why], FINISHES.index("running"))
        work = jax.tree.map(lambda x: jnp.broadcast_to(x, finish.shape), p.work)
        return Reasoning(text, p.scores, p.ends, p.steps, finish, p.log_probability, work, self.extract)

    def mark(self, particles: Particles) -> Particles:
        """Where each text is, with its scores; what all have cost does not go back."""
        return replace(particles, texts=particles.texts.mark(), reward=mark(self.reward, particles.reward), work=None)

    def rewind(self, particles: Particles, marks: Particles) -> Particles:
        """Each text where it was at its own of the `marks`, its reward model's cache too. The one token that is read for it is not charged."""
        texts, state = self.source.rewind(particles.texts, marks.texts), rewind(self.reward, particles.reward, marks.reward)  # pyright: ignore[reportArgumentType]
        return replace(marks, texts=texts, reward=state, work=particles.work)

    def charged(self, particles: Particles, others: Particles) -> Particles:
        """The particles with the work that others have done: these went on from them, and are given up."""
        return replace(particles, work=others.work)

    def within(self, *, tokens: int | None = None, calls: int | None = None, rewards: int | None = None) -> Self:
        """The program as far as limits allow: where the next token, call or score of all its texts would go beyond, those under way are cut off there.

        A text that is cut off keeps the scores and the weight of its whole steps, and its finish is "budget".
        """
        return replace(self, limits=Limits(*(UNLIMITED if limit is None else limit for limit in (tokens, calls, rewards))))

    # -------------------------------------------------------------------------------------------------------------------

    def _step(self, key: Array, particles: Particles, where: Array | None, given: Given | None, which: Array | None) -> tuple[Particles, Array, Array]:
        p, work = particles, particles.work
        moving = active(self, p, where)
        going, cut = moving & ~p.texts.text.ended, jnp.zeros_like(moving)
        if self.limits is not None:
            asked = jnp.sum(going, dtype=jnp.int32)
            enough = (work.calls + asked <= self.limits.calls) & (work.rewards + asked <= self.limits.rewards)
            going, cut = going & enough, going & ~enough
        wrote = self._write(key, p, going, given, which)
        text, cut = wrote.texts.text, cut | wrote.cut
        scored = going & ~cut
        score, state = self._score(p, text, scored)
        sound = wrote.texts.sound()  # where memory ran out nothing that follows means anything
        score = score if sound is None else jnp.where(sound, score, jnp.nan)
        at = (jnp.arange(scored.shape[0]), jnp.where(scored, p.steps, self.max_steps))  # what is not scored would be written beyond the end
        scores, ends = p.scores.at[at].set(score, mode="drop"), p.ends.at[at].set(text.generated.astype(jnp.int32), mode="drop")
        spent = [jnp.sum(x, dtype=jnp.int32) for x in (going, scored if self.reward is not None else False)]
        work = replace(work, generated=work.generated + wrote.generated, calls=work.calls + spent[0], rewards=work.rewards + spent[1])
        steps, rounds = p.steps + scored, p.rounds + (moving & ~cut)
        after = Particles(wrote.texts, state, scores, ends, steps, rounds, p.log_probability + wrote.log_probability, p.cut | cut, work)
        log_prior = wrote.log_probability
        if given is not None:  # what was to be written, and was not, has density zero; so has standing still where something was to be written
            as_given = text.generated - p.texts.text.generated == given.count
            told = jnp.ones_like(moving) if which is None else which
            log_prior = jnp.where(told, jnp.where(as_given & (scored | (given.count == 0)) & ~(going & (given.count == 0)), log_prior, -jnp.inf), 0.0)
        log_weight = self._weight(p, after, scored, moving & ~cut)
        return after, log_weight if sound is None else jnp.where(sound, log_weight, jnp.nan), log_prior

    def _write(self, key: Array, p: Particles, going: Array, given: Given | None, which: Array | None) -> Writing:
        """Tokens, until each text that is `going` has ended its step."""
        n, final = going.shape[0], None if self.delimiter is None else self.delimiter.shape[0] - 1
        table = None if self.delimiter is None else jnp.asarray(self.delimiter)

        draws = given is None or which is not None
        forced = jnp.broadcast_to(given is not None, (n,)) if which is None else which

        def one(key: Array, text: Text, state: Array, forced: Array, token: Array) -> tuple[Text, Array, Array]:
            law = text.next(**self.law)
            token = jnp.where(forced, token, draw(key, "token", law)) if draws else token
            return text.push(token), state if table is None else table[state, token].astype(state.dtype), law.log_prob(token)

        def turn(now: Writing) -> Writing:
            t, going, cut = now.time, now.going, now.cut
            if self.limits is not None:
                spent = p.work.prompt + p.work.generated + now.generated + jnp.sum(going, dtype=jnp.int32)
                going, cut = going & (spent <= self.limits.tokens), cut | (going & (spent > self.limits.tokens))
            tokens = jnp.zeros(n, jnp.int32) if given is None else given.tokens[:, jnp.minimum(t, self.max_step_tokens - 1)]
            batch = (jnp.arange(n), now.texts.view(), now.state, forced, tokens)
            views, state, log_prob = particle_map(with_own_key(one), (None, *[0] * len(batch)), (0, 0, 0))(jax.random.fold_in(key, t), *batch)
            texts = self.source.advance(now.texts, views, going)
            state = jnp.where(going, state, now.state)
            log_probability = now.log_probability + jnp.where(going, log_prob, 0.0)
            generated = now.generated + jnp.sum(going, dtype=jnp.int32)
            more = going & ~texts.text.ended & (True if final is None else state != final)
            return Writing(t + 1, more, cut, texts, state, log_probability, generated)

        none = jnp.zeros((), jnp.int32)
        start = Writing(none, going, jnp.zeros_like(going), p.texts, jnp.zeros(n, jnp.int32), jnp.zeros_like(p.log_probability), none)
        return loop(lambda now: anywhere(jnp.any(now.going)) & (now.time < self.max_step_tokens), turn, start, limit=self.max_step_tokens)

    def _score(self, p: Particles, text: Text, where: Array) -> tuple[Array, Any]:
        """The scores of texts; NaN for what is none, so that no algorithm takes it for one."""
        if self.reward is None:
            return jnp.ones(where.shape), ()
        score, state = self.reward.score(p.reward, replace(text, logits=None), where)
        return jnp.where((score >= 0) & (score <= 1), score, jnp.nan).astype(p.scores.dtype), state

    def _weight(self, before: Particles, after: Particles, scored: Array, moved: Array) -> Array:
        """The log potential of the step, by the rule."""
        if self.reward is None:
            return jnp.zeros(scored.shape)
        now = self._log_potential(after)
        if self.rule == "prefix":
            return jnp.where(moved, now, 0.0)
        if self.rule == "product":
            return jnp.where(scored, now, 0.0)
        paid = self._log_potential(before)
        return jnp.where(scored, now - jnp.where(jnp.isneginf(paid), 0.0, paid), 0.0)

    def _log_potential(self, p: Particles) -> Array:
        """log g of the last score, nats; 0 before the first step."""
        last = jnp.take_along_axis(p.scores, jnp.maximum(p.steps - 1, 0)[:, None], axis=1)[:, 0]
        return jnp.where(p.steps > 0, self.sharpness * log_potential(last, self.potential), 0.0)


def log_potential(score: Float[Array, "*n"], potential: str) -> Float[Array, "*n"]:
    """log g of scores in [0, 1], nats: g = r ("identity"), e^r ("exp") or r / (1 - r) ("odds", of scores clipped to [1e-7, 1 - 1e-7]).

    >>> import jax
    >>> [jax.nn.softmax(log_potential(jnp.array([0.9, 0.5, 0.1]), kind)).round(3).tolist()[0] for kind in POTENTIALS]  # doctest: +ELLIPSIS
    [0.6..., 0.472..., 0.89...]
    """
    if potential == "identity":
        return jnp.log(score)
    if potential == "exp":
        return score
    clipped = jnp.clip(score, CLIP, 1 - CLIP)
    return jnp.log(clipped) - jnp.log1p(-clipped)


def reason(
    lm: LanguageModel,
    prompt: str | Prompt,
    *,
    reward: Reward | Any = None,
    potential: Literal["identity", "exp", "odds"] = "identity",
    sharpness: float = 1.0,
    rule: Literal["product", "telescoped", "prefix"] = "product",
    delimiter: str | None = "\n",
    max_steps: int = 16,
    max_step_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    extract: str | Callable[[str], str] | None = None,
    pool: int | None = None,
) -> Reason:
    """Reasoning from `prompt` in steps, each weighed by a reward: a step ends with the delimiter, an end token, or at `max_step_tokens`.

    Let p be the model's law, r_t the reward of the text after its step t = 1..T, and g = r, e^r or r / (1 - r), raised to `sharpness`. The target is
      "product": p(x) g(r_1) ... g(r_T);
      "telescoped": p(x) g(r_T), the final score alone. Steps are weighed by g(r_t) / g(r_{t-1}), g(r_0) = 1; no score before the last may be 0;
      "prefix": p(x) g(r_1) ... g(r_T) g(r_T)^(max_steps - T): as the published filters do, every text is weighed afresh in every round, by
        its last score where it has ended. (They stop when all texts have ended, and so have no target that does not depend on the others.)
    Its values are `Reasoning`s: the text, its scores, why it ended; `posterior.answers()` reads their answers.

    Args:
      lm: the model.
      prompt: a text it can encode, or what `lm.prompt` or `lm.prompts` made of one.
      reward: a `Reward` or a classifier (`po.load_classifier`), or a jittable function of a `Text`; scores in [0, 1]. None: the model's own law, in steps.
      potential: g, "identity", "exp" or "odds"; published filters mean the third where they write the first.
      sharpness: the power to which g is raised: 1/T for a softmax of temperature T.
      rule: "product", "telescoped" or "prefix".
      delimiter: what ends a step, found byte by byte, also across tokens; None for steps of `max_step_tokens` tokens.
      max_steps, max_step_tokens: the largest number of steps, and of tokens in one.
      temperature, top_k, top_p, min_p: changes of the model's law, as in `generate`; then p is the changed law.
      extract: how the answer is read: "last_line", "boxed", "regex:PATTERN", "json:FIELD", each with or without "+sympy" (see `extractor`), or a
        function of the text; by default as the model's texts are read.
      pool: for how many tokens, of all texts together, the model has memory; see `lm.start`. What needs more ends with an error that says how much.

    Raises:
      ValueError: for options out of range, an empty delimiter, a reward model with too small a context or other tokens.
      TypeError: for another kind of reward. In a run: scores outside [0, 1] are potentials that are NaN, at which algorithms stop.

    Source: Puri et al. (2025), "A probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods".

    >>> import jax, posterity as po
    >>> shorter = lambda text: 1.0 / (1 + text.generated)
    >>> posterior = po.smc(jax.random.key(0), po.reason(po.load("abacus"), "2+3*4=", reward=shorter, max_steps=4, max_step_tokens=16), n=16)
    >>> list(posterior.answers())
    ['14']
    """
    for name, given, allowed in (("potential", potential, POTENTIALS), ("rule", rule, RULES)):
        if given not in allowed:
            raise ValueError(f"reason: {name} must be one of {', '.join(allowed)}, got {given!r}")
    for name, number in (("max_steps", max_steps), ("max_step_tokens", max_step_tokens)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"reason: {name} must be a whole number from 1 on, got {number!r}")
    if not known(sharpness, lambda x: np.shape(x) == () and np.isfinite(x) and x > 0):
        raise ValueError(f"reason: sharpness must be a positive number, got {sharpness!r}")
    if delimiter == "":
        raise ValueError("reason: delimiter must not be empty; None makes steps of max_step_tokens tokens each")
    tokens = lm.prompt(prompt) if isinstance(prompt, str) else prompt
    law = checked_law("reason", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    judge = None if reward is None else as_reward(reward)
    # A prompt is padded by less than a bucket; programs whose prompts share a bucket share compiled code.
    room = min(max_steps * max_step_tokens, lm.context_length - max(tokens.tokens.shape[-1] - PROMPT_BUCKET, 0) - 1)
    if isinstance(judge, RewardModel):
        judge.check("reason", lm.tokenizer, min(tokens.tokens.shape[-1] + max_steps * max_step_tokens, lm.context_length))
    table = None if delimiter is None else stop_automaton(lm.tokenizer, delimiter.encode())
    read = lm.extract if extract is None else extractor(extract)
    lm.model(pool)
    source = TextSource(lm, tokens, pool)
    return Reason(source, judge, law, table, jnp.asarray(sharpness, float), None, potential, rule, max_steps, max_step_tokens, room, read)
