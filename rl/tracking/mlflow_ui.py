"""MLflow's web page on this machine: the command that starts it, and links that lead to the useful pages of a run."""

import contextlib
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from samepath.rl.interruption import Interruption
from samepath.rl.machine import child_environment

DEFAULT_PORT = 5000
"""The port of `samepath ui` and of links for a run that is tracked in an SQLite file."""

UI_VARIABLES = {
    # Without it the server starts a job runner with seven workers: ten processes and 1.7 GB instead of two and 0.5 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

START_TIMEOUT_S = 60.0
"""Longest wait for the page; it takes some 7 s on two free cores."""

POLL_S = 0.3
END_TIMEOUT_S = 10.0
"""Longest wait for the server to end; its guard gives it 6 s."""
LOG_NAME = "mlflow-ui.log"

logger = logging.getLogger("samepath.tracking")


def store_path(runs_dir: Path) -> Path:
    """Return the SQLite file that all runs of a folder share."""
    return runs_dir.resolve() / "mlflow.db"


def artifact_root(runs_dir: Path) -> Path:
    """Return the folder for artifacts of runs that are tracked in that SQLite file."""
    return runs_dir.resolve() / "mlartifacts"


def ui_command(runs_dir: Path, port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> list[str]:
    """Return the command that serves the runs of `runs_dir`.

    The page has no password: leave `host` at the loopback address and use an ssh tunnel to look from elsewhere.
    """
    store = store_path(runs_dir)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    return [
        *command,
        "--backend-store-uri",
        f"sqlite:///{store}",
        "--artifacts-destination",
        artifact_root(runs_dir).as_uri(),
    ]


def start_ui(runs_dir: Path, port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
    """Start the page below a guard that ends it with this process, however this one ends (on Linux); return the guard once the page answers.

    Raises:
        FileNotFoundError: nothing was tracked in this folder yet.
        RuntimeError: the server ended, or did not answer in time; its last words are in the message.
    """
    store = store_path(runs_dir)
    if not store.is_file():
        raise FileNotFoundError(
            f"the web page shows runs tracked in {store}, which does not exist. Run a recipe with tracking.kind=mlflow "
            "and the default tracking.uri first, or name the folder that holds your runs."
        )
    log_path = runs_dir / LOG_NAME
    guard = [sys.executable, "-P", "-m", "samepath.rl.tracking.ui_guard", str(os.getpid())]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*guard, *ui_command(runs_dir, port, host)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment(UI_VARIABLES),
            start_new_session=True,
        )
    with contextlib.ExitStack() as failed:
        failed.callback(end_ui, process)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(f"http://{host}:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(encoding="utf-8", errors="replace")[-600:]
                raise RuntimeError(
                    f"mlflow server did not answer on {host}:{port}; see {log_path}. It ends with:\n{tail}"
                )
            time.sleep(POLL_S)
        failed.pop_all()
    return process


def end_ui(process: subprocess.Popen[bytes]) -> None:
    """End what `start_ui` started, in bounded time."""
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        logger.warning(
            "waited %.0f s for the MLflow server (process %d) to end: killed it; look for what it left with `ps`",
            END_TIMEOUT_S,
            process.pid,
        )


def serve_ui(runs_dir: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM, and end the server with it. Raises as `start_ui`, and RuntimeError if the server ends by itself."""
    with Interruption().caught(), contextlib.suppress(KeyboardInterrupt):
        process = start_ui(runs_dir, port)
        try:
            say(f"MLflow: http://127.0.0.1:{port}  (Ctrl-C ends it)")
            status = process.wait()
        finally:
            end_ui(process)
        raise RuntimeError(f"the MLflow server ended by itself (exit status {status}); see {runs_dir / LOG_NAME}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def links(uri: str, experiment_id: str, run_id: str, port: int = DEFAULT_PORT) -> dict[str, str]:
    """Return links to a run's pages by name: `charts`, `run`, `rollouts` and `compare`.

    For a store in a file they lead to the page that `samepath ui` serves on `port`. They skip MLflow's start page, which
    shows request counts and latencies as soon as an experiment has MLflow traces.
    """
    is_server = urlsplit(uri).scheme in ("http", "https")
    base = uri.rstrip("/") if is_server else f"http://127.0.0.1:{port}"
    experiment = f"{base}/#/experiments/{quote(experiment_id)}"
    run = f"{experiment}/runs/{quote(run_id)}"
    return {
        "charts": f"{run}/model-metrics",
        "run": run,
        "rollouts": f"{run}/traces",
        "compare": f"{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART",
    }
