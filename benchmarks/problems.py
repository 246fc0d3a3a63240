"""Many problems in one compiled program against one problem at a time: `python benchmarks/problems.py [PROBLEMS] [PARTICLES] [ROUNDS]`.

Particles of Abacus on hard problems, without a reward, by `po.smc`; the two ways alternate, each compiled before it is timed. Pools have room for a third
of what texts could have, and nothing is lost (that is checked). "one at a time" calls one compiled program once a problem, as a loop over problems does; its
rate is of `ALONE` problems. Times are of the clock and, as those of a busy machine say little, of the processor. Told, too, is how many tokens differ, which
are all that either way reads: of texts that are the same one is read.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

import posterity as po
from posterity.models.programs.tasks import task

ALONE = 8  # problems of each round that are run one at a time


def main(problems: int = 64, particles: int = 64, rounds: int = 3) -> None:
    lm, given = po.load("abacus"), task("abacus:hard", count=problems)
    prompts = lm.prompts(given.prompts(lm.tokenizer))
    longest = max(len(problem.question) for problem in given.problems)

    def texts(key, lm, prompt):
        program = po.reason(lm, prompt, max_steps=given.steps, max_step_tokens=longest, pool=particles * given.steps * longest // 3)
        posterior = po.smc(key, program, n=particles, history=False)
        text = posterior.values.text
        return text.tokens, text.length, text.prompt_length, posterior.invalid

    alone, together = jax.jit(texts), jax.jit(jax.vmap(texts, in_axes=(0, None, 0)))
    one = [jax.tree.map(lambda x, i=i: x[i], prompts) for i in range(problems)]
    jax.block_until_ready((alone(jax.random.key(0), lm, one[0]), together(jax.random.split(jax.random.key(0), problems), lm, prompts)))
    print(f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in ("posterity", "jax")))
    ratios = []
    for number in range(rounds):
        keys = jax.random.split(jax.random.key(1 + number), problems)
        found, wall, cpu = timed(lambda keys=keys: together(keys, lm, prompts))
        few, alone_wall, alone_cpu = timed(lambda keys=keys: [alone(keys[i], lm, one[i]) for i in range(ALONE)])
        written = [sum(int((length - start).sum()) for _, length, start, _ in each) for each in ([found], few)]
        assert not sum(int(invalid.sum()) for *_, invalid in [found, *few]), "the pool was too small"
        ratios.append((problems / wall * alone_wall / ALONE, problems / cpu * alone_cpu / ALONE))
        print(
            f"{problems} problems of {particles} particles at once: {problems / wall:.2f} problems/s, {written[0] / wall:,.0f} tokens/s, "
            f"{1000 * cpu / problems:.0f} ms of a processor | one at a time: {ALONE / alone_wall:.2f} problems/s, {written[1] / alone_wall:,.0f} tokens/s, "
            f"{1000 * alone_cpu / ALONE:.0f} ms | {ratios[-1][0]:.2f} times as fast, {ratios[-1][1]:.2f} by the processor"
        )
    print(f"tokens that differ: {sum(map(different, *map(np.asarray, found[:3]))):,} of {written[0]:,}")
    for name, each in zip(("clock", "processor"), zip(*ratios, strict=True), strict=True):
        print(f"at once / one at a time, by the {name}: median {np.median(each):.2f} ({min(each):.2f} to {max(each):.2f}, {rounds} rounds)")


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, and the seconds it took: of the clock, and of processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(run())
    return found, time.perf_counter() - wall, time.process_time() - cpu


def different(tokens: np.ndarray, length: np.ndarray, start: np.ndarray) -> int:
    """How many beginnings of texts there are, the prompt left out."""
    return len({tuple(row[first:end]) for row, first, last in zip(tokens.tolist(), start, length, strict=True) for end in range(first + 1, last + 1)})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
