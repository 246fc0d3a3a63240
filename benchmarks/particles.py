"""Particle filters beside their peers, in one run: an AR(1) process seen through Gaussian noise (`python benchmarks/particles.py`).

Every filter resamples systematically at every step (`pip install "posterity[benchmarks]"` brings the peers; those that cannot be
imported are left out). "no resampling" is the bare loop, a `lax.scan` that draws `jax.random.normal((n,))` and sums log weights: what
a filter costs that neither resamples nor does anything else. Medians without compilation, of CPU and of wall seconds; the errors
are the range from the second smallest to the second largest. All log evidences stand beside Kalman's. Resampling alone is timed
by `benchmarks/resampling.py`.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import posterity as po

DECAY, NOISE, SPREAD = 0.9, 1.0, 0.5  # x' = DECAY x + NOISE e, y = x + SPREAD e
Filter = Callable[[int], object]  # a seed -> log evidence


@po.program
def process(ys):
    x = po.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(DECAY * x, NOISE))
        po.observe("y", dist.Normal(x, SPREAD), y)
        return x

    return po.scan(step, x, ys)


def log_density(y, x):
    return -0.5 * ((y - x) / SPREAD) ** 2 - jnp.log(SPREAD * jnp.sqrt(2 * jnp.pi))


def ours(ys, n: int) -> Filter:
    model = process(ys)
    return lambda seed: po.smc(jax.random.key(seed), model, n=n, threshold=1.0, history=False).log_evidence


def ours_with_history(ys, n: int) -> Filter:
    model = process(ys)
    return lambda seed: po.smc(jax.random.key(seed), model, n=n, threshold=1.0).log_evidence


def no_resampling(ys, n: int) -> Filter:
    @jax.jit
    def run(key, ys):
        def step(state, inputs):
            x, log_weights = state
            key, y = inputs
            x = DECAY * x + NOISE * jax.random.normal(key, (n,))
            return (x, log_weights + log_density(y, x)), None

        start, keys = jax.random.normal(key, (n,)), jax.random.split(key, len(ys))
        (_, log_weights), _ = jax.lax.scan(step, (start, jnp.zeros(n)), (keys, ys))
        return jax.scipy.special.logsumexp(log_weights) - jnp.log(n)

    return lambda seed: run(jax.random.key(seed), ys)


def in_blackjax(ys, n: int) -> Filter:
    import blackjax.smc.base as smc
    from blackjax.smc.resampling import systematic

    update = jax.vmap(lambda key, x: DECAY * x + NOISE * jax.random.normal(key))

    @jax.jit
    def run(key, ys):
        def step(state, inputs):
            key, y = inputs
            state, info = smc.step(key, state, lambda keys, x, _: (update(keys, x), None), lambda x: log_density(y, x), systematic)
            return state, info.log_likelihood_increment

        first, rest = jax.random.split(key)
        start = smc.init(jax.random.normal(first, (n,)), ())
        return jnp.sum(jax.lax.scan(step, start, (jax.random.split(rest, len(ys)), ys))[1])

    return lambda seed: run(jax.random.key(seed), ys)


def in_cuthbert(ys, n: int) -> Filter:
    import cuthbert
    from cuthbert.smc.particle_filter import build_filter
    from cuthbertlib.resampling import systematic

    built = build_filter(
        jax.random.normal,
        lambda key, x, y: DECAY * x + NOISE * jax.random.normal(key),
        lambda before, x, y: log_density(y, x),
        n,
        systematic.resampling,
    )

    @jax.jit
    def run(key, ys):
        first, rest = jax.random.split(key)
        return cuthbert.filter(built, ys, built.init_prepare(key=first), key=rest).log_normalizing_constant[-1]

    return lambda seed: run(jax.random.key(seed), ys)


def in_particles(ys, n: int) -> Filter:
    import particles
    from particles import distributions as laws
    from particles import state_space_models as ssm

    class Process(ssm.StateSpaceModel):
        def PX0(self):  # noqa: N802 - its name. It weighs its first state: so that is the state after one step
            return laws.Normal(scale=np.sqrt(DECAY**2 + NOISE**2))

        def PX(self, t, xp):  # noqa: N802
            return laws.Normal(loc=DECAY * xp, scale=NOISE)

        def PY(self, t, xp, x):  # noqa: N802
            return laws.Normal(loc=x, scale=SPREAD)

    bootstrap = ssm.Bootstrap(ssm=Process(), data=np.asarray(ys, float))

    def run(seed: int) -> object:
        np.random.seed(seed)  # noqa: NPY002 - its only generator
        algorithm = particles.SMC(fk=bootstrap, N=n, resampling="systematic", ESSrmin=1.0)
        algorithm.run()
        return algorithm.logLt

    return run


FILTERS: dict[str, tuple[str | None, Callable[..., Filter]]] = {
    "no resampling": (None, no_resampling),
    "posterity": (None, ours),
    "posterity, history": (None, ours_with_history),
    "blackjax": ("blackjax", in_blackjax),
    "cuthbert": ("cuthbert", in_cuthbert),
    "particles": ("particles", in_particles),
}


def kalman(ys) -> float:
    """The exact log evidence."""
    mean, variance, total = 0.0, 1.0, 0.0
    for y in np.asarray(ys, float):
        mean, variance = DECAY * mean, DECAY**2 * variance + NOISE**2
        seen = variance + SPREAD**2
        total -= 0.5 * ((y - mean) ** 2 / seen + np.log(2 * np.pi * seen))
        mean, variance = mean + variance / seen * (y - mean), variance * SPREAD**2 / seen
    return total


def measure(run: Filter, repeats: int) -> dict:
    start, busy = time.perf_counter(), time.process_time()
    jax.block_until_ready(run(0))
    figures: dict = {"first_wall": time.perf_counter() - start, "first_cpu": time.process_time() - busy, "wall": [], "cpu": [], "log_evidence": []}
    for seed in range(1, repeats + 1):
        start, busy = time.perf_counter(), time.process_time()
        log_evidence = jax.block_until_ready(run(seed))
        figures["wall"].append(time.perf_counter() - start)
        figures["cpu"].append(time.process_time() - busy)
        figures["log_evidence"].append(float(log_evidence))  # pyright: ignore[reportArgumentType] - a number of some library
    return figures


def inner(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return (ordered[1], ordered[-2]) if len(ordered) > 3 else (ordered[0], ordered[-1])


def report(rows: list[dict], ns: list[int], exact: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"seconds, medians (inner range); exact log evidence {exact:.2f}")
    for column in ("n", "filter", "CPU", "wall", "CPU / ours", "CPU / no resampling", "first call, CPU", "log evidence"):
        table.add_column(column, justify="left" if column == "filter" else "right")
    for n in ns:
        here = {row["filter"]: row for row in rows if row["n"] == n}
        cpu = {name: float(np.median(row["cpu"])) for name, row in here.items()}
        for name, row in here.items():
            low, high = inner(row["cpu"])
            evidence = f"{np.mean(row['log_evidence']):.2f} ± {np.std(row['log_evidence']):.2f}"
            ratios = [f"{cpu[name] / cpu[other]:.2f}" if other in cpu else "" for other in ("posterity", "no resampling")]
            times = [f"{cpu[name]:.4f} ({low:.4f}-{high:.4f})", f"{np.median(row['wall']):.4f}"]
            table.add_row(f"{n:,}", name, *times, *ratios, f"{row['first_cpu']:.2f}", evidence)
        table.add_section()
    Console(width=160).print(table)


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(row["filter"] for row in rows):
        mine = [row for row in rows if row["filter"] == name]
        medians = np.array([np.median(row["cpu"]) for row in mine])
        ranges = np.abs(np.array([inner(row["cpu"]) for row in mine]).T - medians)
        axes.errorbar([row["n"] for row in mine], medians, ranges, label=name, marker="o", capsize=3, linestyle="--" if name == "no resampling" else "-")
    axes.set(xscale="log", yscale="log", xlabel="particles", ylabel="CPU seconds", title=f"AR(1), {rows[0]['steps']} steps, resampling at every step")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, nargs="+", default=[10**3, 10**4, 10**5], help="numbers of particles")
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--only", nargs="+", choices=list(FILTERS), default=list(FILTERS), help="which filters")
    arguments.add_argument("--folder", type=Path, help="where to write particles.json and particles.png")
    options = arguments.parse_args()
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]  # there this file is called like a peer
    ys = jnp.asarray(simulate(options.steps), jnp.float32)
    chosen = {name: build for name, (library, build) in FILTERS.items() if name in options.only and (library is None or importlib.util.find_spec(library))}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, JAX {jax.__version__} on {jax.devices()[0].device_kind}"
    print(f"{machine}; {options.steps} steps, {options.repeats} runs of each")
    rows = []
    for n in options.n:
        for name, build in chosen.items():
            rows.append({"filter": name, "n": n, "steps": options.steps, **measure(build(ys, n), options.repeats)})
            jax.clear_caches()
    report(rows, options.n, kalman(ys))
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "particles.json").write_text(json.dumps({"machine": machine, "exact": kalman(ys), "rows": rows}, indent=1))
        plot(rows, options.folder / "particles.png")


def simulate(steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x, ys = rng.normal(), []
    for _ in range(steps):
        x = DECAY * x + NOISE * rng.normal()
        ys.append(x + SPREAD * rng.normal())
    return np.array(ys)


if __name__ == "__main__":
    main()
