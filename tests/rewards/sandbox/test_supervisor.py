"""Counting what stands below a supervisor."""

import os
import signal
from pathlib import Path

import pytest

from samepath.rewards.sandbox import tree
from samepath.rewards.sandbox.tree import count_descendants, descendants
from samepath.rewards.sandbox.usage import holds_more_than


@pytest.fixture
def chain():
    """A child, and two grandchildren in sessions of their own, all waiting; gives back the child's pid."""
    reader, writer = os.pipe()
    root = os.fork()
    if root == 0:
        for _ in range(2):
            if not os.fork():
                os.setsid()
                break
        os.write(writer, b"x")
        signal.pause()
    for _ in range(3):
        os.read(reader, 1)
    yield root
    for pid in [root, *descendants(root)]:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(root, 0)
    os.close(reader)
    os.close(writer)


def test_count_descendants_counts_every_generation_up_to_enough(chain):
    assert count_descendants(chain, 100) == 2
    assert count_descendants(chain, 1) >= 1
    assert chain not in descendants(chain)
    assert count_descendants(2**30, 100) == 0


def test_count_descendants_of_a_kernel_without_lists_of_children_looks_at_all_processes(chain, monkeypatch):
    def missing(path, mode):
        if path.endswith("/children"):
            raise FileNotFoundError(path)
        return open(path, mode)

    exists = os.path.exists
    monkeypatch.setattr(tree, "open", missing, raising=False)
    monkeypatch.setattr(tree.os.path, "exists", lambda path: not str(path).endswith("/children") and exists(path))
    assert count_descendants(chain, 100) == 2


def test_holds_more_than_counts_blocks_at_any_depth(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(os.urandom(1 << 20))
    (tmp_path / "link").symlink_to("/")
    assert holds_more_than(tmp_path, 1 << 20)
    assert not holds_more_than(tmp_path, 2 << 20)
    assert not holds_more_than(tmp_path / "gone", 0)


def test_holds_more_than_counts_empty_files_too(tmp_path: Path):
    for number in range(17):
        (tmp_path / str(number)).touch()
    assert holds_more_than(tmp_path, 65536)
    assert not holds_more_than(tmp_path, 17 * 4096)
