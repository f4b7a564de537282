"""`samepath compare`: runs beside each other. Imports what it runs when it is called."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="folders of two runs or more; the first is compared with")],
    out: Annotated[
        Path | None, typer.Option(help="page to write; compare.html in the folder of the first run's runs if not given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """What differs in the settings of runs, their figures, and their accuracy on the same held-out prompts; writes compare.html.

    Status 0 if the runs were compared, finished or not; 1 if fewer than two are given or a folder is no run; 2 if a file cannot be read or written.
    """
    if len({folder.resolve() for folder in run_dirs}) < 2:
        raise ValueError("samepath compare needs the folders of two runs or more, such as runs/a runs/b")
    show_comparison(run_dirs, out or run_dirs[0].resolve().parent / "compare.html", as_json=as_json)


def show_comparison(run_dirs: list[Path], out: Path, *, as_json: bool) -> None:
    """Compare runs, print the tables or JSON, and write the page."""
    # Late: numpy and matplotlib.
    from samepath.rl.compare.comparison import as_plain
    from samepath.rl.compare.comparison import compare as compare_runs
    from samepath.rl.compare.page import write_comparison
    from samepath.rl.compare.tables import missing_lines, tables

    comparison = compare_runs(run_dirs)
    write_comparison(comparison, out)
    if as_json:
        plain = {**as_plain(comparison), "page": str(out)}
        sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return
    console = Console()
    for table in tables(comparison):
        console.print(table)
    for line in [*missing_lines(comparison), str(out)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
