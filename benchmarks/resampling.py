"""Resampling n particles, once: every scheme, beside BlackJAX's, cuthbert's and particles', in one run (`python benchmarks/resampling.py`).

Compared are those peers that can be imported (`pip install "posterity[benchmarks]"`). All start from the same log weights,
but for `particles`, which starts from normalised weights. Times are medians of 15 (7 from a million on), without compilation.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from posterity.inference.smc.resampling import CONDITIONAL, SCHEMES

Run = Callable[[], object]


def ours(name: str, log_weights: np.ndarray) -> Run:
    scheme = {**SCHEMES, **{f"conditional {name}": law for name, law in CONDITIONAL.items()}}[name]
    draw = jax.jit(lambda key, log_weights: scheme(log_weights).sample(key))
    return functools.partial(draw, jax.random.key(0), jnp.asarray(log_weights))


def in_blackjax(name: str, log_weights: np.ndarray) -> Run:
    import blackjax.smc.resampling as schemes

    draw = jax.jit(lambda key, log_weights: getattr(schemes, name)(key, jax.nn.softmax(log_weights), log_weights.shape[0]))
    return functools.partial(draw, jax.random.key(0), jnp.asarray(log_weights))


def in_cuthbert(name: str, log_weights: np.ndarray) -> Run:
    from cuthbertlib import resampling

    module, each = getattr(resampling, name), jnp.arange(len(log_weights))
    draw = jax.jit(lambda key, log_weights: module.resampling(key, log_weights, each, log_weights.shape[0])[0])
    return functools.partial(draw, jax.random.key(0), jnp.asarray(log_weights))


def in_particles(name: str, log_weights: np.ndarray) -> Run:
    from particles import resampling

    weights = np.exp(log_weights.astype(float))
    return functools.partial(resampling.resampling, name, weights / weights.sum())


CASES: dict[str, tuple[Callable[[str, np.ndarray], Run], list[str]]] = {
    "posterity": (ours, [*SCHEMES, *(f"conditional {name}" for name in CONDITIONAL)]),
    "blackjax": (in_blackjax, ["systematic", "stratified", "multinomial", "residual"]),
    "cuthbertlib": (in_cuthbert, ["systematic", "multinomial", "killing"]),
    "particles": (in_particles, ["systematic", "stratified", "multinomial", "residual", "ssp", "killing"]),
}


def seconds(run: Run, repeats: int) -> tuple[float, float]:
    """The medians of wall and of CPU time."""
    jax.block_until_ready(run())
    wall, cpu = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return float(np.median(wall)), float(np.median(cpu))


def furthest(run: Run, log_weights: np.ndarray) -> float:
    """The largest distance of a number of copies from n W_i."""
    weights = np.exp(log_weights.astype(float))
    copies = np.bincount(np.asarray(run()), minlength=len(weights))
    return float(np.abs(copies - len(weights) * weights / weights.sum()).max())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6, 10**7])
    arguments.add_argument("--only", nargs="+", default=list(CASES), help="whose schemes")
    arguments.add_argument("--folder", type=pathlib.Path, help="where to write resampling.json")
    options = arguments.parse_args()
    beside = pathlib.Path(__file__).parent.resolve()
    sys.path[:] = [path for path in sys.path if pathlib.Path(path).resolve() != beside]  # where a file is called as a peer is
    libraries = [name for name in options.only if name == "posterity" or importlib.util.find_spec(name)]
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, JAX {jax.__version__} on {jax.devices()[0].device_kind}"
    print(f"{machine}, {', '.join(libraries)}")
    print(f"{'milliseconds, wall / CPU':<36}" + "".join(f"{f'n = {n:,}':>20}" for n in options.sizes) + "   |copies - n W|, largest")
    figures = []
    rng = np.random.default_rng(0)
    data = {n: np.log(rng.exponential(size=n)).astype(np.float32) for n in options.sizes}
    for library in libraries:
        build, names = CASES[library]
        for name in names:
            runs = {n: build(name, data[n]) for n in options.sizes}
            times = {n: seconds(run, 7 if n >= 10**6 else 15) for n, run in runs.items()}
            largest = max(options.sizes)
            far = furthest(runs[largest], data[largest])
            cells = "".join(f"{1e3 * wall:>12.3f} /{1e3 * cpu:>6.2f}" for wall, cpu in times.values())
            print(f"{f'{library} {name}':<36}{cells}   {far:.4f}", flush=True)
            figures += [{"library": library, "scheme": name, "n": n, "wall": wall, "cpu": cpu} for n, (wall, cpu) in times.items()]
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "resampling.json").write_text(json.dumps({"machine": machine, "rows": figures}, indent=1))


if __name__ == "__main__":
    main()
