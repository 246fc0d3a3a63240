"""Posterity: probabilistic programming for inference as search, in JAX."""

from posterity.inference.smc.importance import importance
from posterity.inference.smc.smc import smc
from posterity.models.lm.load import load
from posterity.ppl.effects import factor, observe, sample, scan
from posterity.ppl.population import Population
from posterity.ppl.posterior import Posterior
from posterity.ppl.program import Program, program
from posterity.ppl.transform import chunk

__version__ = "0.1.0"

__all__ = [
    "Population",
    "Posterior",
    "Program",
    "chunk",
    "factor",
    "importance",
    "load",
    "observe",
    "program",
    "sample",
    "scan",
    "smc",
]
