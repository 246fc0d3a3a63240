"""Texts of a language model weighed by a potential: a constraint, a reward, or both."""

import jax
import jax.numpy as jnp

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.next_token import NextToken, checked_law
from posterity.models.potentials.automaton import Automaton
from posterity.models.potentials.potential import Potential, known, plus
from posterity.models.potentials.tokens import over
from posterity.ppl.effects import factor, sample, scan
from posterity.ppl.program import FunctionProgram, program


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
) -> FunctionProgram:
    """Continuations of `prompt` weighed by a potential. Its values are texts; its evidence is the mean weight of the model's own texts.

    Where the potential knows its `scores`, tokens are drawn from the law times exp(scores + change of to_go), normalised, and the sum is
    the weight (the locally optimal proposal); else they are drawn from the law and weighed by `update`. Both mean the same.

    Args:
      lm: the model.
      prompt: a text it can encode. The potential weighs what follows it.
      potential: any potential; or an automaton over bytes (`regex`, `json_schema`, `contains`, ...): the texts that it accepts in at most
        `max_tokens` tokens, which are drawn with an eye on the room that is left, so that none is cut off in the middle.
      max_tokens: the largest number of tokens generated.
      temperature, top_k, top_p, min_p: changes of the law, as in `generate`; the evidence then is that of the changed law.

    Raises:
      ValueError: for a potential that forbids every text of at most `max_tokens` tokens, where that can be seen, and as `generate`.
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
    if isinstance(potential, Automaton):
        potential = over(potential, lm.tokenizer).within(max_tokens)
    if not isinstance(potential, Potential):
        raise TypeError(f"constrained: potential must be a Potential or an automaton over bytes, got {type(potential).__name__}")
    law = checked_law("constrained", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return weighed_text(lm, tokens, law, potential, max_tokens)


@program
def weighed_text(lm, prompt, law, potential, max_tokens):
    """Tokens by `law` (options of `text.next`) and `potential`, until an end token."""
    text, end_ids = lm.start(prompt), lm.tokenizer.end_ids

    def step(carry, _):
        text, state = carry
        own = text.next(**law)
        steered = towards(own, potential.gains(state, end_ids))
        token = sample("token", steered)
        after, gain = potential.update(state, token)
        if (now := potential.to_go(state)) is not None:
            gain = plus(gain, jnp.where(_is_end(token, end_ids), 0.0, potential.to_go(after))) - known(now)
        factor("potential", plus(gain, steered.correction(token)))
        return text.push(token), jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)

    start = jax.tree.map(jnp.asarray, potential.start())
    if (psi := potential.to_go(start)) is not None:
        factor("to go", psi)
    text, state = scan(step, (text, start), length=max_tokens, until=lambda carry: carry[0].ended)
    left = potential.complete(state)
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


def _is_end(token, end_ids):
    return jnp.isin(token, jnp.array(end_ids, jnp.int32))
