"""`posterity demo`: one model, three sums, with and without the condition that every line is right."""

import math
import os
import shutil
import sys
import time

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from posterity.cli import running, views
from posterity.cli.running import survived
from posterity.inference.posterior import Posterior
from posterity.models.programs import arithmetic
from posterity.models.programs.solve import solve

MODEL = "abacus"
PARTICLES = 128
SEEDS = 0, 1  # of the left and the right side: what is counted and what is estimated are independent
# Of one size, so that two compilations serve all six runs.
EXAMPLES = {
    "easy": "2+3*(14-8)-5=",
    "hard: it is confidently wrong": "98+(9*4+9*94)=",
    "harder: it is hardly ever right": "54*15+(3+8)*99=",
}
ROWS = 4  # of each table
BAR_WIDTH = 14

OPENING = """\
[bold]Abacus[/] is a small language model that writes sums out line by line, and errs on the hard ones. \
What does it believe? And what is left of that if we insist that every line is right?"""

CLOSING = """\
The evidence is the probability that the model writes a right solution by itself. Here it can be \
checked by counting; where right solutions are too rare to count, resampling after every line still finds them.

Next: [bold]{command} solve "48*(7+5)-19=" --n 64 --seed 0[/], and notebooks/01-first-posterior.ipynb"""


def demo() -> None:
    """Runs the command and prints what it found."""
    start = time.perf_counter()
    lm = running.load_model(MODEL)
    views.show(OPENING)
    first = next(iter(EXAMPLES.values()))
    alone, given = running.compiled(solve(lm, first, potential="none"), solve(lm, first, potential="lines"), method="smc", n=PARTICLES)
    for number, (grade, prompt) in enumerate(EXAMPLES.items(), 1):
        said = f"decoding {prompt}"
        without = running.decode(solve(lm, prompt, potential="none"), alone, seed=SEEDS[0], saying=said)
        with_lines = running.decode(solve(lm, prompt, potential="lines"), given, seed=SEEDS[1], saying=said)
        heading = Text.assemble(f"{number}  ", (prompt, "bold"), (f"  {grade}", "dim"))
        views.show(Group(heading, "", Padding(comparison(prompt, without.posterior, with_lines.posterior), (0, 0, 0, 3))))
    took = f"{2 * len(EXAMPLES)} posteriors of {PARTICLES} particles in {time.perf_counter() - start:.1f} s, of which compiling {alone.seconds:.1f} s."
    command = "posterity" if shutil.which("posterity") else f"{os.path.relpath(sys.executable)} -m posterity"
    views.show(CLOSING.format(command=command), Text(took, style="dim"))


def comparison(prompt: str, alone: Posterior, given: Posterior) -> RenderableType:
    """Both posteriors of the answer side by side, and what the evidence says."""
    right = arithmetic.trace(prompt)[-1]
    tables = [
        Group(Text(title, style="dim"), views.answer_bars(posterior, right=right, rows=ROWS, width=BAR_WIDTH) if survived(posterior) else "no particle is left")
        for title, posterior in (("the model alone", alone), ("given that every line is right", given))
    ]
    solved = sum(all(arithmetic.check(prompt, str(text))) for text in views.texts(alone))
    counted = f"Right in every line: {solved} of {len(alone)} solutions alone ({solved / len(alone):.3f})."
    return Group(Columns(tables, padding=(0, 6)), "", f"{counted} Evidence: {math.exp(given.log_evidence):.2g}.")
