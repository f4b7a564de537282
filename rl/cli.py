"""The `samepath` command. Each subcommand imports what it runs when it is called: torch alone takes seconds, and `--help` needs none of it."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from samepath.rl.compare_command import compare
from samepath.rl.completion.commands import add_completion
from samepath.rl.doctor_command import doctor
from samepath.rl.eval_command import evaluate
from samepath.rl.export_command import export
from samepath.rl.file_errors import advice, said
from samepath.rl.init_command import init
from samepath.rl.inspect_command import inspect
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.machine import package_versions, set_missing_variables
from samepath.rl.sample_command import sample
from samepath.rl.sweep_command import sweep
from samepath.rl.text_command import resume_on_text, start_on_text
from samepath.rl.validate_command import validate
from samepath.rollout.bounded_call import overdue

if TYPE_CHECKING:
    # For the checker alone: see `_load`.
    from samepath.rl.recipe.recipe import Recipe

# Spinning threads cost more than they give on few cores; read when torch is imported.
set_missing_variables({"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"})

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reinforcement learning on the path the sampler walked.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
RecipePath = Annotated[Path, typer.Argument(help="recipe file, YAML")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings to change: key=value, ~key, list[0].key=value")]
USER_ERRORS = (ValueError, RuntimeError, FileNotFoundError)
"""Errors whose message is for the user, this package's own among them; anything else keeps its traceback."""


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"samepath {package_versions(['samepath'])['samepath']}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options that stand before a subcommand."""


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train by a recipe and print the summary; Ctrl-C leaves a checkpoint."""
    if _on_text(recipe, overrides or []):
        start_on_text(recipe, overrides or [])
        return
    resolved = _load(recipe, overrides or [])
    # Late: as in `_load`.
    from samepath.rl.run_folder import begun

    begun(resolved.run_dir)
    # Late: torch; a folder that is taken is refused before it.
    from samepath.rl.run import start_run

    start_run(resolved, recipe.parent)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="folder of the run, such as runs/quickstart")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="settings to change: rl.steps=200 goes on with a finished run; what would change done steps is refused"
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="go on from this step's checkpoint; what came later is set aside in the run's folder"),
    ] = None,
) -> None:
    """Go on with an interrupted run from its newest checkpoint, or with a finished one for more steps."""
    if resume_on_text(run_dir, overrides or [], step):
        return
    # Late: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.run_folder import recipe_of_run

    resolved = recipe_of_run(run_dir, overrides or [])
    # Late: torch; what is wrong with the settings is said before it.
    from samepath.rl.run import resume_run

    resume_run(resolved, run_dir, step)


app.command()(validate)
app.command()(sample)
app.command(name="eval")(evaluate)


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="GGUF file, folder, installed package that carries a GGUF file, or hub name")
    ],
    target: Annotated[Path, typer.Argument(help="checkpoint folder to write")],
    file: Annotated[str, typer.Option(help="which GGUF file, if the source has several")] = "",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="of the written weights")
    ] = "float32",
    max_file_gib: Annotated[
        float, typer.Option(min=1e-6, help="weights beyond this go into several files with an index, GiB")
    ] = 4.0,
    indexer: Annotated[
        str,
        typer.Option(help="add a lightning indexer: heads=4,width=32,topk=256 (and rope=16: channels that it rotates)"),
    ] = "",
    experts: Annotated[int, typer.Option(min=0, help="make this many experts of each feed-forward")] = 0,
    chosen: Annotated[int, typer.Option(min=1, help="experts that a token goes through, with --experts")] = 2,
    dense: Annotated[
        bool, typer.Option("--dense", help="take the indexer away again, for transformers where it has such a model")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the new indexer's and routers' weights")] = 0,
) -> None:
    """Turn a model into a checkpoint folder with plain, trainable weights, once; with an indexer and experts if wanted."""
    # Late: no other command needs it.
    from samepath.model.files.convert import Output, find_source
    from samepath.model.files.convert import convert as write_checkpoint
    from samepath.model.files.upcycle import Change, read_indexer

    change = Change(
        indexer=read_indexer(indexer) if indexer else None, experts=experts, chosen=chosen, dense=dense, seed=seed
    )
    output = Output(weight_type=dtype, max_bytes=int(max_file_gib * 2**30))
    done = write_checkpoint(find_source(source, file), target, output, Console(stderr=True).print, change)
    Console().print(
        f"{done.folder}: {done.architecture}, {done.parameters:,} parameters, {dtype}, {done.size_bytes / 2**20:.0f} MiB",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


app.command()(export)
app.command()(compare)
app.command()(sweep)
app.command()(init)
app.command()(inspect)


@app.command()
def ui(
    runs_dir: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Serve the MLflow pages of all runs on loopback until Ctrl-C or SIGTERM."""
    # Late: no other command needs it.
    from samepath.rl.tracking.mlflow_ui import serve_ui

    serve_ui(runs_dir, port, Console().print)


