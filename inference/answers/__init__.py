"""From many answers to one: votes, best-of-n, consistency of probabilities, risk, and how often one of k is right.

>>> from posterity.inference import answers
>>> answers.majority(["7", "8", "7", "9"]).answer
'7'
"""

from posterity.inference.answers.choice import Choice, best, best_of_majority, majority, merged, minimum_bayes_risk
from posterity.inference.answers.consistency import Weibulls, pruned, rpc
from posterity.inference.answers.coverage import BetaLaw, CoverageLaw, coverage, pass_at_k
from posterity.inference.answers.curves import (
    BudgetRatio,
    Calibration,
    Curve,
    Trials,
    accuracy_curve,
    budget_ratio,
    calibration,
    difference_curve,
)
from posterity.inference.answers.limits import Retried, Stopped, adaptive_majority, best_of_k_error, lead, saturation, votes_needed
from posterity.inference.answers.mode import Mode, mode

__all__ = [
    "BetaLaw",
    "BudgetRatio",
    "Calibration",
    "Choice",
    "CoverageLaw",
    "Curve",
    "Mode",
    "Retried",
    "Stopped",
    "Trials",
    "Weibulls",
    "accuracy_curve",
    "adaptive_majority",
    "best",
    "best_of_k_error",
    "best_of_majority",
    "budget_ratio",
    "calibration",
    "coverage",
    "difference_curve",
    "lead",
    "majority",
    "merged",
    "minimum_bayes_risk",
    "mode",
    "pass_at_k",
    "pruned",
    "rpc",
    "saturation",
    "votes_needed",
]
