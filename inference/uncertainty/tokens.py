"""What the next token's law says of a model's certainty."""

import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy.special import expit


def token_entropy(
    log_probs: Float[ArrayLike, "*batch tokens vocabulary"], *, where: Bool[ArrayLike, "*batch tokens"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """The mean over a text's tokens of the entropy of the law that each was drawn from, nats per token. Tokens of probability zero add nothing.

    Args:
      log_probs: normalised, nats.
      where: which tokens count (not padding); all by default.

    Raises:
      ValueError: for laws that do not sum to one, or a text without a token that counts.

    >>> import numpy as np
    >>> float(token_entropy(np.log([[0.5, 0.5], [0.25, 0.75]])))
    0.62774...
    """
    laws, counted = _laws("token_entropy", log_probs, where)
    p = np.exp(laws)
    return _mean(-(p * np.where(p > 0, laws, 0.0)).sum(axis=-1), counted)


def self_certainty(
    log_probs: Float[ArrayLike, "*batch tokens vocabulary"], *, where: Bool[ArrayLike, "*batch tokens"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """The mean over a text's tokens of KL(uniform || law), nats per token: 0 for uniform laws, larger the surer. A confidence, no uncertainty.

    Arguments and errors as in `token_entropy`; laws that give a token probability zero (top-k, grammars) are refused, as it is infinite for
    all of them: give the model's own laws.

    Source: Kang et al. (2025), "Scalable best-of-N selection for large language models via self-certainty", equation 8.

    >>> import numpy as np
    >>> round(float(self_certainty(np.log([[0.5, 0.5], [0.25, 0.75]]))), 6)  # (0 + log(4 / 3) / 2) / 2
    0.071921
    """
    laws, counted = _laws("self_certainty", log_probs, where)
    if (laws == -np.inf)[counted].any():
        raise ValueError("self_certainty: a law gives some tokens probability zero, so it is infinite; give log_probs before any truncation")
    return _mean(np.where(counted, -np.log(laws.shape[-1]) - np.where(counted[..., None], laws, 0.0).mean(axis=-1), 0.0), counted)


def p_true(log_true: Float[ArrayLike, "*batch spellings"], log_false: Float[ArrayLike, "*batch spellings"]) -> Float[np.ndarray, "*batch"]:
    """The probability with which a model that is asked whether its answer is true says so: P(true) / (P(true) + P(false)), in [0, 1].

    Args:
      log_true: log probabilities of every way to say yes that was looked at ("True", " true", ..), nats.
      log_false: the same for no.

    Raises:
      ValueError: for NaN, or where the model says neither.

    Source: Kadavath et al. (2022), "Language models (mostly) know what they know", section 3.

    >>> import numpy as np
    >>> round(float(p_true(np.log([0.3, 0.15]), np.log([0.05]))), 6)
    0.9
    """
    given = [np.atleast_1d(np.asarray(x, float)) for x in (log_true, log_false)]
    if any(np.isnan(x).any() for x in given):
        raise ValueError("p_true: log_true and log_false must be log probabilities, got NaN")
    yes, no = (np.logaddexp.reduce(x, axis=-1) for x in given)
    if (np.isneginf(yes) & np.isneginf(no)).any():
        raise ValueError("p_true: the model gives neither the true nor the false spellings any probability; other spellings are needed")
    return expit(yes - no)


def _laws(name: str, log_probs: ArrayLike, where: ArrayLike | None) -> tuple[Float[np.ndarray, "*batch tokens vocabulary"], Bool[np.ndarray, "*batch tokens"]]:
    laws = np.asarray(log_probs, float)
    if laws.ndim < 2 or 0 in laws.shape:
        raise ValueError(f"{name}: log_probs must have shape [.., tokens, vocabulary], got {laws.shape}")
    counted = np.ones(laws.shape[:-1], bool) if where is None else np.asarray(where, bool)
    if counted.shape != laws.shape[:-1] or not counted.any(axis=-1).all():
        raise ValueError(f"{name}: where must have shape {laws.shape[:-1]} and keep a token of every text, got shape {counted.shape}")
    total = np.exp(laws).sum(axis=-1)
    off = counted & ~(np.abs(total - 1) < 1e-3)
    if off.any():
        raise ValueError(f"{name}: the probabilities of a token's law must sum to 1, got {total[off][0]:.6g}; log_probs are logits after log_softmax")
    return laws, counted


def _mean(of_tokens: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.where(counted, of_tokens, 0.0).sum(axis=-1) / counted.sum(axis=-1)
