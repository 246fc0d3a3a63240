"""Posterity: probabilistic programming for inference as search, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posterity.inference.smc.importance import importance
    from posterity.inference.smc.smc import smc
    from posterity.models.lm.load import load
    from posterity.ppl.chunk import chunk
    from posterity.ppl.effects import factor, observe, sample, scan
    from posterity.ppl.population import Population
    from posterity.ppl.posterior import Posterior
    from posterity.ppl.program import Program, program
    from posterity.ppl.queries import Weighted, query
    from posterity.ppl.recorded import recorded

__version__ = "0.1.0"

__all__ = [
    "Population",
    "Posterior",
    "Program",
    "Weighted",
    "chunk",
    "factor",
    "importance",
    "load",
    "observe",
    "program",
    "query",
    "recorded",
    "sample",
    "scan",
    "smc",
]

# Names are imported when they are first used (PEP 562): importing JAX takes seconds, and `posterity --help` needs none of it.
_HOMES = {
    "inference.smc.importance": ["importance"],
    "inference.smc.smc": ["smc"],
    "models.lm.load": ["load"],
    "ppl.chunk": ["chunk"],
    "ppl.effects": ["factor", "observe", "sample", "scan"],
    "ppl.population": ["Population"],
    "ppl.posterior": ["Posterior"],
    "ppl.program": ["Program", "program"],
    "ppl.queries": ["Weighted", "query"],
    "ppl.recorded": ["recorded"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'posterity' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"posterity.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
