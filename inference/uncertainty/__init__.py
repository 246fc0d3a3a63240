"""How sure answers are: entropies, detection of errors, calibration, conformal sets, and decisions that may be made at any time.

Pure functions over any set of samples, weighted or not, drawn here or elsewhere.

>>> from posterity.inference import uncertainty
>>> round(uncertainty.discrete_semantic_entropy(["7", "7", "8", "7"]).value, 4)
0.5623
"""

from posterity.inference.uncertainty.arviz import to_arviz
from posterity.inference.uncertainty.calibration import (
    Brier,
    Isotonic,
    Platt,
    Reliability,
    Temperature,
    brier,
    isotonic,
    platt,
    reliability,
    temperature,
    temperature_of_laws,
)
from posterity.inference.uncertainty.conformal import AnswerSet, Conformal, Coverage, batch_rank, conformal, conformal_quantile, rank_law
from posterity.inference.uncertainty.diagnostics import ess_bulk, ess_tail, nested_rhat, pareto_k, rank_rhat
from posterity.inference.uncertainty.entropy import Entropy, SemanticEntropy, answer_entropy, discrete_semantic_entropy, predictive_entropy, semantic_entropy
from posterity.inference.uncertainty.selective import Detection, RiskCoverage, error_detection, risk_coverage
from posterity.inference.uncertainty.sequences import Decision, Intervals, betting_sequence, confidence_sequence, decide, log_mixture
from posterity.inference.uncertainty.similarity import degree_uncertainty, eigenvalue_uncertainty, kernel_entropy, von_neumann_entropy
from posterity.inference.uncertainty.summary import Summary, summary
from posterity.inference.uncertainty.tokens import p_true, self_certainty, token_entropy

__all__ = [
    "AnswerSet",
    "Brier",
    "Conformal",
    "Coverage",
    "Decision",
    "Detection",
    "Entropy",
    "Intervals",
    "Isotonic",
    "Platt",
    "Reliability",
    "RiskCoverage",
    "SemanticEntropy",
    "Summary",
    "Temperature",
    "answer_entropy",
    "batch_rank",
    "betting_sequence",
    "brier",
    "confidence_sequence",
    "conformal",
    "conformal_quantile",
    "decide",
    "degree_uncertainty",
    "discrete_semantic_entropy",
    "eigenvalue_uncertainty",
    "error_detection",
    "ess_bulk",
    "ess_tail",
    "isotonic",
    "kernel_entropy",
    "log_mixture",
    "nested_rhat",
    "p_true",
    "pareto_k",
    "platt",
    "predictive_entropy",
    "rank_law",
    "rank_rhat",
    "reliability",
    "risk_coverage",
    "self_certainty",
    "semantic_entropy",
    "summary",
    "temperature",
    "temperature_of_laws",
    "to_arviz",
    "token_entropy",
    "von_neumann_entropy",
]
