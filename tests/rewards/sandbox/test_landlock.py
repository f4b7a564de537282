"""What each ABI of Landlock blocks, in a process of its own."""

import os
import socket
import traceback
from pathlib import Path

import pytest

from samepath.rewards.sandbox.landlock import landlock_abi, restrict, still_open

needs_landlock = pytest.mark.skipif(
    landlock_abi() < 4, reason="Landlock from ABI 4 on is needed to act as the earlier ones"
)


def outcomes(abi: int, outside: Path, port: int, *, network: bool) -> set[str]:
    """What succeeds in a child that is restricted to the folder `own` as a kernel with this ABI does it."""
    (outside / "own").mkdir()
    (outside / "file").write_text("text")
    attempts = {
        "own": lambda: (outside / "own" / "new").write_text("x"),
        "write": lambda: (outside / "file").open("a").close(),
        "cut": lambda: os.truncate(outside / "file", 1),
        "make": lambda: (outside / "new").write_text("x"),
        "null": lambda: Path("/dev/null").write_text("x"),
        "read": lambda: (outside / "file").read_text(),
        "tcp": lambda: socket.create_connection(("127.0.0.1", port)).close(),
    }
    reader, writer = os.pipe()
    if not os.fork():
        try:
            restrict(abi, outside / "own", network=network)
            for name, attempt in attempts.items():
                try:
                    attempt()
                except OSError:
                    continue
                os.write(writer, f"{name} ".encode())
        finally:
            traceback.print_exc()
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.wait()
    return set(said.split())


@needs_landlock
@pytest.mark.parametrize(
    ("abi", "network", "more"),
    [
        (1, False, {"cut", "tcp"}),
        (2, False, {"cut", "tcp"}),
        (3, False, {"tcp"}),
        (4, False, set()),
        (4, True, {"tcp"}),
    ],
)
def test_restrict_blocks_what_the_abi_knows(tmp_path, abi, network, more):
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = outcomes(abi, tmp_path, server.getsockname()[1], network=network)
    assert found == {"own", "null", "read"} | more


def test_still_open_names_what_an_abi_does_not_block():
    assert still_open(2, network=False) == [
        "files can be truncated",
        "TCP is open",
        "signals reach processes of the same user",
    ]
    assert still_open(5, network=False) == ["signals reach processes of the same user"]
    assert still_open(3, network=True) == ["signals reach processes of the same user"]
    assert still_open(7, network=False) == []
