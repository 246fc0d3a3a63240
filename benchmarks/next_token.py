"""Drawing next tokens, ways to do it side by side (`python benchmarks/next_token.py`).

By inverting the distribution function against Gumbel noise, and truncated laws by bisection against sorting and `lax.top_k`.
"""

import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from posterity.models.lm.next_token import NextToken, next_token

PARTICLES, VOCABULARY, REPEATS = 64, 49_152, 15


def by_top_k(key, row):
    return NextToken(jnp.where(row >= jax.lax.top_k(row, 50)[0][-1], row, -jnp.inf)).sample(key)


def by_sorting(key, row):
    probabilities = jax.nn.softmax(row)
    falling = jnp.sort(probabilities, descending=True)
    return NextToken(jnp.where(probabilities >= falling[jnp.argmax(jnp.cumsum(falling) >= 0.9)], row, -jnp.inf)).sample(key)


def main() -> None:
    logits = 2.5 * jax.random.normal(jax.random.key(0), (PARTICLES, VOCABULARY))
    keys = jax.random.split(jax.random.key(1), PARTICLES)
    ways = {
        "inverse": lambda key, row: NextToken(row).sample(key),
        "Gumbel": jax.random.categorical,
        "top_k=50": lambda key, row: next_token(row, top_k=50).sample(key),
        "by lax.top_k": by_top_k,
        "top_p=0.9": lambda key, row: next_token(row, top_p=0.9).sample(key),
        "by sorting": by_sorting,
        "min_p=0.05": lambda key, row: next_token(row, min_p=0.05).sample(key),
    }
    draws = {name: jax.jit(jax.vmap(way)) for name, way in ways.items()}
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
        print(f"{name:12} {1e3 * np.median(times):7.1f} ms ({1e3 * min(times):.1f} to {1e3 * max(times):.1f})")
    for slow, fast in (("Gumbel", "inverse"), ("by lax.top_k", "top_k=50"), ("by sorting", "top_p=0.9")):
        ratios = np.divide(seconds[slow], seconds[fast])
        print(f"{slow} / {fast}: {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")


if __name__ == "__main__":
    main()
