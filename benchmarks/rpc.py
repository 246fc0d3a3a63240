"""How many samples the probabilities of paths save: votes against RPC on the hard problems of Abacus (`python benchmarks/rpc.py`).

For each problem Abacus writes many solutions at temperature 1; every rule sees the same random subsets of them. Reported are the accuracy of
each rule by the number of samples (ties split fairly), and at the accuracy that votes reach with half, a quarter, ... of all samples, how
many each rule needs, with 95% intervals from resampled problems.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posterity as po
from posterity.inference import answers
from posterity.models.lm.decoder import Decoder
from posterity.models.programs.arithmetic import CHARACTERS, trace
from posterity.models.weights.abacus_rollouts import END, ROWS, sampled, width_of
from posterity.models.weights.evaluate_abacus import unseen_prompts

RULES = ("votes", "perplexity consistency", "RPC", "RPC, mean log probability")


def log_probs(decoder: Decoder, prompts: list[str], solutions: list[list[int]]) -> list[tuple[float, int]]:
    """The joint log probability of each solution, nats, and its tokens."""

    @jax.jit
    def score(weights, tokens, own):
        decoder = nnx.merge(graph, weights)
        logits = decoder.logits(decoder(tokens[:, :-1])[0])
        each = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(own[:, 1:], each, 0.0), axis=-1)

    graph, weights = nnx.split(decoder)
    found = [(0.0, 0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(solutions[i]))
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        width = width_of(len(prompts[rows[-1]]) + len(solutions[rows[-1]]))
        tokens, own = np.full((ROWS, width), END, np.int32), np.zeros((ROWS, width), bool)
        for row, i in enumerate(rows):
            start, stop = len(prompts[i]), len(prompts[i]) + len(solutions[i])
            tokens[row, :stop] = [*(CHARACTERS.index(c) for c in prompts[i]), *solutions[i]]
            own[row, start:stop] = True
        for i, value in zip(rows, np.asarray(score(weights, tokens, own)).tolist(), strict=False):
            found[i] = (value, len(solutions[i]))
    return found


def choices(texts: list[tuple[str, str, float, int]]) -> dict[str, answers.Choice]:
    """What every rule makes of texts: answer, path, joint log probability, tokens."""
    given, paths, joint, tokens = zip(*texts, strict=True)
    joint = np.array(joint)
    return {
        "votes": answers.majority(given),
        "perplexity consistency": answers.rpc(given, paths, joint, prune=False),
        "RPC": answers.rpc(given, paths, joint),
        "RPC, mean log probability": answers.rpc(given, paths, joint / np.array(tokens)),
    }


def needed(curve: np.ndarray, budgets: np.ndarray, accuracy: float) -> float:
    """The samples at which a curve of accuracies first reaches `accuracy`, interpolated in the logarithm of samples; inf where it never does."""
    above = np.flatnonzero(curve >= accuracy)
    if not above.size:
        return np.inf
    i = above[0]
    share = 0.0 if i == 0 else (accuracy - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(np.exp(np.interp(i - 1 + share if i else 0.0, np.arange(len(budgets)), np.log(budgets))))


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--level", type=int, default=6)
    options.add_argument("--problems", type=int, default=200)
    options.add_argument("--samples", type=int, default=64)
    options.add_argument("--subsets", type=int, default=4, help="random subsets of each size, for each problem")
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = options.parse_args()
    decoder: Decoder = po.load("abacus").decoder
    problems = unseen_prompts(args.seed, args.level, args.problems)
    prompts = [problem for problem in problems for _ in range(args.samples)]
    solutions = sampled(jax.random.key(args.seed), decoder, prompts)
    probabilities = log_probs(decoder, prompts, solutions)
    texts = []
    for solution, (joint, length) in zip(solutions, probabilities, strict=True):
        path = "".join(CHARACTERS[token] for token in solution if token != END)
        texts.append((path.split("\n")[-1] if END in solution else f"unfinished: {path}", path + ("" if END in solution else "..."), joint, length))

    budgets = 2 ** np.arange(int(np.log2(args.samples)) + 1)
    rng, right = np.random.default_rng(args.seed), {rule: np.zeros((args.problems, len(budgets))) for rule in RULES}
    for number, problem in enumerate(problems):
        answer, own = trace(problem)[-1], texts[number * args.samples : (number + 1) * args.samples]
        for column, budget in enumerate(budgets):
            subsets = args.subsets if budget < args.samples else 1
            for _ in range(subsets):
                for rule, choice in choices([own[i] for i in rng.permutation(args.samples)[:budget]]).items():
                    right[rule][number, column] += choice.accuracy(lambda given, answer=answer: given == answer) / subsets
    print(f"Abacus, level {args.level}: {args.problems} problems, {args.samples} samples each, seed {args.seed}\n")
    print("accuracy by samples".ljust(30) + "".join(f"{budget:>8}" for budget in budgets))
    for rule in RULES:
        print(rule.ljust(30) + "".join(f"{x:8.3f}" for x in right[rule].mean(axis=0)))

    draws, found = rng.integers(args.problems, size=(1000, args.problems)), {}
    for column in range(1, len(budgets)):
        votes = right["votes"][:, column].mean()
        print(f"\nsamples for what votes reach with {budgets[column]} ({votes:.3f})")
        for rule in RULES[1:]:
            resampled = [budgets[column] / needed(right[rule][rows].mean(axis=0), budgets, right["votes"][rows, column].mean()) for rows in draws]
            samples = needed(right[rule].mean(axis=0), budgets, votes)
            low, high = np.quantile(resampled, [0.025, 0.975])
            print(f"  {rule:28} {samples:6.1f}: {budgets[column] / samples:.2f} times fewer (95%: {low:.2f} to {high:.2f})")
            found[f"{rule} at {budgets[column]}"] = {"samples": samples, "ratio": float(budgets[column] / samples), "interval": [float(low), float(high)]}
    if args.out:
        figures = {"budgets": budgets.tolist(), "accuracy": {rule: right[rule].mean(axis=0).tolist() for rule in RULES}, "saved": found}
        args.out.write_text(json.dumps(vars(args) | figures, default=str, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
