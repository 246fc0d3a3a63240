"""Texts of a language model weighed by a potential: a constraint, a reward, or both."""

import jax
import jax.numpy as jnp

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.next_token import NextToken, checked_law
from posterity.models.potentials.automaton import Automaton
from posterity.models.potentials.likelihood import check_texts
from posterity.models.potentials.potential import Potential, known, plus
from posterity.models.potentials.rejection import rejection
from posterity.models.potentials.texts import stopped
from posterity.models.potentials.tokens import over
from posterity.models.programs.generate import stop_automaton
from posterity.ppl.component import is_component
from posterity.ppl.effects import factor, sample, scan
from posterity.ppl.embed import embed, key
from posterity.ppl.program import FunctionProgram, program
from posterity.ppl.side_by_side import anywhere


def constrained(
    lm: LanguageModel,
    prompt: str,
    potential: Potential | Automaton,
    *,
    max_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
    ask: int | None = None,
) -> FunctionProgram:
    """Continuations of `prompt` weighed by a potential. Its values are texts; its evidence is the mean weight of the model's own texts.

    Where the potential knows its `scores`, tokens are drawn from the law times exp(scores + change of to_go), normalised, and the sum is
    the weight (the locally optimal proposal); else they are drawn from the law and weighed by `update`, or with `ask` drawn again where
    `update` forbids them. All mean the same.

    Args:
      lm: the model.
      prompt: a text it can encode. The potential weighs what follows it.
      potential: any potential; or an automaton over bytes (`regex`, `json_schema`, `contains`, ...): the texts that it accepts in at most
        `max_tokens` tokens, which are drawn with an eye on the room that is left, so that none is cut off in the middle.
      max_tokens: the largest number of tokens generated.
      temperature, top_k, top_p, min_p: changes of the law, as in `generate`; the evidence then is that of the changed law.
      stop: a text that ends a continuation once it is written, also across tokens. The text up to and with it is then whole: an automaton must
        accept it, whatever the token that completed it writes beyond (`trimmed` takes both off); other potentials judge it by `complete`.
      ask: for potentials too large to score, such as functions on the host: a token that is forbidden is drawn again, and the mass of the
        allowed ones is estimated by asking about so many more, 1 to 8 say (`rejection`). With more, evidence varies less, and takes longer.

    Raises:
      ValueError: for a potential that forbids every text of at most `max_tokens` tokens, where that can be seen, for ask below 1, and as `generate`.
      TypeError: for another kind of potential.

    >>> import jax, posterity as po
    >>> program = po.constrained(po.load("abacus"), "2+3=", po.potentials.regex("[0-9]{2}"), max_tokens=4)
    >>> posterior = po.smc(jax.random.key(0), program, n=4)
    >>> all(len(text) == 2 for text in posterior.answers())
    True
    """
    if max_tokens < 1:
        raise ValueError(f"constrained: max_tokens must be at least 1, got {max_tokens}")
    tokens = lm.prompt(prompt)
    if tokens.length + max_tokens > lm.context_length:
        raise ValueError(
            f"constrained: a prompt of {tokens.length} tokens and max_tokens={max_tokens} do not fit the context of {lm.name}, {lm.context_length} tokens"
        )
    if stop == "":
        raise ValueError("constrained: stop must not be empty; leave it out to stop at the model's end tokens only")
    if ask is not None and not (isinstance(ask, int) and ask >= 1):
        raise ValueError(f"constrained: ask must be a whole number from 1 on, got {ask!r}; leave it out to draw each token once")
    if isinstance(potential, Automaton):
        potential = over(stopped(potential, stop) if stop else potential, lm.tokenizer).within(max_tokens)
    if not isinstance(potential, Potential):
        raise TypeError(f"constrained: potential must be a Potential or an automaton over bytes, got {type(potential).__name__}")
    check_texts(f"constrained to texts of {lm.name}", potential.start(), lm.tokenizer, max_tokens)
    law = checked_law("constrained", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return weighed_text(lm, tokens, law, potential, max_tokens, stop_automaton(lm.tokenizer, stop.encode()) if stop else None, ask)


def average_law(lm: LanguageModel, prompt: str, *, max_tokens: int = 16) -> FunctionProgram:
    """The law of the next token, averaged along a continuation: [vocab] probabilities, whose mean over texts is the model's law on average.

    It is what `within(max_tokens, law)` of a token automaton looks ahead by.

    Raises:
      ValueError: as `generate`.

    >>> import jax, posterity as po
    >>> law = po.importance(jax.random.key(0), average_law(po.load("abacus"), "1+2=", max_tokens=4), n=4).expect()
    >>> law.shape == (po.load("abacus").tokenizer.vocab_size,), round(float(law.sum()), 4)
    (True, 1.0)
    """
    if max_tokens < 1:
        raise ValueError(f"average_law: max_tokens must be at least 1, got {max_tokens}")
    return averaged(lm, lm.prompt(prompt), max_tokens)


@program
def averaged(lm, prompt, max_tokens):
    """The mean of the next-token laws along a text."""

    def step(carry, _):
        text, total = carry
        law = text.next()
        return text.push(sample("token", law)), total + jax.nn.softmax(law.logits)

    start = lm.start(prompt), jnp.zeros(lm.tokenizer.vocab_size)
    text, total = scan(step, start, length=max_tokens, until=lambda carry: carry[0].ended)
    return total / text.generated


@program
def weighed_text(lm, prompt, law, potential, max_tokens, table, ask):
    """Tokens by `law` (options of `text.next`) and `potential`, until an end token or, with `table` (of `stop_automaton`), until it has read its text."""
    text, end_ids = lm.start(prompt), lm.tokenizer.end_ids

    def step(carry, _):
        text, state, read = carry
        own = text.next(**law)
        steered = towards(own, potential.gains(state, end_ids))
        if ask is None:
            token = sample("token", steered)
        else:
            token = embed("token", rejection(key(), steered, lambda token: potential.update(state, token)[1] > -jnp.inf, ask))
        after, gain = potential.update(state, token)
        if (now := potential.to_go(state)) is not None:
            gain = plus(gain, jnp.where(_is_end(token, end_ids), 0.0, potential.to_go(after))) - known(now)
        factor("potential", plus(gain, steered.correction(token)))
        after = _each(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        return text.push(token), after, read if table is None else jnp.asarray(table)[read, token]

    def until(carry):
        text, _, read = carry
        return text.ended if table is None else text.ended | (read == table.shape[0] - 1)

    start = _each(jnp.asarray, potential.start())
    if (psi := potential.to_go(start)) is not None:
        factor("to go", psi)
    unread = jnp.zeros((), jnp.int32 if table is None else table.dtype)
    text, state, read = scan(step, (text, start, unread), length=max_tokens, until=until)
    cut = ~_is_end(text.last, end_ids) & (until((text, state, read)) | (text.generated >= max_tokens))
    # Asked where some text is cut off: this runs after every step, and to judge a whole text can be dear.
    left = jax.lax.cond(anywhere(cut), lambda: jnp.asarray(potential.complete(state), float), lambda: jnp.zeros((), float))
    if (psi := potential.to_go(state)) is not None:
        left = left - known(psi)
    factor("complete", jnp.where(_is_end(text.last, end_ids), 0.0, left))
    return text


def towards(law: NextToken, gains) -> NextToken:
    """The law times exp(gains), normalised; where nothing is left, the law itself: the weights then say so. `correction` brings the law back."""
    if gains is None:
        return law
    logits = plus(law.logits, gains)
    possible = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
    return NextToken(jnp.where(possible, logits, law.logits), law.tokenizer, law.logits)


def _each(function, state, *others):
    """The function of the arrays in a potential's state; a text in it goes its own way, as a component."""
    return jax.tree.map(lambda x, *rest: x if is_component(x) else function(x, *rest), state, *others, is_leaf=is_component)


def _is_end(token, end_ids):
    return jnp.isin(token, jnp.array(end_ids, jnp.int32))
