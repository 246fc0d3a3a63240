"""`posterity generate`: texts sampled from a language model."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.box import ROUNDED
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from posterity.cli import running, views
from posterity.cli.running import Decoding, blaming
from posterity.models.programs.generate import generate as program_of
from posterity.models.programs.generate import trimmed


class Generated(NamedTuple):
    """One sampled text."""

    text: str
    tokens: int
    ended: bool  # by the model or by the stop text, not by the limit


def generate(
    prompt: str,
    *,
    model: str,
    max_tokens: int,
    n: int,
    stop: str | None,
    chat: bool,
    law: Mapping[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Runs the command and prints what it found. `law` are the options of `text.next`.

    Raises:
      typer.BadParameter: for a prompt or a model that cannot be used.
    """
    lm = running.load_model(model, quiet=as_json)
    with blaming("'--chat'"):
        opening = lm.tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt
    with blaming("'PROMPT'"):
        program = program_of(lm, opening, max_tokens=max_tokens, **law, stop=stop)
    (executable,) = running.compiled(program, method="importance", n=n, quiet=as_json)
    decoding = running.decode(program, executable, seed=seed, saying=f"writing {n:,} texts of at most {max_tokens:,} tokens", quiet=as_json)
    texts = read(decoding, stop)
    if as_json:
        print(json.dumps(as_object(decoding, texts, seed), indent=2, allow_nan=False))
    else:
        show(decoding, texts, opening="" if chat else prompt)


def read(decoding: Decoding, stop: str | None) -> list[Generated]:
    """The texts of all particles."""
    return [
        Generated(trimmed(whole, stop), int(text.generated), bool(text.ended) or (stop is not None and stop in whole))
        for text in views.texts(decoding.posterior)
        for whole in [str(text)]
    ]


def as_object(decoding: Decoding, texts: list[Generated], seed: int) -> dict:
    """The result as `--json` prints it."""
    return {
        "texts": [text._asdict() for text in texts],
        "tokens_per_second": decoding.tokens_per_second,
        "seed": seed,
        "versions": running.versions(),
    }


def show(decoding: Decoding, texts: list[Generated], *, opening: str) -> None:
    """Prints each different text once, the most frequent first, after the `opening` that it goes on from."""
    counts = Counter(texts)
    views.show(
        Group(*(panel(opening, text, count, len(texts)) for text, count in counts.most_common())),
        views.facts([("speed", views.speed(decoding.tokens, decoding.seconds, decoding.compile_seconds))]),
    )


def panel(opening: str, text: Generated, count: int, n: int) -> Panel:
    """A text after its opening, how many of the n are equal to it, and its length."""
    body = Text.assemble((views.printable(opening), "dim"), views.printable(text.text.rstrip("\n"))) if opening + text.text else Text("(nothing)", style="dim")
    above = f"{count} of {n} alike" if count > 1 else None
    below = f"{text.tokens:,} tokens" + ("" if text.ended else ", cut off")
    return Panel(body, box=ROUNDED, title=above, title_align="left", subtitle=below, subtitle_align="right", border_style="dim")
