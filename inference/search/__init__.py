"""Strategies: `(key, program, *, n, ...)` to weighted rollouts with a ledger of what they cost. See docs/reasoning.md.

Those that are properly weighted give a posterior (`Inferred`), the others a `Selection`, which answers the same queries.
"""

from posterity.inference.search.beam import beam, dvts, lookahead, step_best_of_n
from posterity.inference.search.filters import entropic_particle_filter, particle_filter
from posterity.inference.search.independent import best_of_n, repeated_sampling, self_consistency, weighted_best_of_n
from posterity.inference.search.many import many
from posterity.inference.search.particle_gibbs import particle_gibbs
from posterity.inference.search.rebase import rebase
from posterity.inference.search.result import Inferred, Selection

__all__ = [
    "Inferred",
    "Selection",
    "beam",
    "best_of_n",
    "dvts",
    "entropic_particle_filter",
    "lookahead",
    "many",
    "particle_filter",
    "particle_gibbs",
    "rebase",
    "repeated_sampling",
    "self_consistency",
    "step_best_of_n",
    "weighted_best_of_n",
]
