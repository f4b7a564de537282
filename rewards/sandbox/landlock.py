"""Landlock: a process gives up, for itself and all that it starts, to write outside one folder (Linux ≥ 5.13, no privileges needed).

Each kernel's interface has a number, its ABI; what was added later is not blocked before it (`still_open`). Numbers and structures:
linux/landlock.h, Documentation/userspace-api/landlock.rst.
"""

import ctypes
import os
import sys
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls; the numbers are the same on every architecture."""
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522

WRITE_FILE, IOCTL_DEV, REFER, TRUNCATE = 1 << 1, 1 << 15, 1 << 13, 1 << 14
CHANGES_ABI_1 = WRITE_FILE | sum(1 << bit for bit in range(4, 13))
"""Writing, removing files and folders, making anything of any kind; reading (bits 2, 3) and executing (bit 0) stay free."""
TCP = 0b11
"""Bind and connect."""
SCOPE = 0b11
"""Abstract Unix sockets and signals of processes that are not restricted likewise."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""Still open for writing: programs expect it, and it changes nothing."""


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class LandlockError(OSError):
    """The kernel refused a restriction that it says it knows."""


def landlock_abi() -> int:
    """The kernel's ABI number, 1 or more; 0 where there is no Landlock."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    abi: int = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), CREATE_RULESET_VERSION)
    return max(0, abi)


def still_open(abi: int, network: bool) -> list[str]:
    """What this ABI does not block although it was asked for."""
    return [
        what
        for since, what in (
            (3, "files can be truncated"),
            (4, "TCP is open"),
            (6, "signals reach processes of the same user"),
        )
        if abi < since and not (network and since == 4)
    ]


def restrict(abi: int, folder: Path, *, network: bool) -> None:
    """Allow this process, which must have one thread, to change files below `folder` only; TCP too goes unless `network`.

    It also gives up every capability, because root could load a kernel module or restart the machine. Raises LandlockError.
    """
    changes = CHANGES_ABI_1
    changes |= REFER if abi >= 2 else 0
    changes |= TRUNCATE if abi >= 3 else 0
    changes |= IOCTL_DEV if abi >= 5 else 0
    rules = _RulesetAttr(fs=changes, net=TCP if abi >= 4 and not network else 0, scoped=SCOPE if abi >= 6 else 0)
    ruleset = _call(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    try:
        _allow(ruleset, str(folder), changes)
        for device in filter(os.path.exists, DEVICES):
            _allow(ruleset, device, changes & (WRITE_FILE | TRUNCATE | IOCTL_DEV))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise LandlockError(ctypes.get_errno(), "no_new_privs is refused")
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    _drop_capabilities(libc)


def _allow(ruleset: int, path: str, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneathAttr(allowed=rights, parent_fd=parent)
        _call(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Set the permitted, effective and inheritable sets to nothing; no_new_privs keeps a program of root's from getting them back."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise LandlockError(ctypes.get_errno(), "capabilities cannot be given up")


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise LandlockError(code, f"Landlock refuses call {number}: {os.strerror(code)}")
    return result
