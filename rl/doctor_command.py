"""The command that says what is wrong: with this machine, or with a run."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def doctor(
    run_dir: Annotated[
        Path | None, typer.Argument(help="folder of a run: say what went wrong in it, first things first")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> int:
    """Say what works on this machine, and why something does not; of a run what went wrong first, and what to look at.

    Of a run the exit status is 0 if nothing is wrong at its end, and 1 if something is, or there is no run.
    """
    return _of_machine(as_json) if run_dir is None else _of_run(run_dir, as_json)


def _of_machine(as_json: bool) -> int:
    # Late: the checks import torch kernels that no other command needs.
    from samepath.rl.validate.doctor import run_checks

    checks = run_checks()
    if as_json:
        found = [{"check": check.name, "ok": check.ok, "detail": check.detail} for check in checks]
        sys.stdout.write(json.dumps({"checks": found}, indent=2) + "\n")
        return 0
    table = Table("", "check", "detail")
    for check in checks:
        table.add_row("[green]ok[/]" if check.ok else "[yellow]no[/]", check.name, check.detail)
    Console().print(table)
    return 0


def _of_run(run_dir: Path, as_json: bool) -> int:
    # Late: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.alerts.diagnosis import diagnose
    from samepath.rl.pretraining.diagnosis import diagnose_text
    from samepath.rl.pretraining.text_folder import is_text_run

    found = diagnose_text(run_dir) if is_text_run(run_dir) else diagnose(run_dir)
    if as_json:
        sys.stdout.write(json.dumps(found.plain(), indent=2, ensure_ascii=False) + "\n")
    else:
        for line in found.lines():
            Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if found.healthy else 1
