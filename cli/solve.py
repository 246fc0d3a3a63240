"""`posterity solve`: the posterior over a model's solutions of an arithmetic expression."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
from rich.console import Group
from rich.text import Text

from posterity.cli import running, views
from posterity.cli.running import Decoding, blaming, survived
from posterity.models.programs import arithmetic
from posterity.models.programs.solve import solve as program_of

GIVEN = {"lines": "given that every line is right", "none": "by the model alone"}


def solve(
    prompt: str,
    *,
    n: int,
    seed: int,
    potential: Literal["lines", "none"],
    method: Literal["smc", "importance"],
    model: str,
    law: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Runs the command and prints what it found. `law` are the options of `text.next`.

    Raises:
      typer.BadParameter: for a prompt that is no problem, or a model that cannot be used.
    """
    with blaming("'PROMPT'"):
        arithmetic.parse(prompt)
    lm = running.load_model(model, quiet=as_json)
    with blaming("'--model'"):
        program = program_of(lm, prompt, potential=potential, **law)
    (executable,) = running.compiled(program, method=method, n=n, quiet=as_json)
    decoding = running.decode(program, executable, seed=seed, saying=f"decoding {n:,} particles", quiet=as_json)
    if as_json:
        print(json.dumps(as_object(decoding, seed), indent=2, allow_nan=False))
    else:
        show(prompt, decoding, seed=seed, potential=potential)


def as_object(decoding: Decoding, seed: int) -> dict:
    """The result as `--json` prints it."""
    posterior, alive = decoding.posterior, survived(decoding.posterior)
    answers = posterior.answers(views.last_line) if alive else {}
    return {
        "answers": [{"answer": answer, "probability": min(estimate.value, 1.0), "error": estimate.error} for answer, estimate in answers.items()],
        "log_evidence": float(posterior.log_evidence) if alive else None,
        "ess": float(posterior.ess),
        "tokens_per_second": decoding.tokens_per_second,
        "seed": seed,
        "versions": running.versions(),
    }


def show(prompt: str, decoding: Decoding, *, seed: int, potential: Literal["lines", "none"]) -> None:
    """Prints the posterior of the answer, the figures of the run, and one solution."""
    posterior, n = decoding.posterior, len(decoding.posterior)
    if not survived(posterior):
        views.show(
            Text.assemble((prompt, "bold"), f"  No particle of {n:,} is left: each wrote a wrong line, so the estimated evidence is zero."),
            f"Try more particles (--n {8 * n}), another --seed, or look at what the model does alone (--potential none).",
        )
        return
    log_evidence, error, resampled = float(posterior.log_evidence), float(posterior.log_evidence_error), int(posterior.resampled.sum())
    spread = f" ± {error:.2g}" if 0 < error < math.inf else ""
    meaning = f"right alone with p ≈ {math.exp(log_evidence):.2g}" if potential == "lines" else "nothing was asked of the solutions"
    text = str(posterior.sample(jax.random.fold_in(jax.random.key(seed), n)))
    views.show(
        Group(Text.assemble((prompt, "bold"), f"  {GIVEN[potential]}"), "", views.answers_table(posterior, right=arithmetic.trace(prompt)[-1])),
        views.facts(
            [
                ("log evidence", f"{log_evidence + 0.0:.3f}{spread} nats: {meaning}"),
                ("effective sample size", f"{float(posterior.ess):.1f} of {n:,}"),
                ("resampled", f"in {resampled} of {int(posterior.steps)} steps (a line each)"),
                ("speed", views.speed(decoding.tokens, decoding.seconds, decoding.compile_seconds)),
            ]
        ),
        Group("One draw from this posterior", "", views.solution(prompt, text.split("\n"), arithmetic.check(prompt, text))),
    )
