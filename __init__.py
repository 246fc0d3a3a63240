"""Posterity: probabilistic programming for inference as search, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posterity.inference import answers, budget, search, uncertainty
    from posterity.inference.budget import Budget, Ledger
    from posterity.inference.checkpoint import Checkpoint
    from posterity.inference.enumeration import check
    from posterity.inference.enumeration.exact import exact
    from posterity.inference.enumeration.measure import Measure
    from posterity.inference.mcmc import kernels
    from posterity.inference.mcmc.annealing import simulated_annealing
    from posterity.inference.mcmc.chain import Chain
    from posterity.inference.mcmc.particle_gibbs import particle_gibbs, pimh
    from posterity.inference.mcmc.pmmh import pmmh
    from posterity.inference.mcmc.power import power
    from posterity.inference.mcmc.run import mcmc
    from posterity.inference.mcmc.runs import kept
    from posterity.inference.mcmc.sequences import anneal, mcmc_sequences, power_sampling
    from posterity.inference.population import Population
    from posterity.inference.posterior import Posterior
    from posterity.inference.queries import Weighted, query
    from posterity.inference.recorded import recorded
    from posterity.inference.retraced import retraced
    from posterity.inference.scale.in_blocks import in_blocks
    from posterity.inference.scale.islands import island_smc, islands
    from posterity.inference.scale.sharded import communication, sharded_smc
    from posterity.inference.smc.backward import backward_simulation, ffbsi, fixed_lag
    from posterity.inference.smc.branching import branching_smc
    from posterity.inference.smc.conditional import conditional_smc
    from posterity.inference.smc.controlled import controlled
    from posterity.inference.smc.ibis import ibis
    from posterity.inference.smc.importance import importance
    from posterity.inference.smc.lookahead import lookahead
    from posterity.inference.smc.nested import nested
    from posterity.inference.smc.paris import paris
    from posterity.inference.smc.resample_move import resample_move
    from posterity.inference.smc.resampling.entropic import biased_entropic, entropic
    from posterity.inference.smc.smc import smc
    from posterity.inference.smc.smc2 import smc2
    from posterity.inference.smc.temper import temper
    from posterity.inference.smc.tempering import tempering
    from posterity.inference.trace import trace
    from posterity.inference.validation.forward import observing, simulate
    from posterity.inference.vi import learn
    from posterity.inference.vi.guide import Guided
    from posterity.inference.vi.result import Approximation
    from posterity.inference.vi.stein import ksdd, lawgd, svgd
    from posterity.inference.vi.svi import svi
    from posterity.models import potentials
    from posterity.models.lm import experts, remote, tabular
    from posterity.models.lm.load import load, load_classifier
    from posterity.models.potentials.degraded import degraded
    from posterity.models.programs import kalman
    from posterity.models.programs.constrained import average_law, constrained
    from posterity.models.programs.host import host_scan
    from posterity.models.programs.reason import reason
    from posterity.ppl.chunk import chunk
    from posterity.ppl.delay import delay
    from posterity.ppl.describe import describe
    from posterity.ppl.effects import factor, observe, sample, scan
    from posterity.ppl.embed import embed, key
    from posterity.ppl.intervene import condition, do, lift
    from posterity.ppl.marginalise import marginalise
    from posterity.ppl.mixture import mixture
    from posterity.ppl.product import product
    from posterity.ppl.program import Program, program
    from posterity.ppl.propose import adapt, propose
    from posterity.ppl.twist import twist

__version__ = "0.1.0"

__all__ = [
    "Approximation",
    "Budget",
    "Chain",
    "Checkpoint",
    "Guided",
    "Ledger",
    "Measure",
    "Population",
    "Posterior",
    "Program",
    "Weighted",
    "adapt",
    "anneal",
    "answers",
    "average_law",
    "backward_simulation",
    "biased_entropic",
    "branching_smc",
    "budget",
    "check",
    "chunk",
    "communication",
    "condition",
    "conditional_smc",
    "constrained",
    "controlled",
    "degraded",
    "delay",
    "describe",
    "do",
    "embed",
    "entropic",
    "exact",
    "experts",
    "factor",
    "ffbsi",
    "fixed_lag",
    "host_scan",
    "ibis",
    "importance",
    "in_blocks",
    "island_smc",
    "islands",
    "kalman",
    "kept",
    "kernels",
    "key",
    "ksdd",
    "lawgd",
    "learn",
    "lift",
    "load",
    "load_classifier",
    "lookahead",
    "marginalise",
    "mcmc",
    "mcmc_sequences",
    "mixture",
    "nested",
    "observe",
    "observing",
    "paris",
    "particle_gibbs",
    "pimh",
    "pmmh",
    "potentials",
    "power",
    "power_sampling",
    "product",
    "program",
    "propose",
    "query",
    "reason",
    "recorded",
    "remote",
    "resample_move",
    "retraced",
    "sample",
    "scan",
    "search",
    "sharded_smc",
    "simulate",
    "simulated_annealing",
    "smc",
    "smc2",
    "svgd",
    "svi",
    "tabular",
    "temper",
    "tempering",
    "trace",
    "twist",
    "uncertainty",
]

# Names are imported when they are first used (PEP 562): importing JAX takes seconds, and `posterity --help` needs none of it.
_HOMES = {
    "inference.budget.ledger": ["Budget", "Ledger"],
    "inference.checkpoint": ["Checkpoint"],
    "inference.enumeration.exact": ["exact"],
    "inference.enumeration.measure": ["Measure"],
    "inference.mcmc.annealing": ["simulated_annealing"],
    "inference.mcmc.chain": ["Chain"],
    "inference.mcmc.particle_gibbs": ["particle_gibbs", "pimh"],
    "inference.mcmc.pmmh": ["pmmh"],
    "inference.mcmc.run": ["mcmc"],
    "inference.mcmc.runs": ["kept"],
    "inference.mcmc.sequences": ["anneal", "mcmc_sequences", "power_sampling"],
    "inference.population": ["Population"],
    "inference.posterior": ["Posterior"],
    "inference.queries": ["Weighted", "query"],
    "inference.recorded": ["recorded"],
    "inference.retraced": ["retraced"],
    "inference.scale.in_blocks": ["in_blocks"],
    "inference.scale.islands": ["island_smc", "islands"],
    "inference.scale.sharded": ["communication", "sharded_smc"],
    "inference.smc.backward": ["backward_simulation", "ffbsi", "fixed_lag"],
    "inference.smc.branching": ["branching_smc"],
    "inference.smc.conditional": ["conditional_smc"],
    "inference.smc.controlled": ["controlled"],
    "inference.smc.ibis": ["ibis"],
    "inference.smc.importance": ["importance"],
    "inference.smc.lookahead": ["lookahead"],
    "inference.smc.nested": ["nested"],
    "inference.smc.paris": ["paris"],
    "inference.smc.resample_move": ["resample_move"],
    "inference.smc.resampling.entropic": ["biased_entropic", "entropic"],
    "inference.smc.smc": ["smc"],
    "inference.smc.smc2": ["smc2"],
    "inference.smc.temper": ["temper"],
    "inference.smc.tempering": ["tempering"],
    "inference.trace": ["trace"],
    "inference.vi.guide": ["Guided"],
    "inference.vi.result": ["Approximation"],
    "inference.vi.stein": ["ksdd", "lawgd", "svgd"],
    "inference.vi.svi": ["svi"],
    "models.lm.load": ["load", "load_classifier"],
    "models.potentials.degraded": ["degraded"],
    "models.programs.constrained": ["average_law", "constrained"],
    "models.programs.host": ["host_scan"],
    "models.programs.reason": ["reason"],
    "ppl.chunk": ["chunk"],
    "ppl.delay": ["delay"],
    "ppl.describe": ["describe"],
    "ppl.effects": ["factor", "observe", "sample", "scan"],
    "ppl.embed": ["embed", "key"],
    "inference.validation.forward": ["observing", "simulate"],
    "ppl.intervene": ["condition", "do", "lift"],
    "ppl.marginalise": ["marginalise"],
    "ppl.mixture": ["mixture"],
    "inference.mcmc.power": ["power"],
    "ppl.product": ["product"],
    "ppl.program": ["Program", "program"],
    "ppl.propose": ["adapt", "propose"],
    "ppl.twist": ["twist"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {
    "answers": "inference.answers",
    "budget": "inference.budget",
    "check": "inference.enumeration.check",
    "experts": "models.lm.experts",
    "kalman": "models.programs.kalman",
    "kernels": "inference.mcmc.kernels",
    "learn": "inference.vi.learn",
    "potentials": "models.potentials",
    "remote": "models.lm.remote",
    "search": "inference.search",
    "tabular": "models.lm.tabular",
    "uncertainty": "inference.uncertainty",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f"posterity.{_MODULES[name]}")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"posterity.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'posterity' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
