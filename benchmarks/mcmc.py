"""NUTS beside its peers, in one run: eight schools (non-centred) and a logistic regression of 100 coefficients (`python benchmarks/mcmc.py`).

Every run is a warm-up and draws of some chains, one chain after the other, in one compiled function of a key (`pip install "posterity[benchmarks]"` brings
BlackJAX; what cannot be imported is left out). Shown are

- the smallest effective sample size of any coordinate, by one estimator for all (`numpyro.diagnostics`), per CPU second, warm-up included: medians of
  `--repeats` runs with other keys. Contenders take turns, in an order drawn anew each time, so that what else the machine does meets all of them;
- what that is made of: effective draws per gradient, which is the adaptation's doing, and gradients per CPU second, which is the loop's;
- seconds until a second run starts, with other data of the same shape and another key: the wall time of a run of one move, called again.

The contenders: `po.mcmc`; NumPyro's `MCMC(NUTS(model))`, whole inside `jax.jit` so that it does not trace anew (as it is called by hand it does: that is in the
table of starts); BlackJAX's window adaptation and `nuts`, on a log density written by hand, and on the one that NumPyro makes of the model.
"""

import argparse
import functools
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
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import initialize_model

import posterity as po

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


@po.program
def eight_schools(effects, errors):
    mu = po.sample("mu", dist.Normal(0.0, 5.0))
    tau = po.sample("tau", dist.HalfCauchy(5.0))
    apart = po.sample("apart", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    po.observe("effects", dist.Normal(mu + tau * apart, errors).to_event(1), effects)
    return mu, tau, apart


@po.program
def logistic(X, y):
    w = po.sample("w", dist.Normal(jnp.zeros(X.shape[1]), 1.0).to_event(1))
    po.observe("y", dist.Bernoulli(logits=X @ w).to_event(1), y)
    return w


def schools_by_hand(z, effects, errors):
    """The log density up to a constant, tau by its logarithm."""
    mu, log_tau, apart = z["mu"], z["tau"], z["apart"]
    tau = jnp.exp(log_tau)
    prior = -0.5 * (mu / 5.0) ** 2 - jnp.log1p((tau / 5.0) ** 2) + log_tau - 0.5 * jnp.sum(apart**2)
    return prior - 0.5 * jnp.sum(((effects - mu - tau * apart) / errors) ** 2)


def logistic_by_hand(z, X, y):
    eta = X @ z["w"]
    return -0.5 * jnp.sum(z["w"] ** 2) + jnp.sum(y * eta - jax.nn.softplus(eta))


class Problem(NamedTuple):
    """A program with data, and other data of the same shapes."""

    program: Any
    data: tuple
    other: tuple
    by_hand: Callable
    first: dict[str, Any]  # shapes of the choices


def regression(seed: int, rows: int = 1_000, columns: int = 100) -> tuple:
    rng = np.random.default_rng(seed)
    X, w = rng.normal(size=(rows, columns)), 0.3 * rng.normal(size=columns)
    return np.asarray(X, np.float32), np.asarray(rng.random(rows) < 1 / (1 + np.exp(-X @ w)), np.float32)


# NumPy's arrays: JAX takes as many cores as there are when its first array is made, which must not be before `--cores` is read.
PROBLEMS = {
    "eight schools": Problem(
        eight_schools, (EFFECTS, ERRORS), (EFFECTS[::-1].copy(), ERRORS), schools_by_hand, {"mu": np.zeros(()), "tau": np.zeros(()), "apart": np.zeros(8)}
    ),
    "logistic, 100": Problem(logistic, regression(0), regression(1), logistic_by_hand, {"w": np.zeros(100)}),
}


class Size(NamedTuple):
    """Of a run."""

    chains: int
    draws: int
    warmup: int


Run = Callable[[int, tuple], tuple[dict[str, Any], Any]]  # a seed and data -> draws by name [chains, draws, ...], and gradients


def ours(problem: Problem, size: Size) -> Run:
    def run(seed, data):
        chain = po.mcmc(jax.random.key(seed), problem.program(*data), **size._asdict())
        draws = {name: x.reshape(size.chains, size.draws, *x.shape[1:]) for name, x in chain.choices.items()}
        return draws, jnp.sum(chain.statistics["steps"])

    return run


def in_numpyro(problem: Problem, size: Size) -> Run:
    @jax.jit
    def run(key, data):
        mcmc = MCMC(
            NUTS(problem.program.function),
            num_warmup=size.warmup,
            num_samples=size.draws,
            num_chains=size.chains,
            chain_method=functools.partial(_one_by_one),
            progress_bar=False,
        )
        mcmc.run(key, *data, extra_fields=("num_steps",))
        return mcmc.get_samples(group_by_chain=True), jnp.sum(mcmc.get_extra_fields()["num_steps"])

    return lambda seed, data: run(jax.random.key(seed), data)


def _one_by_one(function: Callable) -> Callable:
    return lambda given: jax.lax.map(function, given)


def in_blackjax(problem: Problem, size: Size, *, by_hand: bool) -> Run:
    import blackjax

    def density(data) -> Callable:
        if by_hand:
            return lambda z: problem.by_hand(z, *data)
        model = initialize_model(jax.random.key(0), problem.program.function, model_args=data)
        return lambda z: -model.potential_fn(z)

    @jax.jit
    def run(key, data):
        log_density = density(data)

        def chain(key):
            start_key, warm_key, draw_key = jax.random.split(key, 3)
            leaves, tree = jax.tree.flatten(problem.first)
            keys = jax.random.split(start_key, len(leaves))
            start = jax.tree.unflatten(tree, [jax.random.uniform(k, x.shape, minval=-2.0, maxval=2.0) for k, x in zip(keys, leaves, strict=True)])
            (state, parameters), _ = blackjax.window_adaptation(blackjax.nuts, log_density).run(warm_key, start, size.warmup)
            kernel = blackjax.nuts(log_density, **parameters).step

            def once(state, key):
                state, info = kernel(key, state)
                return state, (state.position, info.num_integration_steps)

            return jax.lax.scan(once, state, jax.random.split(draw_key, size.draws))[1]

        draws, steps = jax.lax.map(chain, jax.random.split(key, size.chains))
        return draws, jnp.sum(steps)

    return lambda seed, data: run(jax.random.key(seed), data)


CONTENDERS: dict[str, tuple[str | None, Callable[[Problem, Size], Run]]] = {
    "posterity": (None, ours),
    "numpyro": (None, in_numpyro),
    "blackjax, by hand": ("blackjax", functools.partial(in_blackjax, by_hand=True)),
    "blackjax, NumPyro's density": ("blackjax", functools.partial(in_blackjax, by_hand=False)),
}


def smallest(draws: dict[str, Any]) -> float:
    """The smallest effective sample size of any coordinate."""
    return min(float(np.min(effective_sample_size(np.asarray(x, np.float64)))) for x in draws.values())


def timed(run: Run, seed: int, data: tuple) -> dict[str, float]:
    start, busy = time.perf_counter(), time.process_time()
    draws, gradients = jax.block_until_ready(run(seed, data))
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"wall": wall, "cpu": cpu, "ess": smallest(draws), "gradients": float(gradients)}


