"""Uncertainty from how similar the answers are, pair by pair: no meanings need be told apart.

Similarities come from anywhere: entailment probabilities, embeddings, overlap of words. Answers have weights, and each function says
whether an answer that is given twice counts like one of twice the weight.
"""

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.linalg import expm

from posterity.inference.uncertainty.arguments import shares


def degree_uncertainty(similarity: Float[ArrayLike, "n n"], *, log_weights: Float[ArrayLike, " n"] | None = None) -> float:
    """One minus the mean similarity of two answers, themselves included: 0 when all are alike, 1 - 1/n when none are.

    An answer that is given twice counts like one of twice the weight.

    Args:
      similarity: [n, n] symmetric, in [0, 1], 1 for the same.
      log_weights: [n] nats; equal by default.

    Raises:
      ValueError: for a matrix that is not square, symmetric or in [0, 1], or bad weights.

    Source: Lin, Trivedi and Sun (2024), "Generating with confidence", equation 8 (Deg).

    >>> round(degree_uncertainty(np.kron(np.eye(2), np.ones((2, 2)))), 6)
    0.5
    """
    W, w = _graph("degree_uncertainty", similarity, log_weights, most=1.0)
    return float(1 - w @ W @ w)


def eigenvalue_uncertainty(similarity: Float[ArrayLike, "n n"], *, log_weights: Float[ArrayLike, " n"] | None = None) -> float:
    """How many groups the answers fall into, as a number that need not be whole: sum of max(0, 1 - eigenvalue) of the normalised Laplacian, from 1 to n.

    An answer that is given twice counts like one of twice the weight. Arguments and errors as in `degree_uncertainty`.

    Source: Lin, Trivedi and Sun (2024), equation 6 (EigV).

    >>> round(eigenvalue_uncertainty(np.kron(np.eye(2), np.ones((2, 2)))), 6)
    2.0
    """
    W, w = _graph("eigenvalue_uncertainty", similarity, log_weights, most=1.0)
    W, w = W[np.ix_(w > 0, w > 0)], w[w > 0]
    scale = np.sqrt(w / (W @ w))
    return float(np.maximum(np.linalg.eigvalsh(scale[:, None] * W * scale), 0.0).sum())


def von_neumann_entropy(kernel: Float[ArrayLike, "n n"], *, log_weights: Float[ArrayLike, " n"] | None = None) -> float:
    """The entropy of the eigenvalues of the density matrix that weighted answers have under a kernel, nats: 0 when all are alike, at most log n.

    An answer that is given twice counts like one of twice the weight. With a kernel of blocks of ones it is the entropy of the blocks.

    Args:
      kernel: [n, n] symmetric, positive semi-definite, with a positive diagonal, which is scaled to 1.
      log_weights: [n] nats; equal by default.

    Raises:
      ValueError: for a matrix that is no such kernel, or bad weights.

    Source: Nikitin et al. (2024), "Kernel language entropy", definition 3.

    >>> round(von_neumann_entropy(np.kron(np.eye(2), np.ones((2, 2)))), 6)  # log 2
    0.693147
    """
    K, w = _graph("von_neumann_entropy", kernel, log_weights, least=-np.inf)
    if not (np.diag(K) > 0).all():
        raise ValueError(f"von_neumann_entropy: kernel must have a positive diagonal, got {np.diag(K).min()}")
    scale = np.sqrt(w / np.diag(K))
    eigenvalues = np.linalg.eigvalsh(scale[:, None] * K * scale)
    if eigenvalues[0] < -1e-6:
        raise ValueError(f"von_neumann_entropy: kernel must be positive semi-definite, it has an eigenvalue of {eigenvalues[0]:.3g}")
    positive = eigenvalues[eigenvalues > 0]
    return float(max(-(positive * np.log(positive)).sum(), 0.0))


def kernel_entropy(similarity: Float[ArrayLike, "n n"], *, time: float = 0.3) -> float:
    """Kernel language entropy: the von Neumann entropy of heat that flows between the answers' graph for some time, nats, at most log n.

    As published it is not 0 when all answers are alike (of five with similarity 2: .68), since heat never gets everywhere, and an answer given
    twice is two nodes. `von_neumann_entropy` of a kernel has neither fault.

    Args:
      similarity: [n, n] symmetric, none negative; the published weights are E + E' + (2 - (E + E') - (C + C')) / 2 of the probabilities E of
        entailment and C of contradiction, so up to 2. The diagonal does not matter.
      time: of the flow, positive.

    Raises:
      ValueError: for a matrix that is not square, symmetric and without negative entries, or a time that is not positive.

    Source: Nikitin et al. (2024), "Kernel language entropy", section 4 (heat kernel).

    >>> round(kernel_entropy(np.zeros((5, 5))), 6)  # log 5
    1.609438
    """
    if not time > 0:
        raise ValueError(f"kernel_entropy: time must be positive, got {time}")
    W, _ = _graph("kernel_entropy", similarity, None)
    return von_neumann_entropy(expm(-time * (np.diag(W.sum(axis=1)) - W)))


def _graph(
    name: str, matrix: ArrayLike, log_weights: ArrayLike | None, least: float = 0.0, most: float = np.inf
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"]]:
    W = np.asarray(matrix, float)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"{name}: the matrix must be square, one row and one column for each answer, got shape {W.shape}")
    if not np.isfinite(W).all() or not np.allclose(W, W.T, atol=1e-6):
        raise ValueError(f"{name}: the matrix must be finite and symmetric; (W + W') / 2 is")
    if W.min() < least - 1e-9 or W.max() > most + 1e-9:
        raise ValueError(f"{name}: similarities must lie in [{least:g}, {most:g}], got {W.min():.4g} to {W.max():.4g}")
    if least == 0.0 and most == 1.0 and not (np.diag(W) > 0).all():
        raise ValueError(f"{name}: every answer must be similar to itself, got {np.diag(W).min():.4g} on the diagonal")
    return (W + W.T) / 2, shares(name, W, log_weights)
