"""Posterity: probabilistic programming for inference as search, in JAX."""

from posterity.inference.smc.importance import importance
from posterity.inference.smc.smc import smc
from posterity.ppl.effects import factor, observe, sample, scan
from posterity.ppl.population import Population
from posterity.ppl.posterior import Posterior
from posterity.ppl.program import Program, program

__version__ = "0.1.0"

__all__ = ["Population", "Posterior", "Program", "factor", "importance", "observe", "program", "sample", "scan", "smc"]
