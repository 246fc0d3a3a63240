"""Exact answers: a long hidden Markov model, a million paths, and the law of SMC against the same walked path by path (`python benchmarks/exact.py`)."""

import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import posterity as po
from posterity.inference.enumeration.outcomes import outcomes

REPEATS = 5


@po.program
def hidden(start, move, see, ys):
    x0 = po.sample("x0", dist.Categorical(start))

    def step(x, y):
        x = po.sample("x", dist.Categorical(move[x]))
        po.observe("y", dist.Categorical(see[x]), y)
        return x

    return po.scan(step, x0, ys)


@po.program
def bits(p):
    def step(path, t):
        return path.at[t].set(po.sample("bit", dist.Bernoulli(p)))

    return po.scan(step, jnp.zeros(20, int), jnp.arange(20))


def model(states: int, steps: int) -> po.Program:
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), states), rng.dirichlet(np.ones(10), states), rng.integers(0, 10, steps)
    return hidden(*map(jnp.array, tables))


def smc(key, program):
    return po.smc(key, program, n=2, threshold=1.0, resampling="multinomial")


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> str:
    return f"{np.median(times):8.3f} s ({min(times):.3f} to {max(times):.3f})"


def main() -> None:
    print(f"{os.cpu_count()} {platform.machine()} cores, {jax.default_backend()}, jax {jax.__version__}, {REPEATS} runs each")
    long, short, paths = model(50, 1_000), model(2, 1), bits(0.3)
    for name, run in {
        "exact: 50 states, 1,000 observations": lambda: po.exact(long),
        "exact: 2^20 = 1,048,576 paths": lambda: po.exact(paths),
        "law of SMC, 2 particles, 1 step": lambda: po.check.properly_weighted(smc, short),
    }.items():
        first = seconds(run, 1)[0]
        print(f"{name:40} {spread(seconds(run, REPEATS))}, {first:.2f} s the first time, with compilation")

    def walk():
        with jax.enable_x64():
            return list(outcomes(lambda: smc(jax.random.key(0), short)))

    walked = walk()
    at_once, one_by_one = [], []
    for _ in range(3):
        at_once += seconds(lambda: po.check.properly_weighted(smc, short), 1)
        one_by_one += seconds(walk, 1)
    ratios = np.divide(one_by_one, at_once)
    name = f"the same law walked, {len(walked)} paths"
    print(f"{name:40} {spread(one_by_one)}: {np.median(ratios):,.0f} times as long ({ratios.min():,.0f} to {ratios.max():,.0f})")


if __name__ == "__main__":
    main()
