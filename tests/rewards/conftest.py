"""A module of misbehaving reward functions, runners for it, and the check that no process outlives its test."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from samepath.rewards.runner import RewardRunner
from samepath.rewards.settings import RewardSettings

OWN_MODULE = '''
import asyncio, ctypes, os, signal, subprocess, sys, time

state = []

def act(request):
    """Do what the response says."""
    exec(request.response_text, globals())
    return globals().pop("result", 1.0)

async def later(request):
    await asyncio.sleep(0)
    return float(request.response_text)

def echo(request):
    return float(request.response_text)

def halves(request):
    return {"first": 0.25, "second": 0.5}

def size(request):
    return len(request.answer["data"])
'''


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Every test must leave no child process, not even a zombie."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with `own_rewards.py` in it."""
    (tmp_path / "own_rewards.py").write_text(OWN_MODULE)
    return tmp_path


@pytest.fixture
def make_runner(folder: Path) -> Callable[..., RewardRunner]:
    """Make a runner for one function of `own_rewards.py`, or for other parts, with one child."""

    def make(function: str = "act", **changes: object) -> RewardRunner:
        parts = {"own": f"own_rewards:{function}"}
        return RewardRunner(
            RewardSettings.model_validate({"parts": parts, "search_path": str(folder), "num_workers": 1, **changes})
        )

    return make


@pytest.fixture
def assert_gone() -> Callable[[int], None]:
    """Wait until a process that is no child of ours is dead; a zombie counts, for reaping it is up to init."""

    def wait(pid: int, limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, f"process {pid} still runs"
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(timeout=0.05)

    return wait


@pytest.fixture
def count_marked() -> Callable[[str], int]:
    """Count the processes of this machine that have this name, or are a `sleep` of so many seconds."""

    def count(mark: str) -> int:
        found = 0
        # A number that another process had before would be taken for that one, which is gone.
        psutil.process_iter.cache_clear()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.name() == mark or process.cmdline() == ["sleep", mark]
        return found

    return count
