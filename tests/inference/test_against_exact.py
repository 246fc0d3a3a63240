"""SMC and importance sampling against exact solutions: evidence and marginals, within four standard errors.

Z_hat / Z and Z_hat / Z * expect(f) have means 1 and E[f] exactly (whatever n), so their averages over independent runs
are compared. A right algorithm would fail one such comparison at about 6e-5 of the seeds (the seed is fixed).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.inference.smc.resampling import SCHEMES
from posterity.tests.fixtures import references

pytestmark = pytest.mark.slow

ALGORITHMS = [(po.smc, {"resampling": name}) for name in SCHEMES] + [(po.importance, {})]
every_algorithm = pytest.mark.parametrize(("algorithm", "options"), ALGORITHMS, ids=[*SCHEMES, "importance"])


def assert_agrees(algorithm, options, program, f, log_evidence, expectation, n):
    estimates, means = references.runs(algorithm, program, f, n=n, **options)
    ratio = np.exp(estimates - log_evidence)
    assert abs(references.z_scores(ratio, 1.0)) < 4
    weighted = ratio.reshape(-1, *[1] * (means.ndim - 1)) * means
    assert np.abs(references.z_scores(weighted, expectation)).max() < 4
    assert ratio.std() < 1  # four standard errors then mean something:
    assert np.abs(weighted.mean(axis=0) - expectation).max() < 0.05


@every_algorithm
def test_hidden_markov_model(algorithm, options):
    evidence, marginals = references.hmm_posterior()
    program = references.hmm(*map(jnp.asarray, (references.START, references.MOVE, references.MEANS, references.HEARD)))
    assert_agrees(algorithm, options, program, lambda path: jax.nn.one_hot(path, 3), np.log(evidence), marginals, n=400)


@every_algorithm
def test_tabular_language_model_with_a_hard_constraint(algorithm, options):
    evidence, answers = references.strings_posterior()
    probable = sorted(answers, key=answers.get, reverse=True)[:20]
    f = lambda string: jnp.all(string == jnp.array(probable), axis=-1)  # noqa: E731
    program = references.strings(jnp.asarray(references.FIRST), jnp.asarray(references.NEXT))
    assert_agrees(algorithm, options, program, f, np.log(evidence), [answers[string] for string in probable], n=200)


@every_algorithm
def test_linear_gaussian_model(algorithm, options):
    log_evidence, mean, covariance = references.walk_posterior(references.YS)
    moments = [mean[-1], covariance[-1, -1] + mean[-1] ** 2]
    assert_agrees(algorithm, options, references.walk(jnp.asarray(references.YS)), lambda x: jnp.stack([x, x**2]), log_evidence, moments, n=2_000)


def test_the_answers_of_one_run_are_the_strings_that_the_constraint_allows():
    _, exact = references.strings_posterior()
    posterior = po.smc(jax.random.key(1), references.strings(jnp.asarray(references.FIRST), jnp.asarray(references.NEXT)), n=5_000)
    answers = posterior.answers()
    assert set(answers) <= set(exact)
    best = next(iter(answers))
    assert exact[best] > 0.9 * max(exact.values())
    assert abs(answers[best].value - exact[best]) < 4 * answers[best].error
