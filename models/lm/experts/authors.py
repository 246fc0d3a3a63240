"""What language models say of texts that are finished."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from posterity.models.lm.experts.mixture import Texts
from posterity.models.lm.experts.together import log_law
from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.text import Text


def log_probs(lm: LanguageModel, texts: Text) -> Float[Array, " n"]:
    """The log probabilities, nats, of what follows the prompt in texts such as `posterior.values`, end tokens included.

    Args:
      lm: a model with the vocabulary in which the texts were written.
      texts: finished texts with one prompt, leading axis n.

    Raises:
      ValueError: when the texts have another vocabulary.

    >>> import jax, posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> lm = po.tabular.ngram(["a", "b"], order=2, smoothing=0)
    >>> posterior = po.importance(jax.random.key(0), generate(lm, "", max_tokens=3), n=2)
    >>> [round(float(p), 4) for p in jax.numpy.exp(po.experts.log_probs(lm, posterior.values))]
    [0.5, 0.5]
    """
    if lm.tokenizer.vocab_size != texts.tokenizer.vocab_size:
        raise ValueError(f"log_probs: {lm.name} has {lm.tokenizer.vocab_size:,} tokens, the vocabulary of the texts {texts.tokenizer.vocab_size:,}")
    return _log_probs(lm, texts.tokens, texts.prompt_length[0], texts.length)


def authors(lm: LanguageModel, texts: Text) -> Float[Array, "n k"]:
    """The probability of each member of a mixture of texts to have written each text, given the text.

    Raises:
      ValueError: for another kind of model, or texts of another vocabulary.

    >>> import jax, posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> lm = po.experts.mixture([po.tabular.ngram(["ab"], order=2, smoothing=0), po.tabular.ngram(["ab", "aa"], order=2, smoothing=0)])
    >>> posterior = po.smc(jax.random.key(0), po.constrained(lm, "", po.potentials.regex("ab"), max_tokens=3), n=4)
    >>> po.experts.authors(lm, posterior.values)[0].round(2)
    Array([0.75, 0.25], dtype=float32)
    """
    model = lm.decoder
    if not isinstance(model, Texts):
        raise ValueError(f"authors: {lm.name} is no mixture of texts; only there one member writes all of a text")
    joint = jnp.stack([log_weight + log_probs(member, texts) for member, log_weight in zip(model.panel.members, model.log_weights)], axis=-1)
    return jax.nn.softmax(joint, axis=-1)


@functools.partial(jax.jit)
def _log_probs(lm: LanguageModel, tokens: Array, prompt: Array, lengths: Array) -> Float[Array, " n"]:
    n, capacity = tokens.shape
    model = lm.model()
    logits, memory = model.start(tokens[0], prompt, n, capacity)

    def read(carry, t):
        log_prob, law, memory = carry
        token = tokens[jnp.arange(n), jnp.minimum(prompt + t, capacity - 1)]
        active = prompt + t < lengths
        log_prob = log_prob + jnp.where(active, law[jnp.arange(n), token], 0.0)
        logits, memory = model.advance(memory, token, active)
        return (log_prob, log_law(logits), memory), None

    law = log_law(logits)
    (log_prob, _, _), _ = jax.lax.scan(read, (jnp.zeros(n, law.dtype), law, memory), jnp.arange(capacity - 1))
    return log_prob
