"""Texts of a language model under one regular expression, here and by genlm-control, in one run (`python benchmarks/constraints.py`).

The model goes on from a prompt with a record in JSON, under the same constraint, by SMC with the same number of particles and the same weights
in float32. Ours: by masks alone, by masks and looking ahead, and token by token as a constraint too large to mask is asked (adaptive weighted
rejection); genlm-control: its adaptive weighted rejection sampler, and its product of model and automaton. Told are, over seeds, the wall time of a
call after a first one, the mean and spread of the log evidence, and how much of the weight is on texts that match.

Every system runs in a process of its own, and they take turns (`benchmarks/decode.py`, where the options are told too). genlm-control is found in the
environment of `--peers`; without it, ours run alone.
"""

import argparse
import importlib.util
import math
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = "Here is somebody who lives in our village, as JSON:\n"
PATTERN = r'\{"name": "[A-Z][a-z]{1,9}", "age": [1-9][0-9]?\}'
OURS = {"mask": "posterity, masks", "ahead": "posterity, looking ahead", "asked": "posterity, asked token by token"}
PEERS = {"rejection": "genlm-control, rejection", "product": "genlm-control, product"}


def valid(pattern: str, texts: list[bytes | None], weights: list[float]) -> float:
    """The share of the weight on texts that match as a whole; None is one that did not end."""
    total = math.fsum(weights)
    match = [text is not None and re.fullmatch(pattern, text.decode(errors="replace")) is not None for text in texts]
    return math.fsum(weight for weight, right in zip(weights, match) if right) / total if total else math.nan


def posterity(system: str, directory: str, pattern: str, prompt: str):
    """`po.constrained`, by SMC that resamples when half of the effective sample is gone."""
    import flax.struct
    import jax
    import numpy as np

    import posterity as po

    lm = po.load(f"hf:{directory}")
    automaton = po.potentials.over(po.potentials.regex(pattern), lm.tokenizer)

    @flax.struct.dataclass
    class Asked(po.potentials.Potential):
        """The automaton, of which one can only ask token by token."""

        automaton: po.potentials.TokenAutomaton

        def start(self):
            return self.automaton.start()

        def update(self, state, token):
            return self.automaton.update(state, token)

        def complete(self, state):
            return self.automaton.complete(state)

    def run(n: int, tokens: int, seed: int) -> dict:
        potential = {"mask": lambda: automaton, "ahead": lambda: automaton.within(tokens), "asked": lambda: Asked(automaton)}[system]()
        program = po.constrained(lm, prompt, potential, max_tokens=tokens, ask=1 if system == "asked" else None)
        posterior = po.smc(jax.random.key(seed), program, n=n, threshold=0.5, history=False)
        texts, spelled, ends = posterior.values, lm.tokenizer.token_bytes, lm.tokenizer.end_ids
        written = [
            row[begin:end].tolist() for row, begin, end in zip(np.asarray(texts.tokens), np.asarray(texts.prompt_length), np.asarray(texts.length), strict=True)
        ]
        weights = np.exp(np.asarray(posterior.log_weights, float) - max(0.0, float(np.max(posterior.log_weights)))).tolist()
        share = valid(pattern, [b"".join(spelled[token] for token in row if token not in ends) for row in written], weights)
        return {"tokens": sum(map(len, written)), "log_evidence": float(posterior.log_evidence), "valid": share}

    return run


