"""The environment and the end of a measurement's process."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.process import BenchError, TooSlowError, peer_environment, run_process
from benchmarks.setting import PeerSetting


@pytest.mark.parametrize(("policy", "variable"), [("active", "ACTIVE"), ("passive", "PASSIVE"), ("unset", None)])
def test_peer_environment_has_the_settings_threads_and_policy(
    policy: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_CBWR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    environment = peer_environment(PeerSetting.model_validate({"threads": 2, "wait_policy": policy}))
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"
    assert environment.get("OMP_WAIT_POLICY") == variable
    assert "GOMP_SPINCOUNT" not in environment
    assert "KMP_BLOCKTIME" not in environment
    assert "MKL_CBWR" not in environment, "Samepath's own row-exact mode would slow the peer"
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_peer_finds_the_checkout_from_any_folder_beside_the_callers_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", "import beside, benchmarks.setting"],
        env=peer_environment(PeerSetting()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_run_process_killed_says_by_which_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text(
        "import os, sys\nprint('near the end', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    environment = {**peer_environment(PeerSetting()), "PYTHONPATH": str(tmp_path)}
    with pytest.raises(BenchError, match=r"vllm ended by signal 9:\nnear the end"):
        run_process("dies", "{}", environment, "vllm")


def test_run_process_without_a_result_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("")
    environment = {**peer_environment(PeerSetting()), "PYTHONPATH": str(tmp_path)}
    with pytest.raises(BenchError, match="peer ended with 0"):
        run_process("silent", "{}", environment, "peer")


def test_run_process_past_its_limit_is_too_slow(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import threading\nthreading.Event().wait()\n")
    environment = {**peer_environment(PeerSetting()), "PYTHONPATH": str(tmp_path)}
    with pytest.raises(TooSlowError, match="peer took longer than 0 s"):
        run_process("waits", "{}", environment, "peer", 0.5)


def test_run_process_gives_the_written_result(tmp_path: Path) -> None:
    (tmp_path / "copies.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[2]).write_text(pathlib.Path(sys.argv[1]).read_text() * 2)\n"
    )
    environment = {**peer_environment(PeerSetting()), "PYTHONPATH": str(tmp_path)}
    assert run_process("copies", "{}", environment, "peer") == "{}{}"


@pytest.mark.parametrize("module", ["benchmarks.against_trl", "benchmarks.engines"])
def test_commands_run_from_a_checkout(module: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fastest setting" in done.stdout
