"""Where things stand inside bubblewrap."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from samepath.rewards.sandbox.bubblewrap import bubblewrap_command, bubblewrap_problem, readable_paths

needs_bubblewrap = pytest.mark.skipif(bool(bubblewrap_problem()), reason=bubblewrap_problem() or "it works")


def seen(folder: Path, readable: list[Path], code: str) -> str:
    command = bubblewrap_command(
        folder, [sys.executable, "-I", "-c", code], readable=readable, disk_bytes=1 << 20, network=False
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_bubblewrap
def test_bubblewrap_command_shows_below_tmp_only_what_must_be_read():
    with tempfile.TemporaryDirectory(dir="/tmp") as shown, tempfile.TemporaryDirectory(dir="/tmp") as hidden:
        (Path(shown) / "module.py").write_text("x = 1")
        folder = Path("/tmp/samepath-test-private")
        code = f"""
import os
print(os.getcwd(), os.path.exists({shown!r} + "/module.py"), os.path.exists({hidden!r}), os.access({shown!r}, os.W_OK))
open("own", "w").close()
open("/tmp/other", "w").close()
"""
        readable = [*readable_paths({}, Path(shown), network=False)]
        assert seen(folder, readable, code) == f"{folder} True False False"
    assert not folder.exists()


@needs_bubblewrap
def test_bubblewrap_command_whose_modules_lie_in_tmp_itself_still_has_a_private_folder():
    """`/tmp` is then read-only, and the private folder lies over the one that exists."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        code = "import os; open('own', 'w').close(); print(os.getcwd(), os.access('/tmp', os.W_OK))"
        assert seen(Path(folder), [Path("/tmp"), *readable_paths({}, Path(), network=False)], code) == f"{folder} False"
        assert list(Path(folder).iterdir()) == []


def test_readable_paths_hold_interpreter_modules_and_targets_of_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = readable_paths(
        {"PYTHONPATH": f"{tmp_path}/a:{tmp_path}/b", "PATH": f"/bin:{tmp_path}/bin"}, tmp_path / "link", network=False
    )
    expected = {
        tmp_path / "a",
        tmp_path / "bin",
        tmp_path / "b",
        tmp_path / "link",
        tmp_path / "real",
        Path(sys.prefix),
        Path(sys.base_prefix),
    }
    assert expected <= set(found)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bwrap")
def test_bubblewrap_problem_is_none_where_bwrap_itself_can_make_namespaces():
    """So that a wrong option of ours is no reason to skip every test of bubblewrap."""
    plain = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]
    if subprocess.run(plain, capture_output=True, check=False).returncode:
        pytest.skip("bwrap can make no namespaces here")
    assert bubblewrap_problem() == ""
