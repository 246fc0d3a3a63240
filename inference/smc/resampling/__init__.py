"""Resampling: distributions over ancestor vectors, in fixed point, and such as keep particle 0."""

from posterity.inference.smc.resampling.conditional import CONDITIONAL
from posterity.inference.smc.resampling.entropic import biased_entropic, entropic
from posterity.inference.smc.resampling.schemes import Ancestors, Killing, Multinomial, Residual, Srinivasan, Stratified, Systematic

__all__ = [
    "CONDITIONAL",
    "SCHEMES",
    "Ancestors",
    "Killing",
    "Multinomial",
    "Residual",
    "Srinivasan",
    "Stratified",
    "Systematic",
    "biased_entropic",
    "entropic",
    "scheme",
]

SCHEMES: dict[str, type[Ancestors]] = {
    "systematic": Systematic,
    "stratified": Stratified,
    "multinomial": Multinomial,
    "residual": Residual,
    "ssp": Srinivasan,
    "killing": Killing,
}


def scheme(resampling: str | type[Ancestors]) -> type[Ancestors]:
    """A scheme by name, or the class itself."""
    if isinstance(resampling, type) and issubclass(resampling, Ancestors):
        return resampling
    if not isinstance(resampling, str) or resampling not in SCHEMES:
        raise ValueError(f"resampling must be one of {', '.join(SCHEMES)} or an Ancestors class, got {resampling!r}")
    return SCHEMES[resampling]
