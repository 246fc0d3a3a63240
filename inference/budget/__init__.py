"""What a run may cost, and what it did cost: the same words for every strategy."""

from posterity.inference.budget.ledger import Budget, Ledger, Metered, limited, of_work
from posterity.inference.budget.stopwatch import Stopwatch

__all__ = ["Budget", "Ledger", "Metered", "Stopwatch", "limited", "of_work"]
