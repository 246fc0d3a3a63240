"""The command run in this process, on small random models."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import pytest
from flax import nnx

from posterity.cli import running
from posterity.cli.app import main
from posterity.models.lm import huggingface
from posterity.models.lm.config import DecoderConfig
from posterity.models.lm.decoder import Decoder
from posterity.models.weights.train_abacus import tokenizer

EXECUTABLES: dict[tuple, running.Executable] = {}
compile_programs = running.compiled


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """What one test compiled serves the others: a command compiles afresh, and these tests are many commands."""

    def compiled(*programs, method, n, quiet=False):
        kinds = [(method, n, jax.tree.structure(program), *map(jax.typeof, jax.tree.leaves(program))) for program in programs]
        if missing := {kind: program for kind, program in zip(kinds, programs, strict=True) if kind not in EXECUTABLES}:
            EXECUTABLES.update(zip(missing, compile_programs(*missing.values(), method=method, n=n, quiet=quiet), strict=True))
        return [EXECUTABLES[kind] for kind in kinds]

    monkeypatch.setattr(running, "compiled", compiled)


@pytest.fixture
def posterity(capsys, monkeypatch) -> Callable[..., Result]:
    """`posterity("solve", ...)`: exit code, standard output, standard error, of a terminal 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> str:
    """A model of arithmetic's characters that knows nothing, as `--model` takes it."""
    config = DecoderConfig(
        vocab_size=tokenizer().vocab_size, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, context_length=96
    )
    folder = tmp_path_factory.mktemp("models") / "random"
    huggingface.save(folder, Decoder(config, rngs=nnx.Rngs(0)), tokenizer())
    return f"hf:{folder}"
