"""The law of answers that a particle filter finds tends to the rule's own posterior, by the square root of the number of particles, and to no other's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po

LM = po.tabular.ngram(["a;aa;", "a", ";a;;"], order=2, smoothing=0.5)
RULES = ("product", "telescoped", "prefix")
RUNS = 64


def score(text):
    return jnp.where(text.last == 0, 0.9, 0.3)


def program(rule):
    return po.reason(LM, "a", reward=score, rule=rule, delimiter=";", max_steps=2, max_step_tokens=2, extract=str)


def laws(posterior):
    """Of each of many runs: {answer: probability}."""
    tokens, weights = np.asarray(posterior.values.text.tokens), np.exp(np.asarray(posterior.log_weights, float))
    start, length = int(posterior.values.text.prompt_length[0, 0]), np.asarray(posterior.values.text.length)
    for run in range(len(tokens)):
        found: dict[str, float] = {}
        for row, end, weight in zip(tokens[run], length[run], weights[run], strict=True):
            text = "".join("a;"[i] for i in row[start:end] if i < 2)
            found[text] = found.get(text, 0.0) + weight
        yield found


def distance(p, q):
    return 0.5 * sum(abs(p.get(x, 0.0) - q.get(x, 0.0)) for x in p.keys() | q.keys())


@pytest.mark.slow
def test_total_variation_falls_with_the_root_of_the_number_of_particles():
    exact = {rule: {answer: estimate.value for answer, estimate in po.exact(program(rule)).answers().items()} for rule in RULES}
    sizes = (16, 256)
    for rule in RULES:
        means = []
        for n in sizes:
            run = jax.jit(jax.vmap(lambda key, program, n=n: po.search.particle_filter(key, program, n=n, threshold=1.0), in_axes=(0, None)))
            posterior = run(jax.random.split(jax.random.key(n), RUNS), program(rule))
            found = list(laws(posterior))
            means.append(np.mean([distance(law, exact[rule]) for law in found]))
        slope = np.polyfit(np.log(sizes), np.log(means), 1)[0]
        assert -0.58 < slope < -0.42, (rule, means)
        others = [np.mean([distance(law, exact[other]) for law in found]) for other in RULES if other != rule]
        assert min(others) > 1.2 * means[-1], (rule, others, means)
