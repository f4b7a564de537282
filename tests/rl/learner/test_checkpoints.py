"""Whenever a process ends, and whatever a disk does to its files, the newest whole checkpoint is found and a broken one is never taken."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from samepath.model.manifest import require_whole
from samepath.rl.learner.checkpoint_writer import CheckpointWriter
from samepath.rl.learner.checkpoints import (
    STEP_FILE,
    CheckpointError,
    checkpoint_folder,
    checkpoint_of_step,
    latest_checkpoint,
)
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.snapshot import STATE_FILE
from samepath.rl.run import resume_run, start_run
from tests.killed import killed_at_each_call
from tests.model.test_durable_file import room_for
from tests.rl.saved import saved


def writer(step: int, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(text)
        (folder / STEP_FILE).write_text(json.dumps({"step": step}))

    return write


def save(run_dir: Path, step: int, text: str, keep: int = 2, asynchronous: bool = False) -> None:
    written = CheckpointWriter(asynchronous=asynchronous, keep=keep)
    written.begin(checkpoint_folder(run_dir, step), lambda: writer(step, text))
    written.whole(wait=True)


def newest(run_dir: Path) -> tuple[int, str] | None:
    found = latest_checkpoint(run_dir)
    return None if found is None else (found[1], (found[0] / "weights").read_text())


def names(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(("step", "keep"), [(3, 1), (4, 2)])
def test_save_killed_at_each_call_leaves_a_whole_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: int,
    keep: int,
    asynchronous: bool,
) -> None:
    """Of a new step, and of one that has a checkpoint; afterwards one more save leaves nothing but the newest."""
    before, run = tmp_path / "before", tmp_path / "run"
    for old in (2, 3):
        save(before, old, f"old {old}", keep=2)
    shutil.copytree(before, run)
    seen = set()
    for _ in killed_at_each_call(monkeypatch, run, lambda: save(run, step, "new", keep, asynchronous)):
        found = newest(run)
        assert found in {(3, "old 3"), (step, "new")}
        seen.add(found)
        for folder in (run / "checkpoints").glob("step-*"):
            require_whole(folder)
        assert not caplog.records
        save(run, 5, "later", keep=1)
        assert names(run) == {"step-000005"}
        shutil.rmtree(run)
        shutil.copytree(before, run)
    assert seen == {(3, "old 3"), (step, "new")}
    assert newest(run) == (step, "new")
    assert len(names(run)) == keep


def test_write_folder_syncs_every_file_before_the_rename_and_drops_the_old_one_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, "old")
    calls: list[str] = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def noted_fsync(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        calls.append(f"rename to {Path(new).name}")
        replace(old, new)

    def noted_rmtree(path: Path) -> None:
        calls.append(f"delete {path.name}")
        rmtree(path)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(shutil, "rmtree", noted_rmtree)
    save(tmp_path, 1, "new")
    assert calls == [
        *(STEP_FILE, "weights", ".manifest.json.partial", "rename to manifest.json", ".step-000001.partial"),
        *("rename to .step-000001.replaced", "rename to step-000001", "checkpoints", "delete .step-000001.replaced"),
    ]


def test_first_save_killed_at_each_call_leaves_none_or_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for _ in killed_at_each_call(monkeypatch, tmp_path, lambda: save(tmp_path, 1, "new")):
        seen.add(newest(tmp_path))
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    assert seen == {None, (1, "new")}


def test_latest_checkpoint_passes_over_broken_ones_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, f"text {step}", keep=3)
    (checkpoint_folder(tmp_path, 3) / "weights").write_text("text 4")
    (checkpoint_folder(tmp_path, 2) / STEP_FILE).unlink()
    with caplog.at_level(logging.WARNING, logger="samepath.checkpoints"):
        assert newest(tmp_path) == (1, "text 1")
    assert ["step 3 is not whole" in caplog.messages[0], "step 2 is not whole" in caplog.messages[1]] == [True, True]
    assert str(checkpoint_folder(tmp_path, 3) / "weights") in caplog.messages[0]
    assert "step 1, the newest whole one" in caplog.messages[2]


def test_latest_checkpoint_without_a_whole_one_is_refused_instead_of_beginning_again(tmp_path: Path) -> None:
    save(tmp_path, 1, "a")
    (checkpoint_folder(tmp_path, 1) / "weights").write_text("")
    with pytest.raises(CheckpointError, match=r"none is: .*step-000001/weights must have 1 bytes; it has 0"):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / "elsewhere") is None


def test_latest_checkpoint_orders_by_step_and_takes_no_renamed_folder(tmp_path: Path) -> None:
    save(tmp_path, 999_999, "a")
    save(tmp_path, 1_000_000, "b")
    assert newest(tmp_path) == (1_000_000, "b")
    shutil.copytree(checkpoint_folder(tmp_path, 999_999), checkpoint_folder(tmp_path, 2_000_000))
    assert newest(tmp_path) == (1_000_000, "b")


def test_drop_others_after_going_back_keeps_the_new_one_and_drops_the_left_past(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step, "first way", keep=9)
    save(tmp_path, 3, "second way", keep=2)
    assert names(tmp_path) == {"step-000002", "step-000003"}
    assert newest(tmp_path) == (3, "second way")


def test_checkpoint_of_step_names_the_steps_there_are_or_what_is_broken(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, "a")
    assert checkpoint_of_step(tmp_path, 1) == (checkpoint_folder(tmp_path, 1), 1)
    with pytest.raises(CheckpointError, match="step 3; it has those of steps 1, 2"):
        checkpoint_of_step(tmp_path, 3)
    (checkpoint_folder(tmp_path, 1) / "weights").write_text("b")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        checkpoint_of_step(tmp_path, 1)


def test_write_folder_on_a_full_disk_names_the_folder_and_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1, "old")
    with pytest.raises(CheckpointError, match=r"step-000002 cannot be written: .*File too large"), room_for(1000):
        save(tmp_path, 2, "x" * 5000)
    assert names(tmp_path) == {"step-000001"}
    assert newest(tmp_path) == (1, "old")


def test_resume_run_with_the_newest_checkpoint_flipped_ends_like_an_uninterrupted_run(
    tiny_recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run's own files: the step before is taken, and the end has the same bits as it had before the fault."""
    recipe = tiny_recipe("rl.steps=2", "cold_start.steps=2")
    start_run(recipe, tmp_path)
    last = checkpoint_folder(recipe.run_dir, 2)
    expected = {name: (last / name).read_bytes() for name in (STEP_FILE, STATE_FILE, "model.safetensors")}
    damaged = bytearray(expected["model.safetensors"])
    damaged[len(damaged) // 2] ^= 1
    (last / "model.safetensors").write_bytes(damaged)
    resume_run(recipe, recipe.run_dir)
    assert f"{last}/model.safetensors" in caplog.text
    assert {name: (last / name).read_bytes() for name in expected} == expected


@pytest.mark.parametrize("asynchronous", [True, False])
def test_learner_save_on_a_full_disk_at_each_file_ends_with_a_clear_error_and_keeps_the_last(
    asynchronous: bool, tiny_recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe(f"checkpoint.asynchronous={asynchronous}")
    learner = Learner(recipe, tmp_path, recipe.run_dir, None)
    learner.start_rl()
    first = saved(learner, 0)
    sizes = sorted({path.stat().st_size for path in first.iterdir()})
    for size in sizes:
        with pytest.raises(CheckpointError, match="step-000001 cannot be written"), room_for(size - 1):
            saved(learner, 1)
        assert names(recipe.run_dir) == {"step-000000"}
    assert latest_checkpoint(recipe.run_dir) == (first, 0)


def test_learner_save_of_a_step_saved_already_takes_nothing_of_a_later_one(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    learner = Learner(recipe, tmp_path, recipe.run_dir, None)
    learner.start_rl()
    before = (saved(learner, 0) / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(iter(learner._model.parameters())).add_(1.0)
    assert (saved(learner, 0) / "model.safetensors").read_bytes() == before


def test_learner_refuses_a_reference_that_is_changed(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    learner = Learner(recipe, tmp_path, recipe.run_dir, None)
    learner.start_rl()
    checkpoint = saved(learner, 0)
    path = learner.reference_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"reference/model\.safetensors has other content"):
        Learner(recipe, tmp_path, recipe.run_dir, checkpoint)
