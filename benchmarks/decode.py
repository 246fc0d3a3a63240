"""Texts by many particles of one language model, beside other libraries, in one run (`python benchmarks/decode.py`).

SmolLM2-135M goes on from a prompt of 49 tokens for 64 more: plainly, and by SMC under the constraint that no token has the letter "e" in
it, resampled at every step. Beside them, with the same weights, type of number and cores: `transformers` (plainly), genlm-control and
LLaMPPL (under the same constraint), and our SMC with a dense cache, in which every particle keeps its whole past (`benchmarks/dense.py`).

Every system runs in a process of its own, and they take turns, so that what else the machine does meets all of them; beside each time
stands how many cores others used meanwhile. Times are of whole calls, prompt included, compilation not. The peers are found in the
environment of `--peers` (`pip install "posterity[benchmarks-lm]"`, or `pip install torch transformers genlm-control llamppl`); those that are not
there are left out. genlm-control and LLaMPPL run in the first type only; `--slow-tokens` has them write less, to their favour, as at every
step they read again what they wrote. A case that has used up `--patience` seconds is not run again, and one that would take longer
than that is not begun.

The rates that bound all of them are measured in the same rounds: a step's matrix products alone at every number of particles, a large
matrix product, and `x + 1` in place. On an accelerator: `--large`, a Llama of a billion random parameters in bfloat16.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

import posterity as po
from posterity.benchmarks import peers_lm
from posterity.benchmarks.particles import inner, table
from posterity.benchmarks.texts import endless
from posterity.models.lm import huggingface

HERE = Path(__file__).resolve().parent
SMOLLM2 = HERE.parent / ".cache" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = {"sampling": "posterity, sampling", "SMC": "posterity, SMC", "dense": "posterity, SMC, dense cache"}
SLOW = ("genlm-control", "LLaMPPL")
RATES = {"GEMM": "a matrix product", "copy": "a copy"}


class Worker:
    """A process with one system in it, which waits while the others run."""

    def __init__(self, command: list[str]):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.ready = self._answer()

    def run(self, n: int, tokens: int, seed: int) -> dict:
        """One run; "others" is how many cores everything else on the machine used meanwhile."""
        before, began = busy(), time.perf_counter()
        print(json.dumps({"n": n, "tokens": tokens, "seed": seed}), file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer | {"others": max(0.0, busy() - before - answer["cpu"]) / (time.perf_counter() - began)}

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{' '.join(self.process.args)} ended: {self.errors.read()[-4000:]}")
        return json.loads(line)


def busy() -> float:
    """CPU seconds that the whole machine has been busy; NaN where it does not say."""
    try:
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    except OSError:
        return math.nan
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def workers(systems: list[str], directory: str, dtype: str, prompt: int, options: argparse.Namespace) -> dict[str, Worker]:
    found = {}
    for system in systems:
        peer = system in peers_lm.SYSTEMS
        script, python = ("peers_lm.py", options.peers) if peer else ("texts.py", sys.executable)
        found[system] = Worker([python, str(HERE / script), system, directory if peer else f"hf:{directory}", dtype, str(prompt), options.letter])
    return found


def measure(running: dict[str, Worker], sizes: list[int], options: argparse.Namespace) -> dict[str, dict[int, list[dict]]]:
    """Runs of every system at every size, in turns; those that would try the patience are left out."""
    runs: dict[str, dict[int, list[dict]]] = {system: {n: [] for n in sizes} for system in running}
    for seed in range(options.repeats):
        for n in sizes:
            for system, worker in running.items():
                mine, tokens = runs[system], options.slow_tokens if system in SLOW else options.tokens
                if not seed:
                    slower = [n / m * mine[m][0]["wall"] for m in sizes if m < n and mine[m]]
                    if (slower and slower[-1] > options.patience) or (n > sizes[0] and not slower):
                        continue
                    worker.run(n, tokens if system not in peers_lm.SYSTEMS else 2, -1 % 2**31)  # compiles, or warms up
                if seed and (not mine[n] or sum(run["wall"] for run in mine[n]) > options.patience):
                    continue
                mine[n].append(worker.run(n, tokens, seed))
    return runs


def rate(runs: list[dict]) -> float:
    """What is counted a second: the median."""
    return statistics.median(run["tokens"] / run["wall"] for run in runs) if runs else math.nan


def over(one: float, other: float) -> float:
    """How many times as fast; no number where the other wrote nothing, as a single particle does that draws a forbidden token."""
    return one / other if other else math.nan


def memory(directory: str, dtype: str, n: int, prompt: int, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Runs of SMC after a long prompt, with the one cache and with the other."""
    running = workers(["SMC", "dense"], directory, dtype, prompt, options)
    runs = measure(running, [n], options)
    for worker in running.values():
        worker.end()
    return {system: mine[n] for system, mine in runs.items()}


