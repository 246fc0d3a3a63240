"""Other libraries that write texts with a language model, as `benchmarks/decode.py` starts them: one a process, in an environment of their own.

`python benchmarks/peers_lm.py SYSTEM MODEL DTYPE PROMPT LETTER` loads a Hugging Face directory, then answers a line of JSON with a line of JSON:
{"n": particles, "tokens": how many to write, "seed": number} with {"wall": seconds, "cpu": seconds, "tokens": written in all}.

All write the same number of tokens after the same prompt at temperature 1. What needs a constraint refuses every token in whose text the letter
is, after it was drawn, and resamples at every step.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

STORY = """The lighthouse keeper had not slept for two days. The storm had taken the lamp, the boat and most of the roof, and
what was left of the stairs hung over the water like the ribs of a whale. He sat down at the desk, took the last dry sheet of paper,
and began to write what he had seen that night, in case nobody would find him. """


def prompt_ids(backend: tokenizers.Tokenizer, length: int) -> list[int]:
    """The first tokens of a story that is told again and again."""
    alphabet = {token for token in backend.get_vocab(with_added_tokens=False) if len(token) == 1}
    text = STORY if "a" in alphabet else "1+2*3="  # a model of arithmetic knows no stories
    ids = backend.encode(text, add_special_tokens=False).ids
    return (ids * (length // len(ids) + 1))[:length]


def tokenizer(directory: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))


def serve(run: Callable[[int, int, int], Any]) -> None:
    """Answers requests from standard input until it ends, with `run(n, tokens, seed)`: how many tokens were written, or a dictionary with that in it."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up between the answers
    print(json.dumps({"ready": True, "resident": resident()}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start, used = time.perf_counter(), time.process_time()
        answer = run(request["n"], request["tokens"], request["seed"])
        times = {"wall": time.perf_counter() - start, "cpu": time.process_time() - used, "resident": resident()}
        print(json.dumps(times | (answer if isinstance(answer, dict) else {"tokens": answer})), file=out, flush=True)


def resident() -> int:
    """The most memory that this process has had so far, bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def transformers(directory: str, dtype: str, prompt: int, letter: str):
    """`generate`: plain sampling, without constraint."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    start = torch.tensor([prompt_ids(tokenizer(directory), prompt)])

    @torch.no_grad()
    def run(n: int, tokens: int, seed: int) -> int:
        torch.manual_seed(seed)
        ids = start.repeat(n, 1)
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, prompt:].numel()

    return run


def genlm_control(directory: str, dtype: str, prompt: int, letter: str):
    """Its direct sampler with a critic, the prompt's keys and values kept."""
    import numpy as np
    import torch
    from genlm.control import Potential, PromptedLLM, direct_token_sampler

    ids = prompt_ids(tokenizer(directory), prompt)
    lm = PromptedLLM.from_name(directory, backend="hf", hf_opts={"torch_dtype": getattr(torch, dtype), "device_map": "cpu"})
    lm.prompt_ids = ids
    lm.model.cache_kv(ids)

    class Without(Potential):
        async def prefix(self, context):
            return -np.inf if context and letter.encode() in bytes(context[-1]) else 0.0

        async def complete(self, context):
            return -np.inf if any(letter.encode() in bytes(token) for token in context if isinstance(token, bytes)) else 0.0

    critic, sampler = Without(lm.vocab), direct_token_sampler(lm)

    def run(n: int, tokens: int, seed: int) -> int:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - its only generator
        lm.model.clear_cache()
        lm.model.cache_kv(ids)
        lm.model.batch_size = n
        found = asyncio.run(sampler.smc(n_particles=n, ess_threshold=1.0, max_tokens=tokens, critic=critic))
        return sum(len(context) for context in found.contexts)

    return run


def llamppl(directory: str, dtype: str, prompt: int, letter: str):
    """A model that draws a token and conditions on it."""
    import numpy as np
    import torch
    from llamppl import CachedCausalLM, LMContext, Model, smc_standard

    ids = prompt_ids(tokenizer(directory), prompt)
    lm = CachedCausalLM.from_pretrained(directory, backend="hf", hf_opts={"torch_dtype": getattr(torch, dtype), "device_map": "cpu"})
    forbidden = {i for i, token in enumerate(lm.byte_vocab) if letter.encode() in bytes(getattr(token, "byte_string", token))}
    text = lm.tokenizer.decode(ids)

    class Without(Model):
        def __init__(self, tokens):
            super().__init__()
            self.context, self.left = LMContext(lm, text), tokens

        async def step(self):
            token = await self.sample(self.context.next_token())
            self.left -= 1
            self.condition(token.token_id not in forbidden)
            if self.left == 0:
                self.finish()

    def run(n: int, tokens: int, seed: int) -> int:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - its only generator
        lm.clear_cache()
        lm.cache_kv(lm.tokenizer.encode(text))
        lm.model.batch_size = n
        found = asyncio.run(smc_standard(Without(tokens), n, ess_threshold=1.0))
        return sum(particle.context.token_count for particle in found)

    return run


SYSTEMS = {"transformers": transformers, "genlm-control": genlm_control, "LLaMPPL": llamppl}
PACKAGES = {"transformers": "transformers", "genlm-control": "genlm-control", "LLaMPPL": "llamppl"}


def main() -> None:
    import torch

    system, directory, dtype, prompt, letter = sys.argv[1:]
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    serve(SYSTEMS[system](directory, dtype, int(prompt), letter))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]  # files there are called like other packages
    main()
