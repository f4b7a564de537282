"""`samepath inspect`: a page over a run's rollouts. Imports what it serves only when it is called."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def inspect(
    run_dir: Annotated[Path, typer.Argument(help="folder of the run, such as runs/quickstart; it may be running")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0 takes a free one")] = 0,
) -> None:
    """Serve a page of all rollouts of a run on loopback until Ctrl-C: filters, groups, conversations, tokens."""
    # Late: columns in memory, which `--help` does not need.
    from samepath.rl.report.inspector.server import serve

    def say(line: str) -> None:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)

    serve(run_dir, port, say)
