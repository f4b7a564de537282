"""Versions, machine and git state."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from samepath.rl import machine as environment
from samepath.rl.machine import (
    child_environment,
    collect_environment,
    git_state,
    package_versions,
    read_variable,
    set_missing_variables,
    usable_cores,
)

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--initial-branch", "trunk")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


@needs_git
def test_git_state_clean_then_changed_repository(repository: Path) -> None:
    clean = git_state(repository)
    assert clean["known"]
    assert len(clean["commit"]) == 40
    assert (clean["branch"], clean["dirty"], clean["diff_stat"]) == ("trunk", False, "")
    (repository / "a.txt").write_text("one\ntwo\n")
    (repository / "b.txt").write_text("new\n")
    dirty = git_state(repository)
    assert (dirty["dirty"], dirty["untracked_files"]) == (True, 1)
    assert "a.txt | 1 +" in dirty["diff_stat"]
    assert dirty["commit"] == clean["commit"]


@needs_git
def test_git_state_repository_without_commit_is_unknown(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert not git_state(tmp_path)["known"]


def test_git_state_without_git_or_folder_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no folder" in git_state(tmp_path / "nowhere")["reason"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {"known": False, "reason": "git is not installed"}


@needs_git
def test_git_state_hanging_git_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{read_variable('PATH')}")
    monkeypatch.setattr(environment, "COMMAND_TIMEOUT_S", 0.05)
    assert not git_state(tmp_path)["known"]


def test_collect_environment_is_plain_data_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "hunter2-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = json.dumps(collect_environment(tmp_path), allow_nan=False)
    assert "hunter2-secret" not in text
    collected = json.loads(text)
    assert collected["variables"]["OMP_NUM_THREADS"] == "1"
    assert collected["packages"]["torch"]
    assert collected["cpu"]["cores"] == usable_cores() >= 1
    assert not collected["git"]["known"]


def test_package_versions_missing_package_is_left_out() -> None:
    assert list(package_versions(("pydantic", "no-such-package-xyz"))) == ["pydantic"]


def test_set_missing_variables_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEPATH_TEST_A", "mine")
    monkeypatch.setenv("SAMEPATH_TEST_B", "gone")
    monkeypatch.delenv("SAMEPATH_TEST_B")
    set_missing_variables({"SAMEPATH_TEST_A": "other", "SAMEPATH_TEST_B": "new"})
    assert (read_variable("SAMEPATH_TEST_A"), read_variable("SAMEPATH_TEST_B")) == ("mine", "new")
    assert child_environment({"SAMEPATH_TEST_A": "x"})["SAMEPATH_TEST_A"] == "x"
    assert read_variable("SAMEPATH_TEST_A") == "mine"
    assert read_variable("SAMEPATH_TEST_C", "unset") == "unset"
