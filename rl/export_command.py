"""`samepath export`: a run's checkpoint as a folder for others. Imports torch only when it is called."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    source: Annotated[
        Path, typer.Argument(help="run folder (its newest checkpoint, or its best with --best) or checkpoint folder")
    ],
    target: Annotated[Path, typer.Argument(help="folder to write, new or empty")],
    max_file_gib: Annotated[
        float, typer.Option(min=1e-6, help="weights beyond this go into several files with an index, GiB")
    ] = 4.0,
    best: Annotated[
        bool, typer.Option("--best", help="the checkpoint whose evaluation in the run had the highest accuracy")
    ] = False,
) -> None:
    """Write a checkpoint as safetensors with configuration and tokenizer, also one that sharded ranks wrote."""
    # Late: torch.
    from samepath.rl.learner.export import export as write_export

    done = write_export(source, target, int(max_file_gib * 2**30), best=best)
    Console().print(
        f"{done.folder}: {done.tensors:,} tensors, {done.size_bytes / 2**20:.1f} MiB in {done.files} file{'s' * (done.files != 1)}, "
        f"from {done.checkpoint}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
