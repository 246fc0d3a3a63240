"""From a command's options to a posterior: load, compile, run, each with a sign of life on the standard error."""

import contextlib
import importlib.util
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple, TypeVar

import jax
import typer
from jax import Array
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from posterity.inference.posterior import Posterior
from posterity.inference.smc.importance import importance
from posterity.inference.smc.smc import smc
from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.load import load
from posterity.ppl.program import Program

METHODS = {"smc": smc, "importance": importance}
CACHE_BYTES = 256 * 2**20

Result = TypeVar("Result")


class Decoding(NamedTuple):
    """A posterior over texts and what it took."""

    posterior: Posterior
    compile_seconds: float
    seconds: float  # running the compiled code

    @property
    def tokens(self) -> int:
        """Tokens generated, in the texts of all particles at the end."""
        return int(self.posterior.values.generated.sum())

    @property
    def tokens_per_second(self) -> float:
        """Of the run alone, without compiling."""
        return self.tokens / self.seconds


class Executable(NamedTuple):
    """An inference compiled for programs of one kind and size."""

    run: Callable[[Array, Program], Posterior]
    seconds: float  # it took to compile


@contextlib.contextmanager
def blaming(argument: str) -> Iterator[None]:
    """What goes wrong inside is the fault of an argument: a ValueError or a file's error becomes its refusal."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
        for owner in ("load: ", "solve: ", "generate: "):
            message = message.removeprefix(owner)
        raise typer.BadParameter(message, param_hint=argument) from error


def load_model(name: str, *, quiet: bool = False, argument: str = "'--model'") -> LanguageModel:
    """The model that `argument` names; raises `typer.BadParameter` when it cannot be used."""
    keep_compiled()
    with blaming(argument):
        lm: Any = watch(f"loading {name}", partial(load, name), quiet=quiet)
        if not isinstance(lm, LanguageModel):
            raise ValueError(f"{name} is a {type(lm).__name__}, no language model in this process")
        return lm


def compiled(*programs: Program, method: str, n: int, quiet: bool = False) -> list[Executable]:
    """The inference compiled for n particles of each program, all at once; each runs any program of the same structure and shapes."""
    function = jax.jit(partial(METHODS[method], n=n, history=False))

    def work() -> list[Callable]:
        lowered = [function.lower(jax.random.key(0), program) for program in programs]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda program: program.compile(), lowered))

    start = time.perf_counter()
    runs = watch("compiling", work, quiet=quiet)
    return [Executable(run, time.perf_counter() - start) for run in runs]


def decode(program: Program, executable: Executable, *, seed: int, saying: str, quiet: bool = False) -> Decoding:
    """Runs compiled inference.

    Raises:
      typer.TyperException: when memory does not suffice, or the model's numbers are not finite.
    """
    start = time.perf_counter()
    try:
        posterior = watch(saying, lambda: jax.block_until_ready(executable.run(jax.random.key(seed), program)), quiet=quiet)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise typer.TyperException("there is not enough memory for so many particles and tokens; try a smaller --n") from error
    seconds = time.perf_counter() - start
    if int(posterior.invalid):
        raise typer.TyperException("the model's probabilities are not finite numbers; its file may be damaged")
    return Decoding(posterior, executable.seconds, seconds)


def watch(saying: str, work: Callable[[], Result], *, quiet: bool = False) -> Result:
    """The result of `work`, done in a thread, so that this one answers an interruption at once, and shows that something goes on."""
    outcome: list[Callable[[], Any]] = []

    def run():
        try:
            result = work()
            outcome.append(lambda: result)
        except BaseException as error:
            outcome.append(partial(_reraise, error))

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("[dim]{task.description}"), TimeElapsedColumn()
    thread = threading.Thread(target=run, daemon=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        bar.add_task(saying, total=None)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
    return outcome[0]()


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache directory, where that can be written and JAX was not told otherwise."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "posterity" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if importlib.util.find_spec("filelock"):  # JAX needs it to delete what was not used for long
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # a full disk costs time, not a warning


def survived(posterior: Posterior) -> bool:
    """Whether any particle did, so that there is a posterior to ask."""
    return math.isfinite(posterior.log_evidence)


def versions() -> dict[str, str]:
    """What a result depends on."""
    return {name: version(name) for name in ("posterity", "jax", "numpyro")} | {"python": python_version()}


def _reraise(error: BaseException) -> None:
    raise error
