"""Files stay whole whenever the process ends and however much the disk takes."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.model.durable_file import append_lines, replace_file, replacing, whole_lines
from tests.killed import killed_at_each_call


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond `size_bytes`, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_replace_file_killed_at_each_call_holds_the_old_or_the_new_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    seen = []
    for _ in killed_at_each_call(monkeypatch, tmp_path, lambda: replace_file(path, "new")):
        seen.append(path.read_text())
        path.write_text("old")
    assert set(seen) == {"old", "new"}
    assert len(seen) >= 5, "open, sync, rename, open and sync of the folder"
    assert path.read_text() == "new"


def test_replace_file_syncs_the_content_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_replace(old: Any, new: Any) -> None:
        assert Path(old).read_text() == "new"
        calls.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    replace_file(tmp_path / "a", "new")
    assert calls == ["sync .a.partial", "rename", f"sync {tmp_path.name}"]


def test_replacing_an_error_in_the_block_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ValueError, match="closed"), replacing(path) as file:  # noqa: PT012 (the block is what is tested)
        file.write(b"half")
        raise ValueError("closed")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a", "old")]


def test_replace_file_on_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match="File too large"), room_for(1000):
        replace_file(path, "x" * 2000)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a", "old")]


def test_append_lines_on_a_full_disk_cuts_the_file_back_and_later_lines_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_lines(path, "first\n")
    with pytest.raises(OSError, match="File too large"), room_for(20):
        append_lines(path, "x" * 100 + "\n")
    assert path.read_text() == "first\n"
    append_lines(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def test_append_lines_writes_all_lines_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls could be torn between a line and its end, or between the end of a torn line and the next."""
    path, calls, write = tmp_path / "a", [], os.write
    path.write_bytes(b'{"a": 1')
    monkeypatch.setattr(os, "write", lambda descriptor, data: (calls.append(bytes(data)), write(descriptor, data))[1])
    append_lines(path, "b\nc\n")
    assert calls == [b"\nb\nc\n"]


def test_append_lines_goes_on_where_the_disk_took_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    append_lines(tmp_path / "a", "0123456789\n")
    assert (tmp_path / "a").read_text() == "0123456789\n"


def test_append_lines_to_a_device_without_room_says_so() -> None:
    with pytest.raises(OSError) as caught:
        append_lines(Path("/dev/full"), "a\n")
    assert caught.value.errno in {errno.ENOSPC, errno.EINVAL}


@given(
    old=st.lists(st.text("añ\U0001f600", max_size=4), max_size=3), cut=st.integers(0, 40), new=st.text("bé", max_size=5)
)
def test_append_lines_after_a_tear_at_any_byte_swallows_no_line(
    tmp_path_factory: pytest.TempPathFactory, old: list[str], cut: int, new: str
) -> None:
    path = tmp_path_factory.mktemp("torn") / "a.jsonl"
    whole = "".join(line + "\n" for line in old).encode()
    path.write_bytes(whole[:cut])
    before = list(whole_lines(path))
    append_lines(path, new + "\n")
    lines = list(whole_lines(path))
    assert lines[-1] == new.encode()
    assert lines[: len(before)] == before == whole[:cut].split(b"\n")[:-1]
    assert len(lines) - len(before) in {1, 2}, "the new line, and the torn one, which is ended"
