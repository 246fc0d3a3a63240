"""Laws as checks that anyone who writes an algorithm or a transformation can run: exact, by enumeration, on finite programs.

Two checks more are statistical and take any program: `calibration`, of posteriors, and `evidence`, from both sides.

>>> import numpyro.distributions as dist, posterity as po
>>> @po.program
... def coin():
...     heads = po.sample("heads", dist.Bernoulli(0.5))
...     po.factor("reward", 2.0 * heads)
...     return heads
>>> bool(po.check.properly_weighted(lambda key, program: po.importance(key, program, n=2), coin()))
True
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from posterity.inference.enumeration.branching import groups
from posterity.inference.enumeration.exact import LIMIT, exact, law_of, moved
from posterity.inference.enumeration.measure import Measure
from posterity.inference.validation.calibration import Calibration, calibration
from posterity.inference.validation.evidence import Bounds, evidence
from posterity.ppl.answer import plain
from posterity.ppl.program import Program, as_program

__all__ = ["Bounds", "Calibration", "Report", "calibration", "evidence", "invariant", "properly_weighted", "same_meaning"]


class Difference(NamedTuple):
    """An outcome whose mass is off."""

    outcome: Any
    expected: float
    found: float


class Report(NamedTuple):
    """What a check found. True when all masses agree within the tolerance."""

    law: str
    error: float  # the largest difference of an outcome's mass, as a share of the expected total
    tolerance: float
    outcomes: int  # how many were compared
    branches: int  # how many ways to go were enumerated
    first: Difference | None  # the first outcome that is off, in the order of the outcomes

    def __bool__(self) -> bool:
        return self.first is None

    def __str__(self) -> str:
        head = f"{self.law}: {'holds' if self else 'FAILS'} ({self.outcomes} outcomes, {self.branches:,} branches, largest error {self.error:.2g})"
        return head if self.first is None else f"{head}\nfirst off: {self.first.outcome}: expected {self.first.expected:.12g}, found {self.first.found:.12g}"

    __repr__ = __str__


def properly_weighted(
    algorithm: Callable[[Array, Program], Any], program: Program, *, meaning: Program | None = None, tolerance: float = 1e-10, limit: int = LIMIT
) -> Report:
    """Whether E[exp(log_evidence) * sum_i W_i f(x_i)] = ⟦program⟧(f) for every f, evidence included.

    The algorithm's own code runs, and every draw that it and the program make is enumerated, so the answer is a proof for
    this program and this number of particles, up to rounding.

    Args:
      algorithm: `algorithm(key, program)`, to a `Posterior` (anything with `values`, `log_weights`, `log_evidence`); code
        that jit accepts, whose draws go through `po.sample` or `ppl.effects.draw`. The same function object again compiles nothing anew.
      program: a finite program. It should return all that is to be told apart: its path, say.
      meaning: another program to compare with, where the algorithm is meant to answer for that one.
      tolerance: the largest difference allowed, as a share of the evidence.
      limit: the largest number of branches of one step.

    Raises:
      ValueError: as `po.exact`; also when something random went past the handlers, so that it cannot be enumerated.
    """
    program = as_program(program)
    law = law_of(_weighted(algorithm), program, limit=limit)
    values, log_weights, log_evidence = law.values
    log_mass = (law.log_weights + log_evidence)[:, None] + log_weights
    found = _masses(jax.tree.map(lambda x: x.reshape(log_mass.size, *x.shape[2:]), values), np.exp(log_mass).reshape(-1))
    expected = _of(exact(program if meaning is None else meaning, limit=limit))
    total = {"total probability of all branches": float(np.exp(law.log_weights).sum())}
    return _compare("proper weighting", expected, found, law.branches, tolerance, total)


def invariant(kernel: Callable[[Array, Program, Any], Any], program: Program, *, tolerance: float = 1e-10, limit: int = LIMIT) -> Report:
    """Whether a kernel leaves the program's posterior as it is: πK = π on the program's values.

    Args:
      kernel: `kernel(key, program, particles)` to particles, on a batch of one of the program's own particles at its end.
      program: a finite program whose value holds all that the kernel is to leave invariant (its path, say).
      tolerance: the largest difference allowed, as a share of the evidence.
      limit: the largest number of branches.

    Raises:
      ValueError: as `properly_weighted`.
    """
    before, after = exact(program, limit=limit), moved(program, kernel, limit=limit)
    return _compare("invariance", _of(before), _of(after), after.branches, tolerance)


def same_meaning(program: Program, other: Program | Mapping[Any, float], *, tolerance: float = 1e-10, limit: int = LIMIT) -> Report:
    """Whether two programs denote the same measure, evidence included.

    Args:
      program: a finite program, a transformed one perhaps.
      other: a program, or a sum worked out by hand: every outcome, as `Measure.outcomes` writes it, with its mass.
      tolerance: the largest difference allowed, as a share of the evidence of `other`.
      limit: the largest number of branches.

    Raises:
      ValueError: as `po.exact`.
    """
    found = exact(program, limit=limit)
    if isinstance(other, Mapping):
        law, expected = "meaning, against a sum", {outcome: float(mass) for outcome, mass in other.items()}
    else:
        law, expected = "equal meaning", _of(exact(other, limit=limit))
    return _compare(law, expected, _of(found), found.branches, tolerance)


@functools.lru_cache(maxsize=256)
def _weighted(algorithm: Callable) -> Callable:
    """The algorithm without what the law does not speak of (its genealogy), so that enumeration need not tell it apart."""

    def run(program, key):
        posterior = algorithm(key, program)
        return posterior.values, posterior.log_weights, posterior.log_evidence

    return run


def _of(measure: Measure) -> dict[Any, float]:
    return _masses(measure.values, np.exp(measure.log_weights + measure.log_evidence))


def _masses(values: Any, mass: np.ndarray) -> dict[Any, float]:
    """Distinct outcomes with their masses. Numbers that differ by rounding alone are one outcome."""
    leaves, tree = jax.tree.flatten(values)
    leaves = [np.round(x, 9) if np.issubdtype(x.dtype, np.floating) else x for x in leaves]
    first, group = groups(leaves, len(mass))
    total = np.bincount(group, weights=mass, minlength=len(first))
    masses: dict[Any, float] = {}
    for i, share in zip(first, total, strict=True):
        outcome = plain(jax.tree.unflatten(tree, [x[i] for x in leaves]))  # different texts may have one answer
        masses[outcome] = masses.get(outcome, 0.0) + float(share)
    return masses


def _compare(law: str, expected: dict, found: dict, branches: int, tolerance: float, total: dict | None = None) -> Report:
    scale = math.fsum(expected.values()) or 1.0
    outcomes = sorted(expected.keys() | found.keys(), key=repr)
    differences = [Difference(outcome, expected.get(outcome, 0.0), found.get(outcome, 0.0)) for outcome in outcomes]
    errors = [abs(d.found - d.expected) / scale for d in differences]
    for name, probability in (total or {}).items():
        differences, errors = [Difference(name, 1.0, probability), *differences], [abs(probability - 1.0), *errors]
    first = next((d for d, error in zip(differences, errors, strict=True) if not error <= tolerance), None)
    return Report(law, max(errors, default=0.0), tolerance, len(outcomes), branches, first)
