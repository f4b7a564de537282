"""A checkpoint that is written beside the training: one at a time, never taken for whole too early, and no error is lost."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from samepath.rl.learner.checkpoint_writer import CheckpointWriter
from samepath.rl.learner.checkpoints import CheckpointError, checkpoint_folder, latest_checkpoint
from tests.rl.learner.test_checkpoints import names, writer

WAIT_S = 60


def held(step: int) -> tuple[Callable[[Path], None], threading.Event, threading.Event]:
    """What writes a checkpoint once the second event is set; it sets the first when it begins."""
    begun, go = threading.Event(), threading.Event()

    def write(folder: Path) -> None:
        begun.set()
        assert go.wait(WAIT_S)
        writer(step, "text")(folder)

    return write, begun, go


def test_begin_comes_back_before_the_checkpoint_is_whole_and_whole_says_when(tmp_path: Path) -> None:
    checkpoints = CheckpointWriter(asynchronous=True, keep=2)
    assert checkpoints.whole(wait=False), "nothing is being written"
    write, begun, go = held(1)
    checkpoints.begin(checkpoint_folder(tmp_path, 1), lambda: write)
    assert begun.wait(WAIT_S)
    assert not checkpoints.whole(wait=False)
    assert latest_checkpoint(tmp_path) is None
    go.set()
    assert checkpoints.whole(wait=True)
    assert latest_checkpoint(tmp_path) == (checkpoint_folder(tmp_path, 1), 1)


def test_begin_waits_for_the_one_before(tmp_path: Path) -> None:
    checkpoints = CheckpointWriter(asynchronous=True, keep=2)
    write, _, go = held(1)
    checkpoints.begin(checkpoint_folder(tmp_path, 1), lambda: write)
    seen: list[set[str]] = []

    def second() -> Callable[[Path], None]:
        seen.append(names(tmp_path))
        return writer(2, "text")

    waiting = threading.Thread(target=checkpoints.begin, args=(checkpoint_folder(tmp_path, 2), second))
    waiting.start()
    assert waiting.is_alive()
    go.set()
    waiting.join(WAIT_S)
    assert checkpoints.whole(wait=True)
    assert seen == [{"step-000001"}], "the first was whole when the second's copy was taken"


def test_synchronous_begin_comes_back_when_the_checkpoint_is_whole(tmp_path: Path) -> None:
    checkpoints = CheckpointWriter(asynchronous=False, keep=1)
    threads: list[threading.Thread] = []

    def write(folder: Path) -> None:
        threads.append(threading.current_thread())
        writer(1, "text")(folder)

    checkpoints.begin(checkpoint_folder(tmp_path, 1), lambda: write)
    assert latest_checkpoint(tmp_path) == (checkpoint_folder(tmp_path, 1), 1)
    assert checkpoints.whole(wait=False)
    assert threads == [threading.current_thread()]


def test_error_of_the_writing_is_raised_by_each_later_call_with_the_folders_name(tmp_path: Path) -> None:
    checkpoints = CheckpointWriter(asynchronous=True, keep=1)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    checkpoints.begin(checkpoint_folder(tmp_path, 7), lambda: full)
    said = r"step-000007 cannot be written: .*No space left"
    with pytest.raises(CheckpointError, match=said):
        checkpoints.whole(wait=True)
    with pytest.raises(CheckpointError, match=said):
        checkpoints.whole(wait=False)
    with pytest.raises(CheckpointError, match=said):
        checkpoints.begin(checkpoint_folder(tmp_path, 8), lambda: writer(8, "text"))
    assert latest_checkpoint(tmp_path) is None
