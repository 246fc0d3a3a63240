"""Does a potential agree with itself? Scores against updates, the promise against what comes, a batch against one at a time."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.potential import Potential

TOLERANCE = 1e-4  # nats, and relative


class Consistency(NamedTuple):
    """What a check of a potential found; true where nothing is off."""

    disagreement: str | None  # the first one
    tokens: int  # looked at

    def __bool__(self) -> bool:
        return self.disagreement is None

    def __repr__(self) -> str:
        return f"consistent over {self.tokens} tokens" if self else f"NOT CONSISTENT: {self.disagreement}"


def potential(potential: Potential, lm: LanguageModel | Tokenizer, texts: Iterable[str]) -> Consistency:
    """Walks through texts, each ended by an end token where there is one, and looks for a contradiction.

    After each token: `scores` must be what `update` says of every token, `gains` the scores and the change of `to_go`; a text that was
    forbidden, or that `to_go` gave up, must not end with a weight; nothing may be NaN or +inf; and under `jax.vmap` over all the
    states that were met everything must come out the same.

    Raises:
      ValueError: for no texts.

    >>> import posterity as po
    >>> lm = po.load("abacus")
    >>> po.potentials.check.potential(po.potentials.over(po.potentials.regex("[0-9]+"), lm.tokenizer), lm, ["12", "1+2"])
    consistent over 7 tokens
    """
    tokenizer = lm.tokenizer if isinstance(lm, LanguageModel) else lm
    rows = [tokenizer.encode(text) + list(tokenizer.end_ids[:1]) for text in texts]
    if not rows:
        raise ValueError("check.potential: give at least one text")
    look = jax.jit(lambda state, token: _look(potential, state, token, tokenizer))
    states, tokens, singles = [], [], []
    for row in rows:
        state, given_up = potential.start(), None
        for place, token in enumerate(row):
            where = f"token {place} of {tokenizer.decode(row)!r}"
            seen = look(state, jnp.asarray(token, jnp.int32))
            states, tokens, singles = [*states, state], [*tokens, token], [*singles, seen]
            if wrong := _wrong(seen, token):
                return Consistency(f"{wrong}, at {where}", len(tokens))
            if given_up is None and (np.isneginf(seen["update"]) or np.isneginf(seen.get("to go", 0.0))):
                given_up = where
            state = seen["after"]
        if given_up is None:
            continue
        if "to go" in singles[-1] and all(np.isfinite(seen["update"]) for seen in singles[-len(row) :]):
            return Consistency(f"to_go is -inf at {given_up}, and yet the text has a weight", len(tokens))
    together = jax.vmap(look)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), jnp.array(tokens, jnp.int32))
    for name, found in jax.tree.map(lambda *leaves: np.stack(leaves), *singles).items():
        if not jax.tree.all(jax.tree.map(_close, found, together[name])):
            return Consistency(f"{name} differs under vmap from one at a time", len(tokens))
    return Consistency(None, len(tokens))


def _look(potential: Potential, state, token, tokenizer: Tokenizer) -> dict:
    after, gain = potential.update(state, token)
    every = jax.vmap(lambda token: potential.update(state, token)[1])(jnp.arange(tokenizer.vocab_size, dtype=jnp.int32))
    seen = {
        "after": after,
        "update": gain,
        "every update": every,
        "complete": jnp.asarray(potential.complete(state), float),
        "to go": potential.to_go(state),
        "scores": potential.scores(state),
        "gains": potential.gains(state, tokenizer.end_ids),
        "expected gains": Potential.gains(potential, state, tokenizer.end_ids),
    }
    return {name: value for name, value in seen.items() if value is not None}


def _wrong(seen: dict, token: int) -> str | None:
    for name, value in seen.items():
        if name != "after" and not (np.isfinite(value) | np.isneginf(value)).all():
            return f"{name} is NaN or +inf"
    if np.shape(seen["update"]) != ():
        return f"update's log potential has shape {np.shape(seen['update'])} and not ()"
    for name, against in (("scores", "every update"), ("gains", "expected gains")):
        if name in seen and against in seen:
            found, expected = np.asarray(seen[name]), np.asarray(seen[against])
            if found.shape != expected.shape:
                return f"{name} has shape {found.shape} and not {expected.shape}"
            if len(off := np.flatnonzero(~_each_close(found, expected))):
                return f"{name} says {found[off[0]]:.6g} of token {off[0]}, {against} {expected[off[0]]:.6g}"
    return None


def _each_close(found, expected) -> np.ndarray:
    found, expected = np.asarray(found), np.asarray(expected)
    return (found == expected) | np.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _close(found, expected) -> bool:
    return bool(_each_close(found, expected).all())
