"""Filters and what they say of their own error, exactly, on random finite programs."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import posterity as po
from posterity.ppl.check import Report
from posterity.ppl.exact import law_of
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import FEW


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


@cache
def evidences(n, resampling, threshold):
    """What a run says of the evidence: the estimate, and how it varies."""

    def run(program, key):
        posterior = po.smc(key, program, n=n, resampling=resampling, threshold=threshold)
        return posterior.log_evidence, posterior.evidence_variance(multinomial=resampling == "multinomial")

    return run


def variance_is_estimated(program, *, n, resampling="multinomial", threshold=1.0) -> Report:
    """Whether E[Z_hat^2 V_hat] = Var(Z_hat)."""
    law = law_of(evidences(n, resampling, threshold), program)
    probability, (log_evidence, variance) = np.exp(law.log_weights), law.values
    evidence = np.exp(log_evidence)
    expected = probability @ evidence**2 - (probability @ evidence) ** 2
    found = probability @ (evidence**2 * variance)
    error = abs(found - expected) / max(probability @ evidence**2, 1e-300)
    return Report("the variance of the evidence is estimated without bias", error, 1e-10, 1, law.branches, None if error < 1e-10 else (None, expected, found))


@pytest.mark.parametrize(("n", "threshold"), [(2, 1.0), (2, 0.7), (3, 1.0), (2, 0.0)])
@given(program=finite.stoppings())
@FEW
def test_the_variance_of_the_evidence_is_estimated_without_bias(laws, n, threshold, program):
    laws.holds("evidence_variance, multinomial", variance_is_estimated(program, n=n, threshold=threshold))


@given(program=finite.stoppings())
@FEW
def test_where_nothing_is_resampled_it_is_so_by_any_scheme(laws, program):
    laws.holds("evidence_variance, nothing resampled", variance_is_estimated(program, n=2, resampling="systematic", threshold=0.0))


def test_the_proof_refutes_a_variance_for_another_scheme(laws):
    program = finite.markov(*finite.arrays([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 2.0], [0.5, 0.25], [0.3, 1.5]]))
    laws.fails("evidence_variance of systematic resampling", variance_is_estimated(program, n=2, resampling="systematic"))