app.command()(doctor)


@app.command()
def schema(
    text: Annotated[bool, typer.Option("--text", help="of recipes with a stage, which train on text")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    # Late: see `_load`.
    from samepath.rl.recipe.file import recipe_schema
    from samepath.rl.recipe.recipe import Recipe
    from samepath.rl.recipe.text import TextRecipe

    sys.stdout.write(json.dumps(recipe_schema(TextRecipe if text else Recipe), indent=2) + "\n")


add_completion(app)


@app.command()
def replay(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run whose MLflow server was away")],
) -> int:
    """Send what a run could not send to MLflow, its end included, also that of a killed run. Status 1 if something still waits."""
    # Late: MLflow is optional.
    from samepath.rl.tracking.resending import resend_run

    resent = resend_run(run_dir)
    for line in resent.said:
        Console().print(line, soft_wrap=True)
    if resent.problem:
        Console(stderr=True).print(resent.problem, soft_wrap=True)
    return 1 if resent.problem else 0


@app.command(name="replay-run")
def replay_run(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run with rl.max_weight_lag above 0")],
    from_rollouts: Annotated[
        bool, typer.Option("--from-rollouts", help="train the kept groups (checkpoint.keep_sampled), sample nothing")
    ] = False,
) -> None:
    """Make a run that sampled while it learned again from its history; status 1 where tokens, rewards or weights are not the same to the bit."""
    # Late: torch.
    from samepath.rl.history import StepLine
    from samepath.rl.replay_run import replay_run as make_again

    def said(line: StepLine) -> None:
        tokens = sum(count for group in line.groups for sample in group.samples for _, count in sample.drawn)
        sys.stdout.write(
            f"step {line.step + 1}: {len(line.groups)} groups, {tokens} tokens, weights {line.weights}, as recorded\n"
        )
        sys.stdout.flush()

    steps = make_again(run_dir, from_rollouts=from_rollouts, on_step=said)
    sys.stdout.write(f"{steps} steps, all equal to the bit\n")


def _on_text(path: Path, overrides: Sequence[str]) -> bool:
    # Late: see `_load`.
    from samepath.rl.recipe.file import recipe_keys

    return "stage" in recipe_keys(path, overrides)


def _load(path: Path, overrides: Sequence[str]) -> "Recipe":
    # Late: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.recipe.file import load_recipe
    from samepath.rl.recipe.recipe import Recipe

    return load_recipe(path, overrides, Recipe)


def main() -> None:
    """Run the command; a user's mistake is one message, not a traceback.

    Exit status 1 on errors, 2 where a file, a connection or a process of the learner or of its cluster fails, 130 on Ctrl-C.
    """
    status = _status()
    if overdue():
        # A thread that hangs in foreign code, as in Ray after a cluster's loss, can hang or crash the interpreter's end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _status() -> int:
    try:
        # Outside its standalone mode the command returns its exit status (130 after Ctrl-C) instead of exiting.
        status = app(standalone_mode=False)
        return status if isinstance(status, int) else 0
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except typer._click.exceptions.ClickException as error:
        error.show()
        return error.exit_code
    except USER_ERRORS as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        # A checkpoint or a sampled group that the disk refused is an error of its file.
        of_a_file = isinstance(error.__cause__, OSError)
        return 2 if of_a_file or isinstance(error, LearnerLostError) else 1
    except OSError as error:
        Console(stderr=True).print(
            f"error: {said(error)}.{advice(error)}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return 2