def work(config, prompt: int, tokens: int, n: int, width: int) -> tuple[float, float]:
    """Operations and bytes that a step of n texts takes at least, halfway through, with numbers of `width` bytes.

    Operations of products and attention; bytes of the weights, of the prompt's keys and values once, and of each text's own.
    """
    matrices = config.num_layers * (
        config.hidden_size * (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim + 3 * config.hidden_size * config.intermediate_size
    )
    weights = matrices + config.hidden_size * config.vocab_size
    past = prompt + tokens / 2
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * past
    kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return n * (2 * weights + attention), width * (weights + kept * (prompt + n * tokens / 2))


def show(dtype: str, runs: dict, config, prompt: int, tokens: int) -> None:
    """Tokens a second of every system at every number of particles, then what a step of ours makes of the machine."""
    rates = {system: rate([run for mine in runs[system].values() for run in mine]) for system in RATES if system in runs}
    systems = [system for system in runs if system not in (*RATES, "products")]
    rows = []
    for n in next(iter(runs.values())):
        for system in systems:
            mine = runs[system][n]
            if not mine:
                continue
            each, ours = [run["tokens"] / run["wall"] for run in mine], rate(runs["SMC"][n]) if "SMC" in runs else math.nan
            (low, high), others = inner(each), statistics.median(run["others"] for run in mine)
            share = over(rate(mine), rate(runs["products"][n])) if "products" in runs else math.nan
            cells = [f"{rate(mine):,.1f}", f"{low:,.1f}-{high:,.1f}", str(len(mine)), f"{over(ours, rate(mine)):.2f}", f"{share:.0%}", f"{others:.2f}"]
            rows.append([f"{n:,}", OURS.get(system, system), *cells])
        rows.append(None)
    columns = ["n", "system", "tokens/s", "inner range", "runs", "SMC / it", "of the products", "others' cores"]
    table(f"{dtype}: {prompt} + {tokens} tokens, medians", columns, rows)
    if not {"SMC", "products", *RATES} <= runs.keys():
        return
    rows = []
    for n, mine in runs["SMC"].items():
        if mine:
            operations, moved = (x * rate(mine) / n for x in work(config, prompt, tokens, n, 2 if dtype == "bfloat16" else 4))
            cells = [f"{operations / 1e9:,.0f}", f"{operations / rates['GEMM']:.0%}", f"{moved / 1e9:,.1f}", f"{moved / rates['copy']:.0%}"]
            rows.append([f"{n:,}", f"{rate(runs['products'][n]):,.0f}", *cells])
    title = f"{dtype}, SMC: a product of 2,048 x 2,048 matrices runs at {rates['GEMM'] / 1e9:,.0f} GFLOP/s, a copy at {rates['copy'] / 1e9:.1f} GB/s"
    table(title, ["n", "products alone, tokens/s", "GFLOP/s", "of the product", "GB/s", "of the copy"], rows)


def claims(found: dict[str, dict], held: dict[str, dict], n: int) -> list[tuple[str, float, float, bool]]:
    """What is claimed: name, found, wanted, and whether more is better."""
    listed = []
    for dtype, runs in found.items():
        ours = {system: rate(runs[system][n]) for system in runs if n in runs[system]}
        smc = ours.get("SMC", math.nan)
        if dtype == "float32":
            listed += [(f"SMC / {peer}, {dtype}", over(smc, ours.get(peer, math.nan)), 15.0, True) for peer in ("genlm-control", "LLaMPPL")]
        listed += [
            (f"SMC / transformers, {dtype}", over(smc, ours.get("transformers", math.nan)), 2.0, True),
            (f"SMC / products alone, {dtype}", over(smc, ours.get("products", math.nan)), 0.6, True),
            (f"sampling / SMC, {dtype}", over(ours.get("sampling", math.nan), smc), 1.15, False),
        ]
    if held:
        cache, dense = held["SMC"], held["dense"]
        listed += [
            ("cache / dense, bytes, long prompt", cache[-1]["cache"] / dense[-1]["cache"], 0.25, False),
            ("SMC / SMC with a dense cache, long prompt", over(rate(cache), rate(dense)), 1.0, True),
        ]
    return listed


def show_claims(listed: list[tuple[str, float, float, bool]], n: int) -> None:
    verdict = lambda x, wanted, more: "not measured" if math.isnan(x) else "holds" if (x >= wanted if more else x <= wanted) else "FAILS"  # noqa: E731
    rows = [["", name, f"{x:.2f}", f"{'at least' if more else 'at most'} {wanted:g}", verdict(x, wanted, more)] for name, x, wanted, more in listed]
    table(f"what is claimed, at {n} particles", ["", "what", "found", "wanted", ""], rows)


def plot(found: dict[str, dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(6.5 * len(found), 5.4), layout="constrained", squeeze=False)
    for place, (dtype, runs) in zip(axes[0], found.items()):
        for system in runs:
            rates = {n: rate(mine) for n, mine in runs[system].items() if mine}
            if system not in RATES:
                style = {"linestyle": ":", "color": "grey"} if system == "products" else {"marker": "o"}
                label = "the matrix products alone" if system == "products" else OURS.get(system, system)
                place.plot(list(rates), list(rates.values()), label=label, **style)
        place.set(xscale="log", yscale="log", xlabel="particles", ylabel="tokens a second", title=dtype)
        place.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def versions(python: str) -> dict[str, str]:
    """Of the peers in their environment; those that are missing are not named."""
    script = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    installed = json.loads(subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout)
    return {name: installed[name] for name in ("torch", *peers_lm.PACKAGES.values()) if name in installed}


def exported(spec: str, directory: str):
    """Writes the model, with no token that ends a text, as a directory that all systems read; its configuration."""
    from posterity.benchmarks import large

    lm = endless(large.random(large.TOY, "float32") if spec == "toy" else po.load(spec))
    huggingface.save(directory, lm.decoder, lm.tokenizer)
    return lm.config


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default=f"gguf:{SMOLLM2}", help="what `po.load` takes; by default the file that `pytest -m smollm2` fetches")
    arguments.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    arguments.add_argument("--n", type=int, nargs="+", default=[1, 8, 32, 64, 256], help="numbers of particles, rising")
    arguments.add_argument("--prompt", type=int, default=49, help="tokens")
    arguments.add_argument("--tokens", type=int, default=64, help="how many to write")
    arguments.add_argument("--slow-tokens", type=int, help="how many genlm-control and LLaMPPL write")
    arguments.add_argument("--letter", default="e", help="which no token may write")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--patience", type=float, default=600, help="seconds a case")
    arguments.add_argument("--peers", default=sys.executable, help="the Python of the peers' environment")
    arguments.add_argument("--only", nargs="+", choices=[*OURS, "products", *RATES, *peers_lm.SYSTEMS], help="which systems")
    arguments.add_argument("--claims", type=int, default=64, help="at how many particles they are held to their claims")
    arguments.add_argument("--long", type=int, nargs=2, default=[256, 512], metavar=("N", "PROMPT"), help="where memory is measured; 0 0 for nowhere")
    arguments.add_argument("--cores", type=int, help="how many all systems may use")
    arguments.add_argument("--quick", action="store_true", help="a random toy, few particles and tokens: whether everything runs")
    arguments.add_argument("--large", action="store_true", help="a random Llama of a billion parameters on an accelerator, in place of all this")
    arguments.add_argument("--folder", type=Path, help="where to write decode.json and decode.png")
    options = arguments.parse_args()
    if options.large:
        from posterity.benchmarks import large

        large.report(options)
        return
    if options.quick:
        small = {"model": "toy", "n": [1, 4], "prompt": 20, "tokens": 8, "repeats": 2, "claims": 4, "long": [8, 64]}
        vars(options).update(small)
    options.slow_tokens = options.slow_tokens or options.tokens
    if options.model == f"gguf:{SMOLLM2}" and not SMOLLM2.is_file():
        arguments.error(f"{SMOLLM2} is not there: `make test ARGS='-m smollm2'` fetches it, or name another --model")
    if options.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    known = versions(options.peers)
    there = [system for system in peers_lm.SYSTEMS if peers_lm.PACKAGES[system] in known]
    chosen = [system for system in [*OURS, "products", *RATES, *there] if options.only is None or system in options.only]
    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.processor() or platform.machine()}, {cores} cores, JAX {jax.__version__}, " + ", ".join(f"{k} {v}" for k, v in known.items())
    print(f"{machine}; load {os.getloadavg()[0]:.2f}")
    found, held = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        config = exported(options.model, directory)
        for dtype in options.dtype:
            # The slow ones once: they are claimed to be slower in one type only.
            running = workers([system for system in chosen if system not in SLOW or dtype == options.dtype[0]], directory, dtype, options.prompt, options)
            found[dtype] = measure(running, options.n, options)
            for worker in running.values():
                worker.end()
            if options.folder:  # before anything else can go wrong: these took long
                options.folder.mkdir(parents=True, exist_ok=True)
                (options.folder / "runs.json").write_text(json.dumps(found, indent=1))
            show(dtype, found[dtype], config, options.prompt, options.tokens)
        if options.long[0]:
            n, prompt = options.long
            held = memory(directory, options.dtype[0], n, prompt, options)
            cells = [
                [f"{n:,}", OURS[system], f"{rate(mine):,.1f}", *(f"{mine[-1][what] / 2**20:,.1f}" for what in ("cache", "peak"))]
                for system, mine in held.items()
            ]
            table(f"{options.dtype[0]}: {prompt} + {options.tokens} tokens", ["n", "system", "tokens/s", "cache, MiB", "of it ever in use"], cells)
    listed = claims(found, held, options.claims)
    show_claims(listed, options.claims)
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        everything = {"machine": machine, "options": {k: str(v) for k, v in vars(options).items()}, "runs": found, "memory": held, "claims": listed}
        (options.folder / "decode.json").write_text(json.dumps(everything, indent=1))
        plot(found, options.folder / "decode.png")


if __name__ == "__main__":
    main()
