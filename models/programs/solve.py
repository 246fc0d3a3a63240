"""Arithmetic solved line by line: decodings of a language model, weighed by whether each line follows from the one before."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from posterity.models.lm.language_model import PROMPT_BUCKET, LanguageModel
from posterity.models.lm.next_token import checked_law
from posterity.models.lm.text import Text
from posterity.models.potentials.arithmetic import Alphabet, line_log_potential
from posterity.models.programs import arithmetic
from posterity.ppl.chunk import chunk
from posterity.ppl.effects import factor, sample, scan
from posterity.ppl.program import Program, program

POTENTIALS = ("lines", "none")


def solve(
    lm: LanguageModel,
    prompt: str,
    *,
    potential: Literal["lines", "none"] = "lines",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Program:
    """Solutions of an arithmetic problem such as `47+6*(12-8)=`, one line a step. Its values are texts; their answer is the last line.

    With `potential="lines"` a line that is not one legal reduction of the line before it has weight zero, and so has a text
    that stops before it is a number. The evidence is then the probability that the model writes a right solution.

    Args:
      lm: a model that has a token for each of the characters `0-9 + - * ( ) =` and the line break, such as `abacus`.
      prompt: an expression closed by `=`; see `arithmetic.parse` for what is allowed.
      potential: "lines", or "none" for the model's own law.
      temperature: the model's logits are divided by it.
      top_k, top_p, min_p: which tokens are kept, as in `generate`. The evidence then is that of the changed model.

    Raises:
      ValueError: for a prompt that is not such a problem, another potential, or a temperature, top_k, top_p or min_p out of range.

    >>> import jax, posterity as po
    >>> posterior = po.smc(jax.random.key(0), solve(po.load("abacus"), "2+3*4="), n=30)
    >>> list(posterior.answers())
    ['14']
    """
    if potential not in POTENTIALS:
        raise ValueError(f"solve: potential must be one of {', '.join(POTENTIALS)}, got {potential!r}")
    expression = arithmetic.parse(prompt)
    alphabet = Alphabet.of(lm.tokenizer) if potential == "lines" else None
    law = checked_law("solve", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    program = lines(lm, lm.prompt(prompt), law, alphabet, _room(expression))
    return chunk(program, until=at_line_end)


@program
def lines(lm, prompt, law, alphabet, max_tokens):
    """Tokens by `law` (options of `text.next`); with an `alphabet`, the line check as the potential of the tokens that end lines."""
    text = lm.start(prompt)

    def step(text, _):
        text = text.push(sample("token", text.next(**law)))
        if alphabet is not None:
            factor("line", line_log_potential(text.tokens, text.length, alphabet))
        return text

    text = scan(step, text, length=max_tokens)
    if alphabet is not None:  # a text may also stop for want of room, with a line that nothing has checked
        factor("finished", jnp.where(jnp.isin(text.last, jnp.array(text.tokenizer.end_ids)), 0.0, -jnp.inf))
    return text


def at_line_end(text: Text) -> Array:
    """Whether the text's last token is a line break."""
    return text.last == text.tokenizer.encode("\n")[0]


def _room(expression: str) -> int:
    """Tokens that suffice for every right solution: each line is shorter than the one before. A multiple, so that compiled code is shared."""
    operations = sum(character in "+-*" for character in expression)
    longest = operations * len(expression) - operations * (operations - 1) // 2
    return -(-longest // (2 * PROMPT_BUCKET)) * 2 * PROMPT_BUCKET
