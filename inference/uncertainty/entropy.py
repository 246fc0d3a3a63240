"""Entropies of what was answered: of texts, of their meanings, of a posterior's answers."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from posterity.inference.queries import Estimate, Weighted
from posterity.inference.uncertainty.arguments import same_lengths, shares, vector
from posterity.ppl.answer import plain


class Entropy(NamedTuple):
    """The entropy of what the samples say, with its two errors. 0: all say the same; log k: k things are said alike."""

    value: float  # nats, of the weighted shares as they are (the plug-in estimate)
    error: float  # Monte Carlo standard error, first order: zero where all shares are equal
    bias: float  # by how much `value` is too low on average, second order (Miller and Madow, for any weights); unseen answers are not in it
    probabilities: dict[Any, float]  # most probable first
    ess: float  # effective number of draws, (sum w)^2 / sum w^2

    @property
    def corrected(self) -> float:
        """The value with its bias taken off, nats."""
        return self.value + self.bias

    @property
    def equivalent(self) -> float:
        """Of how many equally probable answers this is the entropy: exp(value), from 1 on."""
        return math.exp(self.value)


class SemanticEntropy(NamedTuple):
    """The entropy of meanings by the probabilities of the distinct texts that were seen."""

    value: float  # nats
    probabilities: dict[Any, float]  # of meanings, most probable first; among what was seen
    seen: float  # the probability of all distinct texts together, so that 1 - seen is what was not drawn; NaN for normalised lengths, which have no such sum


def predictive_entropy(
    log_probs: Float[ArrayLike, " n"],
    *,
    lengths: Int[ArrayLike, " n"] | None = None,
    log_weights: Float[ArrayLike, " n"] | None = None,
    log_evidence: float = 0.0,
) -> Estimate:
    """The entropy of a law of texts from draws of it: the mean of -log p(text), with its Monte Carlo error.

    For weighted draws of a posterior give `log_probs` its unnormalised density (prior times potentials) and `log_evidence`: then it is the
    entropy of the posterior, log Z - E[log density]. With `log_probs` of the model alone it is how surprised the model is by the posterior.

    Args:
      log_probs: [n] of each text as a whole, nats. A text drawn twice is there twice.
      lengths: [n] in tokens: each text's mean over its tokens is taken, so the result is in nats per token (a score, no entropy of a law).
      log_weights: [n] nats, normalised or not; equal by default.
      log_evidence: nats; 0 where `log_probs` are normalised.

    Raises:
      ValueError: for log_probs that are NaN, above 0 (without a log_evidence), or -inf on a text that has weight; lengths below 1.

    Source: Malinin and Gales (2021), "Uncertainty estimation in autoregressive structured prediction", equations 8 and 11.

    >>> import numpy as np
    >>> round(predictive_entropy(np.log([0.5, 0.25, 0.25, 0.5])).value, 6)  # (log 2 + log 4) / 2
    1.039721
    """
    given = vector("predictive_entropy", "log_probs", log_probs)
    weights = shares("predictive_entropy", given, log_weights)
    if not np.isfinite(given[weights > 0]).all():
        bad = given[(weights > 0) & ~np.isfinite(given)][0]
        raise ValueError(f"predictive_entropy: log_probs must be finite where a text has weight, got {bad}")
    if log_evidence == 0.0 and (given > 1e-6).any():
        raise ValueError(f"predictive_entropy: log_probs must not be above 0 unless they are unnormalised and log_evidence is given; got {given.max()}")
    surprise = np.where(weights > 0, log_evidence - given, 0.0)
    if lengths is not None:
        tokens = vector("predictive_entropy", "lengths", lengths, len(given))
        if not (tokens >= 1).all():
            raise ValueError(f"predictive_entropy: lengths must be at least 1 token, got {tokens.min()}")
        surprise = surprise / tokens
    mean = float(weights @ surprise)
    return Estimate(mean, float(np.linalg.norm(weights * (surprise - mean))))


def discrete_semantic_entropy(meanings: Sequence[Hashable], *, log_weights: Float[ArrayLike, " n"] | None = None) -> Entropy:
    """The entropy of meanings by the share of all weight that each has: needs no probabilities, so any sampled texts will do.

    Args:
      meanings: of each of n draws: equal values mean the same. `answers.merged` makes them of texts and a test of equivalence.
      log_weights: [n] nats; equal by default. Draws are independent; for particles that share ancestors use `answer_entropy`.

    Raises:
      ValueError: for no meanings, or weights that are NaN or all zero.

    Source: Farquhar et al. (2024), "Detecting hallucinations in large language models using semantic entropy", discrete variant;
    Miller (1955) for the bias, sum_k Var(p_k) / 2 p_k, which for n equal weights is (k - 1) / 2n.

    >>> found = discrete_semantic_entropy(["Paris", "Paris", "Paris", "Paris", "London"])
    >>> round(found.value, 4), round(found.bias, 4)
    (0.5004, 0.1)
    """
    weights = shares("discrete_semantic_entropy", meanings, log_weights)
    which, names = _numbered([meaning for meaning, weight in zip(meanings, weights, strict=True) if weight > 0])
    alive = weights[weights > 0]
    p = np.bincount(which, weights=alive)
    squares = np.bincount(which, weights=alive**2)
    variances = squares * (1 - 2 * p) + p**2 * squares.sum()
    surprise = -np.log(p)[which]
    value = float(alive @ surprise)
    return _entropy(value, float(np.linalg.norm(alive * (surprise - value))), p, variances, names, 1 / squares.sum())


def semantic_entropy(
    meanings: Sequence[Hashable], texts: Sequence[Hashable], log_probs: Float[ArrayLike, " n"], *, lengths: Int[ArrayLike, " n"] | None = None
) -> SemanticEntropy:
    """The entropy of meanings, each as probable as its distinct texts together. A text that was drawn twice counts once: its probability is known.

    Args:
      meanings: of each text: equal values mean the same.
      texts: by which draws are told apart.
      log_probs: [n] of each text as a whole, nats; or a posterior's unnormalised log density (then `seen` is in its units).
      lengths: [n] in tokens: texts count by their mean probability per token instead, as is often done. Long texts then count for more than they should.

    Raises:
      ValueError: for none, one text with two probabilities or two meanings, lengths that differ, or only texts of probability zero.

    Source: Kuhn et al. (2023), "Semantic uncertainty"; Farquhar et al. (2024), equation 5 (normalised over the meanings that were seen).

    >>> import numpy as np
    >>> found = semantic_entropy(["P", "P", "P", "P", "L"], ["Paris", "Paris", "Paris", "It's Paris", "London"], np.log([0.6, 0.6, 0.6, 0.3, 0.1]))
    >>> round(found.value, 4), round(found.seen, 4)
    (0.3251, 1.0)
    """
    name = "semantic_entropy"
    same_lengths(name, meanings=meanings, texts=texts)
    shares(name, meanings, None)
    given = vector(name, "log_probs", log_probs, len(texts))
    if (np.isnan(given) | (given == np.inf)).any():
        raise ValueError(f"{name}: log_probs must be below inf, got {given[np.isnan(given) | (given == np.inf)][0]}")
    tokens = np.ones(len(texts)) if lengths is None else vector(name, "lengths", lengths, len(texts))
    if not (tokens >= 1).all():
        raise ValueError(f"{name}: lengths must be at least 1 token, got {tokens.min()}")
    known: dict[Hashable, tuple[Hashable, float]] = {}
    for meaning, text, log_prob in zip(meanings, texts, given / tokens, strict=True):
        before = known.setdefault(text, (meaning, float(log_prob)))
        if before[0] != meaning or not math.isclose(before[1], log_prob, rel_tol=1e-3, abs_tol=1e-3):
            raise ValueError(
                f"{name}: text {text!r} was given twice, with {before} and {(meaning, float(log_prob))}; one text has one meaning and one probability"
            )
    alive = [(meaning, log_prob) for meaning, log_prob in known.values() if log_prob > -math.inf]
    if not alive:
        raise ValueError(f"{name}: every text has probability zero")
    log_p = np.array([log_prob for _, log_prob in alive])
    which, names = _numbered([meaning for meaning, _ in alive])
    total = np.logaddexp.reduce(log_p)
    p = np.bincount(which, weights=np.exp(log_p - total))
    value = float(-(p * np.log(np.where(p > 0, p, 1.0))).sum())
    return SemanticEntropy(value + 0.0, _by_probability(names, p), float(np.exp(total)) if lengths is None else math.nan)


def answer_entropy(posterior: Weighted, extract: Callable[[Any], Hashable] | None = None) -> Entropy:
    """The entropy of a posterior's answers, with the errors that its own weights and genealogy tell of: zero where it is exact.

    Args:
      posterior: of any inference, or exact.
      extract: from one value (NumPy leaves) to a hashable answer, as in `Posterior.answers`.

    Raises:
      ValueError: when the evidence is zero.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin():
    ...     return po.sample("heads", dist.Bernoulli(0.8))
    >>> found = answer_entropy(po.exact(coin()))
    >>> round(found.value, 4), found.error, found.bias
    (0.5004, 0.0, 0.0)
    """
    found = posterior.answers(extract)
    p = np.array([answer.value for answer in found.values()])
    read, rows, weights = plain if extract is None else extract, jax.device_get(posterior.values), posterior._host_weights()
    surprise = np.zeros(len(weights))
    number = {answer: k for k, answer in enumerate(found)}
    for i in np.flatnonzero(weights > 0):
        surprise[i] = -math.log(p[number[read(jax.tree.map(lambda x, i=i: x[i], rows))]])
    value = float(weights @ surprise)
    variances = np.array([answer.error for answer in found.values()]) ** 2
    return _entropy(value, posterior._error(surprise, value), p, variances, list(found), 1 / float(weights @ weights))


def _entropy(value: float, error: float, p: np.ndarray, variances: np.ndarray, names: list, ess: float) -> Entropy:
    return Entropy(value + 0.0, error, float(np.maximum(variances, 0) @ (0.5 / p)), _by_probability(names, p), float(ess))


def _by_probability(names: list, p: np.ndarray) -> dict[Any, float]:
    return {names[k]: float(p[k]) for k in np.argsort(-p, kind="stable")}


def _numbered(names: Sequence[Hashable]) -> tuple[Int[np.ndarray, " n"], list[Hashable]]:
    """The number [n] of each name, and the names by number, in the order in which they were met."""
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(name, len(ids)) for name in names]), list(ids)
