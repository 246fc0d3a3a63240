"""What posteriors look like in a terminal."""

from collections.abc import Iterable
from typing import Any

import jax
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posterity.inference.posterior import Posterior
from posterity.inference.queries import Estimate

WIDTH = 100  # columns, at most: longer lines are hard to read
ROWS = 8  # of a table of answers, at most
BAR_WIDTH = 24
ANSWER_WIDTH = 24
CONTROLS = {i: f"\\x{i:02x}" for i in (*range(9), *range(11, 32), *range(127, 160))}  # a model may write what moves a terminal's cursor


def show(*parts: RenderableType) -> None:
    """Prints blocks, indented, each with an empty line after it, and no spaces at the ends of lines."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    with console.capture() as captured:
        for part in parts:
            console.print(Padding(part, (0, 0, 1, 2)))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def printable(text: str) -> str:
    """The text with control characters, line breaks apart, spelled out."""
    return text.translate(CONTROLS)


def answers_table(posterior: Posterior, *, right: str) -> Table:
    """Answers with probability and Monte Carlo error, best first, the rarest in one row; the right one is set off."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("answer", justify="right", no_wrap=True, overflow="ellipsis", max_width=ANSWER_WIDTH)
    table.add_column("probability", justify="right")
    table.add_column("± error", justify="right", style="dim")
    table.add_column("", no_wrap=True)
    for name, colour, estimate in rows_of(posterior, right, ROWS):
        table.add_row(Text(name, style=colour), f"{estimate.value:.3f}", f"{estimate.error:.3f}", bar(estimate.value, BAR_WIDTH, colour))
    return table


def answer_bars(posterior: Posterior, *, right: str, rows: int, width: int) -> Table:
    """Answers and probabilities in little space."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True, overflow="ellipsis", min_width=9, max_width=12)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for name, colour, estimate in rows_of(posterior, right, rows):
        table.add_row(Text(name, style=colour), bar(estimate.value, width, colour), f"{estimate.value:.2f}")
    return table


def rows_of(posterior: Posterior, right: str, rows: int) -> list[tuple[str, str, Estimate]]:
    """Answers, best first, in their colours; those for which `rows` do not suffice together in the last one."""
    answers = posterior.answers(last_line)
    shown = list(answers)[: rows if len(answers) <= rows else rows - 1]
    if count := len(answers) - len(shown):
        answers = posterior.answers(lambda text: answer if (answer := last_line(text)) in shown else None)
    named = [(printable(answer) or "(nothing)", "green" if answer == right else "red", answers[answer]) for answer in shown]
    return [*named, (f"{count} others", "dim", answers[None])] if count else named


def bar(probability: float, width: int, colour: str) -> ProgressBar:
    """A probability as a length."""
    return ProgressBar(total=1.0, completed=round(probability, 4), width=width, complete_style=colour, finished_style=colour)


def texts(posterior: Posterior) -> list[Any]:
    """The texts of all particles, on the host."""
    values = jax.device_get(posterior.values)
    return [jax.tree.map(lambda x, i=i: x[i], values) for i in range(len(posterior))]


def last_line(text: Any) -> str:
    """The answer of a solution."""
    return str(text).rsplit("\n", 1)[-1]


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and what they are, in two columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def solution(prompt: str, lines: list[str], verdicts: list[bool]) -> Table:
    """A text line by line, each marked right or wrong."""
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column()
    table.add_row(prompt, "", style="bold")
    for line, right in zip(lines, verdicts, strict=True):
        table.add_row(Text(printable(line)), Text("right", style="green") if right else Text("wrong", style="red"))
    return table


def speed(tokens: int, seconds: float, compile_seconds: float) -> str:
    """Tokens per second of the run alone; compiling is named beside it."""
    return f"{tokens / seconds:,.0f} tokens/s ({tokens:,} in {seconds:.2f} s; compiling took {compile_seconds:.1f} s)"
