"""Drawing next tokens: by inverting the distribution function against Gumbel noise, side by side (`python benchmarks/next_token.py`)."""

import os
import platform
import time

import jax
import numpy as np

from posterity.models.lm.next_token import NextToken

PARTICLES, VOCABULARY, REPEATS = 64, 49_152, 15


def main() -> None:
    logits = jax.random.normal(jax.random.key(0), (PARTICLES, VOCABULARY))
    keys = jax.random.split(jax.random.key(1), PARTICLES)
    draws = {
        "inverse": jax.jit(jax.vmap(lambda key, row: NextToken(row).sample(key))),
        "Gumbel": jax.jit(jax.vmap(jax.random.categorical)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for draw in draws.values():
        jax.block_until_ready(draw(keys, logits))
    for _ in range(REPEATS):
        for name, draw in draws.items():
            start = time.perf_counter()
            jax.block_until_ready(draw(keys, logits))
            seconds[name].append(time.perf_counter() - start)
    print(f"{os.cpu_count()} {platform.machine()} cores, {jax.default_backend()}, jax {jax.__version__}: {PARTICLES} draws over {VOCABULARY:,} tokens")
    for name, times in seconds.items():
        print(f"{name:8} {1e3 * np.median(times):6.1f} ms ({1e3 * min(times):.1f} to {1e3 * max(times):.1f})")
    ratios = np.divide(seconds["Gumbel"], seconds["inverse"])
    print(f"ratio    {np.median(ratios):6.2f} ({ratios.min():.2f} to {ratios.max():.2f})")


if __name__ == "__main__":
    main()
