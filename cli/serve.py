"""`posterity serve`: a language model of this machine behind an OpenAI-compatible API."""

import sys

import typer
from rich.console import Console

from posterity.cli import running
from posterity.models.lm.remote.server import serve as server_of


def serve(*, model: str, host: str, port: int, key: str | None) -> None:
    """Runs the command until it is interrupted.

    Raises:
      typer.BadParameter: for a model or an address that cannot be used.
    """
    lm = running.load_model(model, argument="'MODEL'")
    with running.blaming("'--host', '--port'"):
        server = server_of(lm, host=host, port=port, key=key)
    with server:
        console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        console.print(f"{lm.name} is served at {server.url}", markup=False)
        Console(stderr=True).print(f'In Python: po.load("openai:{server.url}"{"" if key is None else ", key=..."}). Ctrl-C ends it.', style="dim", markup=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raise typer.Exit from None
