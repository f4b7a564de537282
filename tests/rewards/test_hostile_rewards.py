"""What each isolation keeps a hostile reward from, row by row as docs/rewards.md promises it."""

import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from samepath.rewards.request import RewardRequest
from samepath.rewards.sandbox.isolation import MODES, problem_of
from samepath.rewards.sandbox.landlock import landlock_abi
from tests.rewards.hostile import ATTACKS, HEAD

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
MAY_FAIL_ANYWAY = "take a socket out of the driver or of a sibling (`pidfd_getfd`)"
"""Blocked by some systems (Yama) without any isolation."""
FULL_ABI = 6


def request(text: str) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=text)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each isolation that works here."""
    if problem := problem_of(request.param):
        pytest.skip(problem)
    return str(request.param)


def promised(mode: str) -> dict[str, str]:
    """Attack → what the table says of it for this mode."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return {attack: dict(zip(MODES, cells, strict=True))[mode] for attack, *cells in rows if attack in ATTACKS}


@contextmanager
def targets(tmp_path: Path) -> Iterator[dict[str, object]]:
    """A run's folder, and servers that only listen."""
    run = tmp_path / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    abstract = f"\0samepath-{os.getpid()}"
    with ExitStack() as stack:
        for place in ("/var", "/dev", Path(__file__).resolve().parents[2] / "rewards"):
            # What an attack makes where nothing blocks it.
            stack.callback(Path(place, f"samepath-hostile-{os.getpid()}").unlink, missing_ok=True)
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
        tcp, udp, named, nameless = (
            stack.enter_context(socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_INET, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
            )
        )
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        named.bind(f"{folder}/socket")
        nameless.bind(abstract)
        for server in (tcp, named, nameless):
            server.listen()
        yield {
            "driver": os.getpid(),
            "run": str(run),
            "port": tcp.getsockname()[1],
            "unix": f"{folder}/socket",
            "abstract": abstract,
        }


def test_score_each_attack_succeeds_only_where_the_docs_say_so(make_runner, mode, tmp_path, monkeypatch):
    if mode == "landlock" and landlock_abi() < FULL_ABI:
        pytest.skip(f"the table is about Landlock from ABI {FULL_ABI} on")
    monkeypatch.setenv("HIDDEN_KEY", "secret")
    with targets(tmp_path) as found, make_runner(isolation=mode) as pool:
        # The attacks have one child, whose supervisor is the driver's only one.
        supervisor = psutil.Process().children()[-1].pid
        head = HEAD.format(**found, supervisor=supervisor)
        scores = pool.score([request(head + code) for code in ATTACKS.values()])
        says = {name: "open" if score.total else "blocked" for name, score in zip(ATTACKS, scores, strict=True)}
        state = Path(str(found["run"])) / "run.json"
        if mode != "none":
            assert (os.listdir(state.parent), state.read_text()) == (["run.json"], "{}")
    assert {score.status for score in scores} == {"ok"}, [score.detail for score in scores]
    expected = promised(mode)
    assert expected.keys() == ATTACKS.keys()
    if mode == "none":
        expected[MAY_FAIL_ANYWAY] = says[MAY_FAIL_ANYWAY]
        if os.geteuid() != 0:
            expected["use a capability of root, where the driver is root"] = "blocked"
            del says["make a file outside the private folder"], expected["make a file outside the private folder"]
    assert says == expected


def test_score_with_network_the_child_connects(make_runner, mode, tmp_path):
    with targets(tmp_path) as found, make_runner(isolation=mode, network=True) as pool:
        (score,) = pool.score([request(HEAD.format(**found, supervisor=os.getpid()) + ATTACKS["connect by TCP"])])
    assert score.total == 1.0


FORKS = """
for _ in range(21):
    if not os.fork():
        os.setsid()
        os.execvp("sleep", ["sleep", "{mark}"])
time.sleep(60)
"""


def test_score_more_processes_than_allowed_end_the_child_with_them(make_runner, mode, count_marked):
    mark = f"{800_000_000 + os.getpid()}"
    with make_runner(isolation=mode, max_processes=20) as pool:
        bad, good = pool.score([request(FORKS.format(mark=mark)), request("pass")])
        assert count_marked(mark) == 0
    assert bad.status == "died"
    assert "more than 20 processes at once (reward.max_processes)" in bad.detail
    assert good.total == 1.0


def test_score_as_many_processes_as_allowed_are_left_alone(make_runner, mode):
    code = "some = [subprocess.Popen(['sleep', '600']) for _ in range(20)]\ntime.sleep(0.35)"
    with make_runner(isolation=mode, max_processes=20) as pool:
        (score,) = pool.score([request(code)])
    assert score.total == 1.0


def test_score_one_file_beyond_the_bytes_allowed_is_an_error(make_runner, mode):
    with make_runner(isolation=mode, disk_bytes=1 << 20) as pool:
        bad, good = pool.score([request("open('one', 'wb').write(bytes(2 << 20))"), request("pass")])
    assert (bad.status, good.total) == ("error", 1.0)
    assert "File too large" in bad.detail or "No space left" in bad.detail


def test_score_many_files_beyond_the_bytes_allowed_are_bounded(make_runner, mode):
    code = """
os.mkdir("deep")
for number in range(32):
    open(f"deep/{number}", "wb").write(bytes(1 << 16))
time.sleep(60)
"""
    with make_runner(isolation=mode, disk_bytes=1 << 20) as pool:
        bad, good = pool.score([request(code), request("pass")])
    assert good.total == 1.0
    if mode == "bubblewrap":
        # Its folder is a file system of that size.
        assert (bad.status, "No space left" in bad.detail) == ("error", True)
    else:
        assert bad.status == "died"
        assert "more than 1048576 bytes in its folder (reward.disk_bytes)" in bad.detail


def test_score_no_descriptor_of_the_driver_is_inherited_and_no_core_is_dumped(make_runner, mode, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    fd = os.open(secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    code = """
import resource, stat
kinds = []
for name in os.listdir("/proc/self/fd"):
    try:
        kinds.append(stat.S_IFMT(os.fstat(int(name)).st_mode))
    except OSError:
        pass
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
global result
result = float(kinds.count(stat.S_IFREG))
"""
    try:
        with make_runner(isolation=mode) as pool:
            (score,) = pool.score([request(code)])
    finally:
        os.close(fd)
    assert (score.status, score.total) == ("ok", 0.0), score.detail
    assert stat.S_ISREG(secret.stat().st_mode)


def test_score_modules_of_the_user_are_found_and_the_private_folder_can_be_written(
    make_runner, mode, tmp_path, monkeypatch
):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "own_helper.py").write_text("VALUE = 0.5")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "beside"))
    code = """
import multiprocessing, tempfile, own_helper
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("here")
subprocess.run(["true"], check=True, stdout=subprocess.DEVNULL)
open("/dev/null", "w").write("x")
global result
result = own_helper.VALUE
"""
    with make_runner(isolation=mode) as pool:
        (score,) = pool.score([request(code)])
    assert (score.status, score.total) == ("ok", 0.5), score.detail
