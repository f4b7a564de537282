"""The two commands of completion: the one that people call, and the one that their shell calls."""

import sys
from typing import Annotated, Literal

import typer

from samepath.rl.completion.candidates import candidates
from samepath.rl.completion.scripts import SCRIPTS


def add_completion(app: typer.Typer) -> None:
    """Add `completion` and the hidden `complete`, which answers from the whole tree of `app`."""

    @app.command()
    def completion(
        shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="bash, zsh or fish")],
    ) -> None:
        """Print what makes a shell complete this command: source <(samepath completion bash), or `samepath completion fish | source`."""
        sys.stdout.write(SCRIPTS[shell])

    @app.command(hidden=True)
    def complete(
        words: Annotated[list[str], typer.Argument(help="what stands after `samepath`, the last word begun")],
    ) -> None:
        """Print the ways in which the last word may go on, for the shell."""
        for candidate in candidates(typer.main.get_command(app), words):
            sys.stdout.write(f"{candidate}\n")
