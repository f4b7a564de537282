"""A run's folder has one holder at a time; what an unfinished start left gives way, and nothing else does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from samepath.rl.run_folder import (
    LOCK_FILE,
    RunFolderError,
    RunFolderUnusableError,
    begun,
    claimed,
    clear_start,
    set_aside,
    steps_after,
    unusable,
)
from samepath.rl.run_state import RunState

HOLDER = """
import sys, time
from pathlib import Path
from samepath.rl.run_folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_claimed_folder_is_refused_to_others_until_its_holder_dies(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "one"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run_dir], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        before = (run_dir / LOCK_FILE).read_text()
        with pytest.raises(RunFolderError, match=f"in use by process {holder.pid} on ") as error, claimed(run_dir):
            pytest.fail("two holders")
        assert str(run_dir) in str(error.value)
        assert (run_dir / LOCK_FILE).read_text() == before
        assert [path.name for path in run_dir.iterdir()] == [LOCK_FILE]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with claimed(run_dir):
        assert f'"pid": {os.getpid()},' in (run_dir / LOCK_FILE).read_text()


def test_claimed_twice_in_one_process_is_refused_and_free_afterwards(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(RunFolderError, match=str(os.getpid())), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


def test_claimed_lock_is_not_inherited_by_a_child_that_outlives_the_run(tmp_path: Path) -> None:
    program = "print('up', flush=True); input()"
    with claimed(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
        )
        assert child.stdout is not None
        # Descriptors are closed while the child's program is loaded.
        assert child.stdout.readline() == b"up\n"
    try:
        with claimed(tmp_path):
            pass
    finally:
        child.communicate(b"\n")


@pytest.mark.parametrize("below", [".", "run", "deep/run"])
def test_claimed_where_a_file_is_in_the_way_names_it(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run_dir = tmp_path / "file" / below
    with pytest.raises(RunFolderUnusableError, match=str(tmp_path / "file")), claimed(run_dir):
        pass
    assert unusable(run_dir).startswith(f"{tmp_path / 'file'} must be a folder; it is a file")


def test_unusable_looks_without_making_anything(tmp_path: Path) -> None:
    assert unusable(tmp_path / "runs" / "new") == ""
    assert unusable(Path("runs") / "new") == ""
    assert not list(tmp_path.iterdir())


def left(run_dir: Path, state: RunState | None, *names: str) -> None:
    """A folder with files of these names, and `run.json`."""
    run_dir.mkdir(exist_ok=True)
    for name in names:
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(name)
    if state is not None:
        state.save(run_dir)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


FILES = ("recipe.yaml", "metrics.jsonl", "tracking.json", "recipe-attempt-1.yaml", ".reference.partial/config.json")


def test_clear_start_removes_what_was_left_in_the_cold_start_and_no_file_of_others(tmp_path: Path) -> None:
    left(tmp_path, RunState(), *FILES, "notes.txt", LOCK_FILE)
    assert "removed" in clear_start(tmp_path)
    assert names(tmp_path) == ["notes.txt", LOCK_FILE]
    assert clear_start(tmp_path) == ""


def test_clear_start_sets_a_whole_reference_aside(tmp_path: Path) -> None:
    left(tmp_path, RunState(phase="evaluation"), *FILES[:3], "reference/model.safetensors")
    assert str(tmp_path / "set-aside-1") in clear_start(tmp_path)
    wanted = ["metrics.jsonl", "recipe.yaml", "reference/model.safetensors", "run.json", "tracking.json"]
    assert names(tmp_path / "set-aside-1") == wanted
    assert names(tmp_path) == [f"set-aside-1/{name}" for name in wanted]


@pytest.mark.parametrize("phase", ["training", "finished"])
def test_clear_start_leaves_a_run_that_has_trained(phase: str, tmp_path: Path) -> None:
    left(tmp_path, RunState(phase=phase), *FILES)
    before = names(tmp_path)
    with pytest.raises(RunFolderError, match=f"samepath resume {tmp_path}"):
        clear_start(tmp_path)
    assert names(tmp_path) == before


def test_begun_with_checkpoints_of_nobody_refuses(tmp_path: Path) -> None:
    left(tmp_path, None, "checkpoints/step-000002/model.safetensors")
    with pytest.raises(RunFolderError, match="checkpoints without run.json"):
        begun(tmp_path)


def test_set_aside_takes_the_next_free_number(tmp_path: Path) -> None:
    for number in (1, 2):
        left(tmp_path, None, "rollouts/step-00003.jsonl")
        assert set_aside(tmp_path, [tmp_path / "rollouts/step-00003.jsonl"]) == tmp_path / f"set-aside-{number}"
    assert names(tmp_path) == ["set-aside-1/rollouts/step-00003.jsonl", "set-aside-2/rollouts/step-00003.jsonl"]


def test_steps_after_gives_the_latest_first_whatever_the_width_of_their_names(tmp_path: Path) -> None:
    left(tmp_path, None, "step-000004.jsonl", "step-00010.jsonl", "step-100000.jsonl", "step-00003.jsonl")
    assert [path.name for path in steps_after(tmp_path, 3)] == [
        "step-100000.jsonl",
        "step-00010.jsonl",
        "step-000004.jsonl",
    ]
    assert steps_after(tmp_path / "none", 3) == []
