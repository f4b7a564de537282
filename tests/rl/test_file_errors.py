"""Errors of the file system as people read them."""

import errno

import pytest

from samepath.rl.file_errors import advice, said


def full_device() -> OSError:
    """What a full disk says: the kernel has one for tests."""
    with open("/dev/full", "wb", buffering=0) as device, pytest.raises(OSError) as raised:
        device.write(b"x")
    return raised.value


def test_said_names_the_files() -> None:
    assert said(PermissionError(errno.EACCES, "Permission denied", "/runs")) == "/runs: Permission denied"
    assert said(OSError(errno.EXDEV, "Cross-device link", "/a", None, "/b")) == "/a → /b: Cross-device link"
    assert said(ConnectionError("nobody answers.")) == "nobody answers"


def test_full_disk_is_said_with_what_to_do() -> None:
    error = full_device()
    assert said(error) == "No space left on device"
    assert "samepath resume" in advice(error)


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EFBIG, "Free space"),
        (errno.EACCES, "Make it writable"),
        (errno.EROFS, "Make it writable"),
        (errno.ENOTDIR, "in the way"),
        (errno.EEXIST, "in the way"),
    ],
)
def test_advice_is_about_the_cause(number: int, wanted: str) -> None:
    assert wanted in advice(OSError(number, "x"))


def test_advice_on_what_is_unknown_is_none() -> None:
    assert advice(OSError(errno.EIO, "x")) == ""
