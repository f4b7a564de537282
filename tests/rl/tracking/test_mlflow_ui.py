"""`samepath ui` leaves no server, however it ends: a stand-in for MLflow's server, which answers and has a child in a session of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(sys.argv[2] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[2] + ".new", sys.argv[2])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER
COMMAND = """
import sys
from samepath.rl import cli
from samepath.rl.tracking import mlflow_ui
server, pids, runs, port = sys.argv[1:]
mlflow_ui.ui_command = lambda *arguments: [sys.executable, "-c", server, port, pids]
sys.argv = ["samepath", "ui", "--runs-dir", runs, "--port", port]
cli.main()
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("number", "server", "status"),
    [
        (signal.SIGTERM, SERVER, 0),
        (signal.SIGINT, SERVER, 0),
        (signal.SIGTERM, STUBBORN, 0),
        (signal.SIGKILL, SERVER, -signal.SIGKILL),
    ],
    ids=["SIGTERM", "SIGINT", "SIGTERM-stubborn", "SIGKILL"],
)
def test_ui_command_ended_by_a_signal_leaves_nothing(
    number: signal.Signals, server: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").touch()
    pids_file = tmp_path / "pids"
    command = [sys.executable, "-c", COMMAND, server, str(pids_file), str(tmp_path), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("MLflow: http://127.0.0.1:")
        pids = [int(pid) for pid in pids_file.read_text().split()]
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        os.kill(process.pid, number)
        assert process.wait(30) == status
    deadline = time.monotonic() + 20.0
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "the server, or what it started, is still there"
        time.sleep(0.02)


def test_ui_command_whose_server_ends_by_itself_says_so(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    short = SERVER.replace(".serve_forever()", ".handle_request()")
    command = [sys.executable, "-c", COMMAND, short, str(tmp_path / "pids"), str(tmp_path), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the MLflow server ended by itself (exit status 0)" in done.stderr
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())
