"""Particle filters beside their peers, in one run: an AR(1) process seen through Gaussian noise (`python benchmarks/particles.py`).

Every filter resamples systematically at every step (`pip install "posterity[benchmarks]"` brings the peers; those that cannot be
imported are left out, and on an accelerator those that know only CPUs). "no resampling" is the bare loop, a `lax.scan` that draws
`jax.random.normal((n,))` and sums log weights: what a filter costs that neither resamples nor does anything else. Shown are

- CPU and wall seconds, medians of `--repeats` runs without compilation, and the range from the second smallest to the second largest. Filters take
  turns, so that what else the machine does meets all of them. All log evidences stand beside Kalman's;
- what comes before: seconds of tracing, lowering and compiling, each from empty caches by JAX's ahead-of-time stages, and of a first call;
- bandwidth: a step must at least read the state and the weight of every particle and write them again, 16 bytes here. Ancestors, random bits and
  cumulative sums are an implementation's own affair, and not counted. That is divided by the wall time, and compared with what `x + 1`, in place
  on 512 MiB, reads and writes in a second;
- resampling alone, a million particles, systematically (all schemes and sizes: `benchmarks/resampling.py`);
- cost against the number of particles and of steps, with the slopes on logarithmic axes: 1 is linear.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import posterity as po
from posterity.benchmarks import resampling

DECAY, NOISE, SPREAD = 0.9, 1.0, 0.5  # x' = DECAY x + NOISE e, y = x + SPREAD e
MOVED = 16  # bytes: a float32 state and a float32 weight, read and written


STAGES = ("tracing", "lowering", "compiling")


class Filter(NamedTuple):
    """A filter with its data."""

    run: Callable[[int], object]  # a seed -> log evidence
    traced: Callable | None = None  # (key, data) -> log evidence, where JAX compiles it
    data: Any = None


def in_jax(function: Callable, data: Any) -> Filter:
    return Filter(lambda seed: function(jax.random.key(seed), data), function, data)


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


def ours(ys, n: int, history: bool = False) -> Filter:
    smc = po.smc  # imported with its first use
    return in_jax(lambda key, model: smc(key, model, n=n, threshold=1.0, history=history).log_evidence, process(ys))


def ours_with_history(ys, n: int) -> Filter:
    return ours(ys, n, history=True)


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

    return in_jax(run, ys)


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

    return in_jax(run, ys)


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

    return in_jax(run, ys)


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

    return Filter(run)


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


def compilation(filter: Filter) -> dict[str, float]:
    """Wall seconds of each stage, from empty caches, and CPU seconds of all together."""
    if filter.traced is None:
        return {}
    jax.clear_caches()
    function, busy, marks = jax.jit(filter.traced), time.process_time(), [time.perf_counter()]
    traced = function.trace(jax.random.key(0), filter.data)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    lowered.compile()
    marks.append(time.perf_counter())
    return dict(zip(STAGES, np.diff(marks).tolist())) | {"cpu": time.process_time() - busy}


def timed(filter: Filter, seed: int) -> dict[str, float]:
    start, busy = time.perf_counter(), time.process_time()
    log_evidence = jax.block_until_ready(filter.run(seed))
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"wall": wall, "cpu": cpu, "log_evidence": float(log_evidence)}  # pyright: ignore[reportArgumentType] - a number of some library


def measure(filters: dict[str, Filter], repeats: int) -> dict[str, dict]:
    """The figures of every filter: stages of compilation, the first call, and the runs after it."""
    stages = {name: compilation(filter) for name, filter in filters.items()}
    jax.clear_caches()
    first = {name: timed(filter, 0) for name, filter in filters.items()}
    runs = [{name: timed(filter, seed) for name, filter in filters.items()} for seed in range(1, repeats + 1)]
    return {
        name: {**{what: [run[name][what] for run in runs] for what in ("wall", "cpu", "log_evidence")}, "first": first[name], "stages": stages[name]}
        for name in filters
    }


def inner(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return (ordered[1], ordered[-2]) if len(ordered) > 3 else (ordered[0], ordered[-1])


def copy_rate(size: int = 2**27, repeats: int = 7) -> float:
    """Bytes read and written in a second by adding 1, in place, to so many float32 numbers; of several tries the median."""
    add, x = jax.jit(lambda x: x + 1, donate_argnums=0), jnp.zeros(size, jnp.float32)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        x = jax.block_until_ready(add(x))
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / float(np.median(times[1:]))


def resampled(n: int) -> list[dict]:
    """Resampling once, systematically, by every library there is: medians in seconds."""
    log_weights = np.log(np.random.default_rng(0).exponential(size=n)).astype(np.float32)
    rows = []
    for library, (build, _) in resampling.CASES.items():
        if available(None if library == "posterity" else library):
            wall, cpu = resampling.seconds(build("systematic", log_weights), 15)
            rows.append({"library": library, "n": n, "wall": wall, "cpu": cpu})
    return rows


def scaled(sizes: list[tuple[int, int]], repeats: int) -> list[dict]:
    """Our filter at these numbers of particles and steps."""
    rows = []
    for n, steps in sizes:
        filter = ours(simulate(steps), n)
        runs = [timed(filter, seed) for seed in range(repeats + 1)][1:]
        rows.append({"n": n, "steps": steps} | {clock: [run[clock] for run in runs] for clock in ("wall", "cpu")})
    return rows


def slope(rows: list[dict], what: str, clock: str) -> float:
    """Of the logarithm of the cost against that of `what`, by least squares."""
    return float(np.polyfit(np.log([row[what] for row in rows]), np.log([np.median(row[clock]) for row in rows]), 1)[0])


def available(library: str | None) -> bool:
    """Whether a peer can be compared with on this machine's device."""
    return library is None or (importlib.util.find_spec(library) is not None and (library != "particles" or on_cpu()))


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def table(title: str, columns: list[str], rows: list[list[str] | None]) -> None:
    """Prints it; None is a line between sections."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 1 else "right")
    for row in rows:
        shown.add_section() if row is None else shown.add_row(*row)
    Console(width=170).print(shown)


def ratio(figures: dict, name: str, other: str, clock: str) -> str:
    return f"{np.median(figures[name][clock]) / np.median(figures[other][clock]):.2f}" if other in figures else ""


def report(found: dict[int, dict], steps: int, exact: float, rate: float) -> None:
    runs, before = [], []
    for n, figures in found.items():
        for name, row in figures.items():
            (low, high), wall = inner(row["cpu"]), float(np.median(row["wall"]))
            moved = MOVED * n * steps / wall
            cells = [f"{np.median(row['cpu']):.4f} ({low:.4f}-{high:.4f})", f"{wall:.4f}"]
            ratios = [ratio(figures, name, other, clock) for other in ("posterity", "no resampling") for clock in ("cpu", "wall")]
            evidence = f"{np.mean(row['log_evidence']):.2f} ± {np.std(row['log_evidence']):.2f}"
            runs.append([f"{n:,}", name, *cells, *ratios, f"{moved / 1e9:.2f} ({moved / rate:.1%})", evidence])
            stages = [f"{row['stages'][stage]:.2f}" if row["stages"] else "" for stage in STAGES]
            together = [f"{sum(row['stages'][stage] for stage in STAGES):.2f}", f"{row['stages']['cpu']:.2f}"] if row["stages"] else ["", ""]
            before.append([f"{n:,}", name, *stages, *together, f"{row['first']['wall']:.2f}", f"{row['first']['cpu']:.2f}"])
        runs.append(None)
        before.append(None)
    title = f"seconds, medians (inner range); exact log evidence {exact:.2f}; a copy moves {rate / 1e9:.1f} GB/s"
    ratios = ["CPU / ours", "wall / ours", "CPU / bare", "wall / bare"]
    table(title, ["n", "filter", "CPU", "wall", *ratios, "GB/s (of copy)", "log evidence"], runs)
    columns = ["together", "together, CPU", "first call", "first call, CPU"]
    table("before the first step, seconds (wall, where not said)", ["n", "filter", *STAGES, *columns], before)


def report_resampling(rows: list[dict]) -> None:
    if rows:
        ours = rows[0]
        cells = [
            [
                f"{row['n']:,}",
                row["library"],
                f"{1e3 * row['cpu']:.2f}",
                f"{1e3 * row['wall']:.2f}",
                f"{row['cpu'] / ours['cpu']:.2f}",
                f"{row['wall'] / ours['wall']:.2f}",
            ]
            for row in rows
        ]
        table("systematic resampling alone, milliseconds, medians", ["n", "library", "CPU", "wall", "CPU / ours", "wall / ours"], cells)


def plot(found: dict[int, dict], steps: int, growth: dict[str, list[dict]], clock: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, *others) = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    unit = "CPU seconds" if clock == "cpu" else "wall seconds"
    for name in next(iter(found.values())):
        mine = {n: figures[name][clock] for n, figures in found.items()}
        medians = np.array([np.median(times) for times in mine.values()])
        ranges = np.abs(np.array([inner(times) for times in mine.values()]).T - medians)
        left.errorbar(list(mine), medians, ranges, label=name, marker="o", capsize=3, linestyle="--" if name == "no resampling" else "-")
    left.set(xscale="log", yscale="log", xlabel="particles", ylabel=unit, title=f"AR(1), {steps} steps, resampling at every step")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    for axes, (what, rows) in zip(others, growth.items()):
        x, medians = np.array([row[what] for row in rows]), np.array([np.median(row[clock]) for row in rows])
        axes.plot(x, medians, "o-", color="C1", label=f"posterity, fitted slope {slope(rows, what, clock):.2f}")
        axes.plot(x, medians[-1] * x / x[-1], ":", color="grey", label="linear, through the last point")
        fixed = f"{rows[0]['steps']:,} steps" if what == "n" else f"{rows[0]['n']:,} particles"
        axes.set(xscale="log", yscale="log", xlabel="particles" if what == "n" else "steps", ylabel=unit, title=f"cost at {fixed}")
        axes.set_xticks(x, [f"{at:,}" for at in x])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--n", type=int, nargs="+", default=[10**3, 10**4, 10**5], help="numbers of particles")
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--only", nargs="+", choices=list(FILTERS), default=list(FILTERS), help="which filters")
    arguments.add_argument("--resample", type=int, default=10**6, help="how many particles to resample alone; 0 for none")
    arguments.add_argument(
        "--growth-n", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="numbers of particles, at the fewest of --growth-steps"
    )
    arguments.add_argument("--growth-steps", type=int, nargs="+", default=[100, 200, 500, 1_000, 2_000], help="numbers of steps, of 10^4 particles")
    arguments.add_argument("--folder", type=Path, help="where to write particles.json and particles.png")
    arguments.add_argument("--cores", type=int, help="use so many processor cores only (Linux); with one, CPU seconds are work and not threads waiting")
    options = arguments.parse_args()
    if options.cores is not None:
        allowed = sorted(os.sched_getaffinity(0))
        if not 1 <= options.cores <= len(allowed):
            arguments.error(f"--cores must be from 1 to {len(allowed)}, got {options.cores}")
        os.sched_setaffinity(0, allowed[: options.cores])
    if min(len(options.growth_n), len(options.growth_steps)) < 2:
        arguments.error("--growth-n and --growth-steps: a slope needs two numbers at least")
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]  # there this file is called like a peer
    jax.config.update("jax_enable_compilation_cache", False)
    chosen = {name: build for name, (library, build) in FILTERS.items() if name in options.only and available(library)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.processor() or platform.machine()}, cores: {cores}, JAX {jax.__version__} on {jax.devices()[0].device_kind}"
    print(f"{machine}; {options.steps} steps, {options.repeats} runs of each")

    ys, clock, rate = simulate(options.steps), "cpu" if on_cpu() else "wall", copy_rate()
    exact = kalman(ys)
    found = {n: measure({name: build(ys, n) for name, build in chosen.items()}, options.repeats) for n in options.n}
    report(found, options.steps, exact, rate)
    alone = resampled(options.resample) if options.resample else []
    report_resampling(alone)
    growth = {
        "n": scaled([(n, min(options.growth_steps)) for n in options.growth_n], options.repeats),
        "steps": scaled([(10**4, steps) for steps in options.growth_steps], options.repeats),
    }
    slopes = {what: {"all": slope(rows, what, clock), "last two": slope(rows[-2:], what, clock)} for what, rows in growth.items()}
    for what, fitted in slopes.items():
        first, last = growth[what][0][what], growth[what][-1][what]
        print(
            f"{clock} seconds grow as {what}^{fitted['all']:.2f} from {what} = {first:,} to {last:,}, between the last two as {what}^{fitted['last two']:.2f}"
        )
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        rows = [{"filter": name, "n": n, "steps": options.steps, **row} for n, figures in found.items() for name, row in figures.items()]
        everything = {"machine": machine, "exact": exact, "copy_rate": rate, "rows": rows, "resampling": alone, "growth": growth, "slopes": slopes}
        (options.folder / "particles.json").write_text(json.dumps(everything, indent=1))
        plot(found, options.steps, growth, clock, options.folder / "particles.png")


def simulate(steps: int) -> jax.Array:
    rng = np.random.default_rng(0)
    x, ys = rng.normal(), []
    for _ in range(steps):
        x = DECAY * x + NOISE * rng.normal()
        ys.append(x + SPREAD * rng.normal())
    return jnp.asarray(ys, jnp.float32)


if __name__ == "__main__":
    main()
