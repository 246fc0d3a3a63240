"""The command `posterity`: what it can be told, and how it answers when it is told wrongly.

What a command needs is imported when it runs: `--help` and mistyped options answer at once, without JAX.
"""

import io
import math
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Literal

import typer

USAGE = 2
INTERRUPTED = 130  # as shells have it: 128 + SIGINT

app = typer.Typer(
    help="Probabilistic programming for inference as search: posteriors over what language models write.",
    epilog="Compiled programs are kept in ~/.cache/posterity; JAX_ENABLE_COMPILATION_CACHE=false keeps none.",
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _whole(given: str | int, least: int = 1, most: float = math.inf) -> int:
    text = str(given)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise typer.BadParameter(f"{text!r} is not a whole number from {least} {'on' if math.isinf(most) else f'to {most}'}.")
    return int(text)


def _seed(given: str | int) -> int:
    return _whole(given, 0, 2**32 - 1)


def _port(given: str | int) -> int:
    return _whole(given, 0, 65_535)


def _positive(given: str | float) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{str(given)!r} is not a number above 0.")
    return value


def _share(given: str | float) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{str(given)!r} is not a number from 0 to 1.")
    return value


def _share_above_zero(given: str | float) -> float:
    if (value := _share(given)) == 0:
        raise typer.BadParameter(f"{str(given)!r} keeps nothing; give a number above 0, up to 1.")
    return value


def _not_empty(value: str | None) -> str | None:
    if value == "":
        raise typer.BadParameter("it is empty; leave it out to stop where the model ends its texts.")
    return value


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"posterity {version('posterity')}")
        raise typer.Exit


Particles = Annotated[int, typer.Option("--n", parser=_whole, metavar="N", help="Number of particles: texts sampled at once.")]
Seed = Annotated[int, typer.Option(parser=_seed, metavar="N", help="The same seed gives the same result.")]
Model = Annotated[str, typer.Option(metavar="NAME", help="abacus (embedded), gguf:PATH, or hf:DIRECTORY.")]
Temperature = Annotated[float, typer.Option(parser=_positive, metavar="T", help="Divides the model's logits; above 0.")]
TopK = Annotated[int | None, typer.Option(parser=_whole, metavar="N", help="Keep only the N most probable tokens.")]
TopP = Annotated[float | None, typer.Option(parser=_share_above_zero, metavar="P", help="Keep only the most probable tokens, of probability P together.")]
MinP = Annotated[float | None, typer.Option(parser=_share, metavar="P", help="Keep only tokens at least P times as probable as the most probable one.")]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object and nothing else.")]


@app.callback(invoke_without_command=True)
def posterity(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, metavar="", help="Show the version and exit.")] = False,
) -> None:
    """Without a command, shows what there is."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo() -> None:
    """Three sums of rising difficulty: what a small model says, and what is left of it when every line must be right."""
    from posterity.cli.demo import demo

    demo()


@app.command()
def solve(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="An expression that ends in =, such as 48*(7+5)-19= (in quotes).")],
    n: Particles = 64,
    seed: Seed = 0,
    potential: Annotated[Literal["lines", "none"], typer.Option(help="lines: every line must be right. none: the model alone.")] = "lines",
    method: Annotated[Literal["smc", "importance"], typer.Option(help="smc resamples between lines; importance never does.")] = "smc",
    model: Model = "abacus",
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    as_json: AsJson = False,
) -> None:
    """The posterior over a language model's solutions of an arithmetic expression.

    The model rewrites the expression line by line. With `--potential lines` every line is checked, and what remains is its
    posterior given that all are right; the evidence is the probability that it writes such a solution by itself.

    The JSON object holds `answers`, a list, best first, of `{answer, probability, error}`; `log_evidence` in nats; `ess`;
    `tokens_per_second`; `seed`; `versions`. When no particle survives, `answers` is empty and `log_evidence` null.
    """
    from posterity.cli.solve import solve

    law = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    solve(prompt, n=n, seed=seed, potential=potential, method=method, model=model, law=law, as_json=as_json)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on with.")],
    model: Model = "abacus",
    max_tokens: Annotated[int, typer.Option(parser=_whole, metavar="N", help="Most tokens a text may get.")] = 64,
    n: Particles = 8,
    stop: Annotated[str | None, typer.Option(callback=_not_empty, metavar="TEXT", help="End a text where this would be written.")] = None,
    chat: Annotated[bool, typer.Option("--chat", metavar="", help="Put the prompt to the model as a user's message, by its chat template.")] = False,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Texts sampled from any language model.

    The JSON object holds `texts`, a list of `{text, tokens, ended}` (`ended` is false where the limit cut it off);
    `tokens_per_second`; `seed`; `versions`.
    """
    from posterity.cli.generate import generate

    law = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    generate(prompt, model=model, max_tokens=max_tokens, n=n, stop=stop, chat=chat, law=law, seed=seed, as_json=as_json)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="abacus (embedded), gguf:PATH, or hf:DIRECTORY.")] = "abacus",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen: by default for this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(parser=_port, metavar="N", help="0 for any that is free.")] = 8000,
    key: Annotated[str | None, typer.Option(envvar="POSTERITY_KEY", metavar="KEY", help="Answer those alone who have this key.")] = None,
) -> None:
    """Serves a language model as OpenAI's API has it: /v1/completions, with seeds, log-probabilities, stop strings and streaming.

    `po.load("openai:http://127.0.0.1:8000/v1")` and other clients can use it. It runs until it is interrupted.
    """
    from posterity.cli.serve import serve

    serve(model=model, host=host, port=port, key=key)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (by default those of the process) and returns its exit code.

    0 when done; 2 for a bad argument and 1 for any other failure, each explained on the standard error; 130 when
    interrupted; 1, silently, when the reader of the standard output went away.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character gets a question mark, not a traceback
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="posterity", standalone_mode=False) or 0
        sys.stdout.flush()
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "posterity")
        message = error.format_message().replace("Value error, ", "")  # how typer passes on what its own parsers refuse
        print(f"Error: {message}" + (f"\nTry '{command} --help'." if error.exit_code == USAGE else ""), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # compiled code may still be running in its thread, which nothing else can stop
    return code