def genlm_control(system: str, directory: str, pattern: str, prompt: str):
    """Its samplers, with the prompt's keys and values kept."""
    import asyncio

    import numpy as np
    import tokenizers
    import torch
    from genlm.control import AWRS, BoolFSA, PromptedLLM, direct_token_sampler

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    ids = tokenizers.Tokenizer.from_file(str(Path(directory) / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids
    lm = PromptedLLM.from_name(directory, backend="hf", hf_opts={"torch_dtype": torch.float32, "device_map": "cpu"})
    lm.prompt_ids = ids
    automaton = BoolFSA.from_regex(pattern).coerce(lm, f=b"".join)
    sampler = AWRS(lm, automaton) if system == "rejection" else direct_token_sampler(lm * automaton)

    def run(n: int, tokens: int, seed: int) -> dict:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - its only generator
        lm.model.clear_cache()
        lm.model.cache_kv(ids)
        lm.model.batch_size = n
        found = asyncio.run(sampler.smc(n_particles=n, ess_threshold=0.5, max_tokens=tokens))
        texts = [b"".join(map(bytes, row[:-1])) if row and not isinstance(row[-1], bytes) else None for row in map(list, found.contexts)]
        return {"tokens": sum(map(len, found.contexts)), "log_evidence": float(found.log_ml), "valid": valid(pattern, texts, list(found.normalized_weights))}

    return run


def work(name: str, *arguments: str) -> None:
    """One system in this process, which waits for its turns (peers have no posterity, and files here are called like other packages)."""
    specification = importlib.util.spec_from_file_location("peers_lm", HERE / "peers_lm.py")
    assert specification is not None
    assert specification.loader is not None
    peers_lm = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(peers_lm)
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE]
    peers_lm.serve((posterity if name in OURS else genlm_control)(name, *arguments))


def exported(spec: str, directory: str) -> None:
    """The model as a directory that both read, with one token that ends a text."""
    import posterity as po
    from posterity.models.lm import huggingface
    from posterity.models.lm.tokenizer import Tokenizer

    lm = po.load(spec).astype("float32")
    end = lm.tokenizer.end_ids[0]
    name = lm.tokenizer.backend.id_to_token(end)
    tokenizer = Tokenizer(lm.tokenizer.backend, size=lm.tokenizer.vocab_size, end_ids=(end,), eos_token=name)
    huggingface.save(directory, lm.decoder, tokenizer)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
        return
    from posterity.benchmarks.decode import SMOLLM2, Worker, versions
    from posterity.benchmarks.particles import table

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default=f"gguf:{SMOLLM2}", help="what `po.load` takes")
    arguments.add_argument("--n", type=int, default=16, help="particles")
    arguments.add_argument("--tokens", type=int, default=40, help="the most that are written")
    arguments.add_argument("--seeds", type=int, default=20)
    arguments.add_argument("--prompt", default=PROMPT)
    arguments.add_argument("--pattern", default=PATTERN, help="which both dialects understand; its texts must fit into the tokens")
    arguments.add_argument("--peers", default=sys.executable, help="the Python of the peer's environment")
    arguments.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="which systems")
    options = arguments.parse_args()
    known = versions(options.peers)
    there = [name for name in [*OURS, *(PEERS if "genlm-control" in known else ())] if options.only is None or name in options.only]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, genlm-control {known.get('genlm-control', 'is not there')}; {options.pattern}")
    with tempfile.TemporaryDirectory() as directory:
        exported(options.model, directory)
        command = lambda name: [sys.executable if name in OURS else options.peers, str(HERE / "constraints.py"), "--worker", name, directory]  # noqa: E731
        running = {name: Worker([*command(name), options.pattern, options.prompt]) for name in there}
        runs: dict[str, list[dict]] = {name: [] for name in there}
        for worker in running.values():
            worker.run(options.n, options.tokens, 2**31 - 1)  # compiles, or warms up
        for seed in range(options.seeds):
            for name, worker in running.items():
                runs[name].append(worker.run(options.n, options.tokens, seed))
            told = ", ".join(f"{name} {mine[-1]['wall']:.1f} s, {mine[-1]['log_evidence']:.2f}" for name, mine in runs.items())
            print(f"seed {seed}: {told}", flush=True)
        for worker in running.values():
            worker.end()
    rows = []
    for name, mine in runs.items():
        evidence = [run["log_evidence"] for run in mine]
        finite = [x for x in evidence if math.isfinite(x)]
        spread = f"{statistics.fmean(finite):.2f}", f"{statistics.stdev(finite):.2f}" if len(finite) > 1 else "-"
        mean = max(evidence) + math.log(statistics.fmean(math.exp(x - max(evidence)) for x in evidence)) if finite else -math.inf
        cells = [f"{statistics.median(run['wall'] for run in mine):.2f}", *spread, f"{mean:.2f}", f"{len(evidence) - len(finite)}"]
        weighed = [run["valid"] for run in mine if not math.isnan(run["valid"])]
        share = f"{statistics.fmean(weighed):.1%}" if weighed else "-"
        rows.append(["", {**OURS, **PEERS}[name], *cells, share, f"{statistics.median(run['others'] for run in mine):.2f}"])
    columns = ["", "system", "seconds", "mean log evidence", "its deviation", "log of mean evidence", "of zero", "valid", "others' cores"]
    table(f"{options.n} particles, at most {options.tokens} tokens, {options.seeds} seeds", columns, rows)


if __name__ == "__main__":
    main()
