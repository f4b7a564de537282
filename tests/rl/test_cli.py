"""The command line in a fresh interpreter: what is asked of settings alone is answered without the heavy packages."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from samepath.rl import cli
from samepath.rl.learner.checkpoints import CheckpointError
from samepath.rl.learner.lost import LearnerLostError
from tests.rl.alerts.folders import Attempt

HEAVY = {"torch", "transformers", "numpy", "ray", "mlflow", "vllm", "triton", "accelerate", "pyarrow", "datasets"}
COMPLETE = ("complete", "--", "run", "x.yaml", "rl.st")
PROGRAM = """
import sys
from samepath.rl.cli import main
try:
    main()
finally:
    print("loaded:", *sorted(sys.modules), file=sys.stderr)
"""


def called(*arguments: str) -> tuple[int, str, str, set[str]]:
    """(exit status, stdout, stderr, loaded modules) of `samepath …`."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    said, _, loaded = done.stderr.rpartition("loaded: ")
    return done.returncode, done.stdout, said, set(loaded.split())


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("-h",), ("validate", "-h"), ("--version",), ("schema",), ("completion", "bash"), COMPLETE],
)
def test_main_without_a_run_loads_no_heavy_package(arguments: tuple[str, ...]) -> None:
    status, printed, said, loaded = called(*arguments)
    assert (status, said) == (0, "")
    assert printed
    assert loaded & HEAVY == set()
    # Help does not even need the recipe.
    assert ("samepath.rl.recipe.recipe" in loaded) == (arguments in (("schema",), COMPLETE))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("rl.group_sise=8", "rl.group_sise: unknown key; did you mean rl.group_size?"),
        ("rl.group_size=few", "rl.group_size: must be a valid integer"),
        ("rl.group_size=1", "rl.group_size: must be greater than or equal to 2; got 1"),
        ("engine.max_sequences=4", "engine.max_sequences=4 must hold a whole group"),
    ],
)
def test_validate_reports_what_the_settings_show_before_a_heavy_package_is_loaded(override: str, problem: str) -> None:
    status, printed, said, loaded = called("validate", "recipes/quickstart.yaml", override)
    assert (status, printed) == (1, "")
    assert problem in said
    assert loaded & HEAVY == set()


def test_run_where_a_file_is_in_the_way_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, printed, said, loaded = called("run", "recipes/quickstart.yaml", f"runs_dir={tmp_path / 'file' / 'runs'}")
    assert (status, printed) == (2, "")
    assert said.startswith(f"error: {tmp_path / 'file'} must be a folder; it is a file. Move it")
    assert said.count("\n") == 1
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("command", ["resume", "replay"])
def test_command_on_a_folder_without_a_run_says_so_in_a_sentence(command: str, tmp_path: Path) -> None:
    status, printed, said, loaded = called(command, str(tmp_path))
    assert (status, printed, said) == (1, "", f"error: {tmp_path} is no run folder: it has no recipe.yaml\n")
    assert loaded & HEAVY == set()


def test_compare_with_a_folder_without_a_run_is_exit_status_1_as_of_other_commands(tmp_path: Path) -> None:
    status, printed, said, _ = called("compare", str(tmp_path), str(tmp_path / "none"))
    assert (status, printed) == (1, "")
    assert said.endswith(f"such as runs/quickstart; {tmp_path} is no run folder: it has no recipe.yaml\n")


def test_doctor_of_a_run_loads_no_heavy_package(tiny_recipe) -> None:
    run_dir = (
        Attempt(tiny_recipe("rl.steps=2")).steps([1, 2], lambda step: {"rollout/truncated": 1.0}).ended("FINISHED")
    )
    status, printed, said, loaded = called("doctor", str(run_dir))
    assert (status, said) == (1, "")
    assert "1. step 1: truncated: 100% of the responses" in printed
    assert loaded & HEAVY == set()


def test_version_is_the_installed_one() -> None:
    assert called("--version")[1] == f"samepath {version('samepath')}\n"


def test_main_with_a_thread_that_hangs_in_foreign_code_ends_at_once_with_the_commands_status() -> None:
    """A thread inside Ray would crash or hang the interpreter's end; here whatever runs at that end would hang."""
    program = (
        "import atexit, sys, threading, time\n"
        "from samepath.rl import cli\n"
        "from samepath.rollout.bounded_call import OverdueError, bounded\n"
        "@cli.app.command()\n"
        "def hang():\n"
        "    atexit.register(time.sleep, 600)\n"
        "    try:\n"
        "        bounded('Ray', 0.05, threading.Event().wait)\n"
        "    except OverdueError as error:\n"
        "        raise ConnectionError('the cluster is gone') from error\n"
        "sys.argv = ['samepath', 'hang']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (2, "error: the cluster is gone.")


def test_checkpoint_that_the_disk_refuses_is_exit_status_2_as_any_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = []
    for cause in (OSError(28, "No space left on device"), None):

        def refused(*, why: OSError | None = cause, **options: object) -> None:
            raise CheckpointError("runs/a/checkpoints/step-000002 cannot be written") from why

        monkeypatch.setattr(cli, "app", refused)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        statuses.append(ended.value.code)
    assert statuses == [2, 1]
    assert capsys.readouterr().err == 2 * "error: runs/a/checkpoints/step-000002 cannot be written\n"


def test_learner_that_loses_a_process_is_exit_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(**options: object) -> None:
        raise LearnerLostError("learner rank 1 ended")

    monkeypatch.setattr(cli, "app", lost)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: learner rank 1 ended\n"
