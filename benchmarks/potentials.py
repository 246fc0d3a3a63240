"""Constraints over a large vocabulary: lifting an automaton, looking its masks up, a step with and without, and what looking ahead saves.

`python benchmarks/potentials.py [model]`, where the model is a name for `posterity.load` (`gguf:PATH`); abacus by default. Ways that
are compared alternate, and medians are told, with the machine's load.
"""

import os
import platform
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import posterity as po
from posterity.models.potentials import tokens
from posterity.models.programs.generate import generate

PARTICLES, STEPS, REPEATS, RUNS = 64, 16, 9, 200
DIGITS = "[0-9]{50}"  # 51 states


def seconds(function, *args):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def alternating(ways, repeats):
    """Median seconds of each way, run in turns after one run each."""
    for way in ways.values():
        way()
    taken = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    return {name: float(np.median(times)) for name, times in taken.items()}


def lifting(tokenizer):
    for pattern in (DIGITS, r"(?:[a-z]+ ){25}end"):
        automaton = po.potentials.regex(pattern)
        tokens.trie.cache_clear()
        cold = seconds(lambda automaton=automaton: tokens.lifted(automaton, tokenizer))
        warm = seconds(lambda automaton=automaton: tokens.lifted(automaton, tokenizer))
        with tempfile.TemporaryDirectory() as folder:
            os.environ["POSTERITY_CACHE"] = folder
            tokens.over(automaton, tokenizer)
            kept = seconds(lambda automaton=automaton: tokens.over(automaton, tokenizer))
        print(f"{pattern}: {automaton.states} states, {tokenizer.vocab_size:,} tokens: {cold:.2f} s, again {warm:.2f} s, from disk {kept:.2f} s")


def masks(lm):
    potential = tokens.over(po.potentials.regex(r"(?:[0-9]+,)*[0-9]+"), lm.tokenizer).within(STEPS)
    logits = jax.random.normal(jax.random.key(0), (PARTICLES, lm.tokenizer.vocab_size))
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (PARTICLES, *x.shape)), potential.start())
    plain = jax.jit(lambda logits: jax.nn.logsumexp(logits, axis=-1))
    masked = jax.jit(lambda potential, state, logits: jax.nn.logsumexp(logits + jax.vmap(lambda s: potential.gains(s, (0,)))(state), axis=-1))
    taken = alternating({"a sum over the vocabulary": lambda: plain(logits), "the same under the mask": lambda: masked(potential, state, logits)}, 51)
    steps = {
        "free": generate(lm, "1", max_tokens=STEPS, temperature=0.999),
        "constrained": po.constrained(lm, "1", potential, max_tokens=STEPS, temperature=0.999),
    }

    def run(program):
        posterior = po.smc(jax.random.key(0), program, n=PARTICLES)
        return posterior.log_weights

    taken |= {f"a step, {name}": t / STEPS for name, t in alternating({k: lambda p=p: run(p) for k, p in steps.items()}, 3).items()}
    for name, t in taken.items():
        print(f"{name}, {PARTICLES} particles: {1e3 * t:.2f} ms")
    difference = taken["the same under the mask"] - taken["a sum over the vocabulary"]
    print(f"looking masks up takes {1e3 * difference:.2f} ms, {100 * difference / taken['a step, free']:.1f} % of a free step")


def ahead():
    """The evidence's variance for a rare word at the end: drawn by the law, by the mask, and looking ahead."""
    lm = po.tabular.ngram(["abcab", "bca", "cabb", "abab"], order=2)
    automaton = ~po.potentials.length("characters", most=5) & po.potentials.regex("[abc]*cbb")
    lifted = tokens.over(automaton, lm.tokenizer)
    unigram = np.exp(np.asarray(lm.model().reader.log_probs)).mean(axis=0)
    ways = {"mask": lifted, "can be finished": lifted.within(8), "mass, uniform": lifted.within(8, "uniform"), "mass, average law": lifted.within(8, unigram)}
    exact = po.exact(po.constrained(lm, "a", lifted, max_tokens=8)).log_evidence
    for name, potential in ways.items():
        program = po.constrained(lm, "a", potential, max_tokens=8)
        run = jax.jit(jax.vmap(lambda key, program=program: po.smc(key, program, n=PARTICLES).log_evidence))
        ratio = np.exp(np.asarray(run(jax.random.split(jax.random.key(1), RUNS))) - exact)
        print(f"{name}: evidence / exact {ratio.mean():.3f}, variance {ratio.var():.2e}")


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, JAX {jax.__version__}")
    lm = po.load(sys.argv[1] if len(sys.argv) > 1 else "abacus")
    lifting(lm.tokenizer)
    masks(lm)
    ahead()


if __name__ == "__main__":
    main()