def measure(problem: Problem, size: Size, names: list[str], repeats: int) -> dict[str, dict]:
    runs = {name: CONTENDERS[name][1](problem, size) for name in names}
    first = {name: timed(run, 0, problem.data) for name, run in runs.items()}
    order = np.random.default_rng(0)
    rounds = [{name: timed(runs[name], seed, problem.data) for name in order.permutation(names)} for seed in range(1, repeats + 1)]
    return {name: {"first": first[name], **{what: [row[name][what] for row in rounds] for what in first[name]}} for name in names}


def starts(problem: Problem, repeats: int) -> dict[str, list[float]]:
    """Wall seconds of one move, called again with other data and keys: `po.mcmc`, and NumPyro's `MCMC.run` as it is called by hand."""
    mcmc = MCMC(NUTS(problem.program.function), num_warmup=1, num_samples=1, progress_bar=False, jit_model_args=True)

    def by_hand(seed, data):
        mcmc.run(jax.random.key(seed), *data)
        return mcmc.get_samples()

    calls = {
        "posterity": lambda seed, data: po.mcmc(jax.random.key(seed), problem.program(*data), chains=1, draws=1, warmup=1).values,
        "numpyro, MCMC.run": by_hand,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for seed in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(seed, problem.other if seed else problem.data))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(found: dict[str, dict[str, dict]], begun: dict[str, dict[str, list[float]]], size: Size) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{size.chains} chains of {size.draws} draws after {size.warmup}: medians (range)", title_justify="left")
    for column in ("", "", "min ESS / CPU s", "of ours", "min ESS", "ESS / gradient", "gradients / CPU s", "CPU s", "wall s"):
        table.add_column(column, justify="left" if not column else "right")
    for problem, rows in found.items():
        for name, row in rows.items():
            rate, per, speed = (np.array(row[a]) / np.array(row[b]) for a, b in (("ess", "cpu"), ("ess", "gradients"), ("gradients", "cpu")))
            mine = np.array(rows["posterity"]["ess"]) / np.array(rows["posterity"]["cpu"]) if "posterity" in rows else rate
            cells = [
                f"{np.median(rate):,.0f} ({rate.min():,.0f}-{rate.max():,.0f})",
                f"{np.median(rate) / np.median(mine):.2f}",
                f"{np.median(row['ess']):,.0f}",
            ]
            cells += [f"{np.median(per):.4f}", f"{np.median(speed):,.0f}", f"{np.median(row['cpu']):.3f}", f"{np.median(row['wall']):.3f}"]
            table.add_row(problem, name, *cells)
        table.add_section()
    Console(width=170).print(table)
    table = Table(title="seconds until a run starts: the first, and the median of those after it with other data and keys", title_justify="left")
    for column in ("", "", "first", "again"):
        table.add_column(column, justify="left" if not column else "right")
    for problem, calls in begun.items():
        for name, seconds in calls.items():
            table.add_row(problem, name, f"{seconds[0]:.2f}", f"{np.median(seconds[1:]):.4f}")
    Console(width=170).print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--chains", type=int, default=2)
    arguments.add_argument("--draws", type=int, default=2_000)
    arguments.add_argument("--warmup", type=int, default=1_000)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="which contenders")
    arguments.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    arguments.add_argument("--folder", type=Path, help="where to write mcmc.json")
    arguments.add_argument("--cores", type=int, help="use so many processor cores only (Linux); with one, CPU seconds are work and not threads waiting")
    options = arguments.parse_args()
    if options.cores is not None:
        allowed = sorted(os.sched_getaffinity(0))
        if not 1 <= options.cores <= len(allowed):
            arguments.error(f"--cores must be from 1 to {len(allowed)}, got {options.cores}")
        os.sched_setaffinity(0, allowed[: options.cores])
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    jax.config.update("jax_enable_compilation_cache", False)
    names = [name for name in options.only if CONTENDERS[name][0] is None or importlib.util.find_spec(CONTENDERS[name][0])]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.processor() or platform.machine()}, cores: {cores}, JAX {jax.__version__} on {jax.devices()[0].device_kind}"
    size = Size(options.chains, options.draws, options.warmup)
    print(f"{machine}; {options.repeats} runs of each")
    problems = {
        name: PROBLEMS[name]._replace(**jax.tree.map(jnp.asarray, {"data": PROBLEMS[name].data, "other": PROBLEMS[name].other})) for name in options.problems
    }
    found = {name: measure(problem, size, names, options.repeats) for name, problem in problems.items()}
    begun = {name: starts(problem, 3) for name, problem in problems.items()}
    report(found, begun, size)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "mcmc.json").write_text(json.dumps({"machine": machine, "size": size._asdict(), "runs": found, "starts": begun}, indent=1))


if __name__ == "__main__":
    main()
