"""The command `posterity`: what it can be told, and how it answers when it is told wrongly.

What a command needs is imported when it runs: `--help` and mistyped options answer at once, without JAX.
"""

import io
import math
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
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


def _at_least_two(given: str | int) -> int:
    return _whole(given, 2)


def _number(given: str | float) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"{str(given)!r} is not a number.")
    return value


def _not_negative(given: str | float) -> float:
    if (value := _number(given)) < 0:
        raise typer.BadParameter(f"{str(given)!r} is below 0.")
    return value


def _budgets(given: str) -> str:
    return ",".join(str(budget) for budget in sorted({_whole(part.strip()) for part in given.split(",")}))


def _shares(given: str) -> str:
    if any(_share_above_zero(part) == 1 for part in given.split(",")):
        raise typer.BadParameter("1 leaves nothing to go wrong; give numbers between 0 and 1.")
    return given


def _noises(given: str) -> str:
    return ",".join(str(_not_negative(part)) for part in given.split(","))


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
def bench(
    task: Annotated[str, typer.Option(metavar="NAME", help="abacus:easy, abacus:medium, abacus:hard, abacus:LEVEL, or reasoning-gym:NAME.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where trials, tables and pictures go; trials that are there are not made again.")],
    strategies: Annotated[str, typer.Option(metavar="A,B,...", help="Strategies by name, or all.")] = "all",
    budgets: Annotated[str, typer.Option(parser=_budgets, metavar="N,M,...", help="Rollouts a problem.")] = "1,2,4,8,16,32,64,128",
    problems: Annotated[int, typer.Option(parser=_at_least_two, metavar="N", help="How many problems.")] = 300,
    seeds: Annotated[int, typer.Option(parser=_whole, metavar="N", help="How often each strategy is run on each problem.")] = 5,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="As in `solve`; abacus for its own tasks.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="abacus-prm, checker or checker:NATS (exact, of arithmetic; so sure), verifier (the task's own, of answers), or hf:DIRECTORY of a classifier.",
        ),
    ] = None,
    noise: Annotated[float, typer.Option(parser=_not_negative, metavar="NATS", help="Makes the reward worse: standard deviation added to its log odds.")] = 0.0,
    length_bias: Annotated[float, typer.Option(parser=_number, metavar="NATS", help="Makes the reward love length: added to its log odds, a token.")] = 0.0,
    potential: Annotated[Literal["identity", "exp", "odds"], typer.Option(help="How a reward r weighs: r, e^r or r/(1-r).")] = "odds",
    rule: Annotated[Literal["product", "telescoped", "prefix"], typer.Option(help="What is weighed: all scores, the last one, or as published.")] = "product",
    sharpness: Annotated[float, typer.Option(parser=_positive, metavar="X", help="The power of the potential.")] = 1.0,
    temperature: Temperature = 1.0,
    particles: Annotated[int, typer.Option(parser=_whole, metavar="N", help="Texts in one batch, of as many problems as fit.")] = 1024,
    as_json: AsJson = False,
) -> None:
    """Accuracy and calibration of strategies against their budget, over many problems, with intervals.

    Writes into DIR: trials.csv, a line for each strategy, budget, problem and seed, so that a run that was stopped goes on where it was when the same
    command is given again; curves.csv, accuracies and costs with intervals; summary.json, these, the coverage law, budget ratios at equal accuracy,
    machine and time; accuracy.png and calibration.png.
    """
    from posterity.cli.bench import bench

    options = {"potential": potential, "rule": rule, "sharpness": sharpness, "temperature": temperature}
    at = [int(budget) for budget in budgets.split(",")]
    worse = {"noise": noise, "length_bias": length_bias}
    bench(
        task_name=task,
        strategies=strategies,
        budgets=at,
        problems=problems,
        seeds=seeds,
        out=out,
        model=model,
        reward=reward,
        **worse,
        options=options,
        particles=particles,
        as_json=as_json,
    )


@app.command("map")
def draw_map(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where map.png, map.csv and map.json go.")],
    solved: Annotated[str, typer.Option(parser=_shares, metavar="P,Q,...", help="Difficulties: how often one rollout is right.")] = "0.5,0.25,0.1,0.03,0.01",
    noises: Annotated[str, typer.Option(parser=_noises, metavar="X,Y,...", help="Standard deviations of rewards' log odds.")] = "0,1,2,3,4",
    rule: Annotated[Literal["product", "telescoped"], typer.Option(help="What the filter weighs by: the odds of all scores, or of the last.")] = "product",
    budgets: Annotated[str, typer.Option(parser=_budgets, metavar="N,M,...", help="Rollouts a problem; from 4 on multiples of 4.")] = "1,2,4,8,16,32,64,128",
    problems: Annotated[int, typer.Option(parser=_at_least_two, metavar="N", help="How many problems, each with rewards of its own.")] = 200,
    seeds: Annotated[int, typer.Option(parser=_whole, metavar="N", help="How often each strategy is run on each problem.")] = 1,
    as_json: AsJson = False,
) -> None:
    """How many times the budget of a particle filter best-of-n, beam search and DVTS need for its accuracy, by difficulty and by noise of the reward.

    Measured on a small exact model of reasoning in steps, with rewards whose mistakes are known. Cells below 1 are those in which search wins.
    """
    from posterity.cli.map import draw_map

    numbers = [[float(x) for x in given.split(",")] for given in (solved, noises)]
    at = [int(budget) for budget in budgets.split(",")]
    draw_map(out=out, solved=numbers[0], noises=numbers[1], rule=rule, budgets=at, problems=problems, seeds=seeds, as_json=as_json)


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
