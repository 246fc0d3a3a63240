"""Many problems in one compiled program against one problem at a time: `python benchmarks/problems.py [PROBLEMS] [PARTICLES] [ROUNDS]`.

Particles of Abacus on hard problems, without a reward, by `po.smc`; the two ways alternate, each compiled before it is timed. Pools have room for what texts
can have. "one at a time" calls one compiled program once a problem, as a loop over problems does; its rate is of `ALONE` problems.
"""

import os
import platform
import sys
import time
from importlib.metadata import version

import jax
import numpy as np

import posterity as po
from posterity.models.programs.tasks import task

ALONE = 4  # problems of each round that are run one at a time


def main(problems: int = 64, particles: int = 64, rounds: int = 3) -> None:
    lm, given = po.load("abacus"), task("abacus:hard", count=problems)
    prompts = lm.prompts(given.prompts(lm.tokenizer))
    longest = max(len(problem.question) for problem in given.problems)

    def tokens(key, lm, prompt):
        program = po.reason(lm, prompt, max_steps=given.steps, max_step_tokens=longest)
        return po.smc(key, program, n=particles, history=False).values.text.generated.sum()

    alone, together = jax.jit(tokens), jax.jit(jax.vmap(tokens, in_axes=(0, None, 0)))
    one = [jax.tree.map(lambda x, i=i: x[i], prompts) for i in range(problems)]
    jax.block_until_ready((alone(jax.random.key(0), lm, one[0]), together(jax.random.split(jax.random.key(0), problems), lm, prompts)))
    print(f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in ("posterity", "jax")))
    ratios = []
    for number in range(rounds):
        keys = jax.random.split(jax.random.key(1 + number), problems)
        start = time.perf_counter()
        written = int(together(keys, lm, prompts).sum())
        middle = time.perf_counter()
        few = [int(alone(keys[i], lm, one[i])) for i in range(ALONE)]
        end = time.perf_counter()
        many_rate, one_rate = problems / (middle - start), ALONE / (end - middle)
        ratios.append(many_rate / one_rate)
        print(
            f"{problems} problems of {particles} particles at once: {many_rate:.2f} problems/s, {written / (middle - start):,.0f} tokens/s | one at a time: "
            f"{one_rate:.2f} problems/s, {sum(few) / (end - middle):,.0f} tokens/s | {ratios[-1]:.2f} times as fast"
        )
    print(f"at once / one at a time: median {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {rounds} rounds)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
