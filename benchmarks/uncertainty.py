"""How well each measure of uncertainty detects wrong answers of Abacus: `python benchmarks/uncertainty.py`, about a minute on two cores.

Each problem is solved eight times at temperature 1. What is detected is whether the first solution's answer is wrong; measures of one text see
that one, the others all eight. Intervals are 95%, over problems drawn again, the same for all measures.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posterity as po
from posterity.models.lm.cache import CachedDecoder
from posterity.models.programs.tasks import task
from posterity.models.weights.evaluate_abacus import longest_text

PROBLEMS, SOLUTIONS = 400, 8


class Solution(NamedTuple):
    """One text, and what the laws of its tokens say."""

    text: str
    answer: str
    log_prob: float  # nats
    tokens: int
    entropy: float  # nats per token
    certainty: float  # nats per token


@partial(jax.jit, static_argnums=0)
def solved(graph: nnx.GraphDef, weights: nnx.State, key: jax.Array, forced: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Token ids [n, steps], those of `forced` where they are not negative, and the law of each [n, steps, vocabulary], nats."""
    model, (n, steps) = CachedDecoder(nnx.merge(graph, weights)), forced.shape

    def extend(carry, step):
        memory, logits = carry
        key, given = step
        tokens = jnp.where(given < 0, jax.random.categorical(key, logits), given)
        following, memory = model.advance(memory, tokens, jnp.ones(n, bool))
        return (memory, following), (tokens, jax.nn.log_softmax(logits))

    logits, memory = model.start(jnp.zeros(1, jnp.int32), jnp.zeros((), jnp.int32), n, steps)
    _, (tokens, laws) = jax.lax.scan(extend, (memory, logits), (jax.random.split(key, steps), forced.T))
    return tokens.T, laws.swapaxes(0, 1)


def solutions_of(lm, found, seed: int) -> list[Solution]:
    """One of each problem."""
    prompts = [lm.tokenizer.encode(problem.question) for problem in found.problems]
    forced = np.full((len(prompts), max(longest_text(problem.question) for problem in found.problems)), -1, np.int32)
    for row, prompt in zip(forced, prompts, strict=True):
        row[: len(prompt)] = prompt
    tokens, laws = map(np.asarray, solved(*nnx.split(lm.decoder), jax.random.key(seed), jnp.asarray(forced)))
    (end,) = lm.tokenizer.end_ids
    solutions = []
    for row, law, prompt in zip(tokens, laws, prompts, strict=True):
        new, law = row[len(prompt) :].tolist(), law[len(prompt) :]
        length = new.index(end) + 1 if end in new else len(new)
        text = lm.tokenizer.decode([token for token in new[:length] if token != end])
        log_prob = float(law[np.arange(length), new[:length]].sum())
        solutions.append(
            Solution(
                text,
                found.extract(text),
                log_prob,
                length,
                float(po.uncertainty.token_entropy(law[:length])),
                float(po.uncertainty.self_certainty(law[:length])),
            )
        )
    return solutions


def main() -> None:
    u, lm, found = po.uncertainty, po.load("abacus"), task("abacus:hard", count=PROBLEMS)
    of_problem = list(zip(*(solutions_of(lm, found, seed) for seed in range(SOLUTIONS)), strict=True))
    answers = [[s.answer for s in solutions] for solutions in of_problem]
    log_probs = [[s.log_prob for s in solutions] for solutions in of_problem]
    first = [solutions[0] for solutions in of_problem]
    right = np.array([problem.score(s.answer) == 1 for problem, s in zip(found.problems, first, strict=True)])
    confidences = {
        "share of the answer": [a.count(a[0]) / SOLUTIONS for a in answers],
        "discrete semantic entropy": [-u.discrete_semantic_entropy(a).value for a in answers],
        "semantic entropy": [-u.semantic_entropy(a, [s.text for s in of], p).value for a, of, p in zip(answers, of_problem, log_probs, strict=True)],
        "predictive entropy": [-u.predictive_entropy(p).value for p in log_probs],
        "predictive entropy per token": [-u.predictive_entropy(p, lengths=[s.tokens for s in of]).value for p, of in zip(log_probs, of_problem, strict=True)],
        "degree": [-u.degree_uncertainty(np.equal.outer(np.array(a), np.array(a))) for a in answers],
        "log probability (one text)": [s.log_prob for s in first],
        "log probability per token (one text)": [s.log_prob / s.tokens for s in first],
        "token entropy (one text)": [-s.entropy for s in first],
        "self-certainty (one text)": [s.certainty for s in first],
    }
    print(f"{PROBLEMS} problems of {found.name}, {right.mean():.3f} right\n\n| confidence | AUROC | 95% | AURC | rejection ratio |\n|---|---|---|---|---|")
    for name, confidence in confidences.items():
        detection, curve = u.error_detection(confidence, right), u.risk_coverage(confidence, 1.0 - right)
        low, high = detection.interval
        print(f"| {name} | {detection.auroc:.3f} | {low:.3f} to {high:.3f} | {curve.area:.3f} | {curve.rejection_ratio:.3f} |")


if __name__ == "__main__":
    main()
