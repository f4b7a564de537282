"""What a run was made on: package versions, machine, code state; and the place where environment variables are read, MKL's mode aside."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from samepath.rollout.engine_settings import ENGINES

PACKAGES = (
    "samepath",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "ray",
    *(name for engine in ENGINES for name in engine.distributions),
    "mlflow",
    "math-verify",
    "reasoning-gym",
    "datasets",
)
"""Packages whose version changes what a run computes."""

RECORDED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "HF_HUB_OFFLINE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
)
"""Variables that change results or speed. An allow-list: the rest of the environment may hold secrets and is never recorded."""

COMMAND_TIMEOUT_S = 5.0
"""Longest wait for git or nvidia-smi; a hanging network file system must not hold up a run."""

MAX_DIFF_STAT_CHARS = 4000
"""Longest diff summary that is kept."""


def read_variable(name: str, default: str = "") -> str:
    """Return the environment variable `name`, or `default` where it is not set."""
    return os.environ.get(name, default)


def set_missing_variables(values: Mapping[str, str]) -> None:
    """Set those environment variables that the user has not set; what the user set stays."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `changes` laid over it, for a child process."""
    return {**os.environ, **changes}


def gpu_alone(number: int) -> dict[str, str]:
    """Variables of a child that sees one of this process's GPUs alone, that of `number` counted from 0."""
    visible = [name for name in read_variable("CUDA_VISIBLE_DEVICES").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[number] if visible else str(number)}


def keep_to_loopback() -> None:
    """Let torch's gloo listen on the loopback interface alone, in this process and its children, unless the user chose another."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            set_missing_variables({"GLOO_SOCKET_IFNAME": name})
            return


def import_path(recipe_dir: Path) -> dict[str, str]:
    """Variables of every actor and worker: modules beside the recipe and in the working directory must be importable there."""
    path = [str(Path.cwd()), str(recipe_dir.resolve()), read_variable("PYTHONPATH")]
    return {"PYTHONPATH": ":".join(entry for entry in path if entry), "MLFLOW_DISABLE_TELEMETRY": "true"}


def find_own_modules(recipe_dir: Path) -> None:
    """Let this process import modules beside the recipe and in the working directory, behind all others."""
    for folder in (str(recipe_dir.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


def collect_environment(folder: Path | None = None) -> dict[str, Any]:
    """Describe versions, machine and code state as plain data (JSON-able).

    Args:
        folder: Where the run was started, for its git state; the working directory if not given.
    """
    started_in = Path.cwd() if folder is None else folder
    code = Path(__file__).resolve().parent
    return {
        "packages": package_versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": {"model": cpu_model(), "cores": usable_cores()},
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": list_gpus(),
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_state(started_in),
        "samepath_git": git_state(code),
    }


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each package; packages that are not installed are left out."""
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def cpu_model() -> str:
    """Return the processor's name as the operating system gives it, or the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many processor cores this process may use (its affinity, where the system knows it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def list_gpus() -> list[str]:
    """Return `name, memory, driver` of each NVIDIA GPU; empty without the driver's own tool."""
    output = _run(("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"))
    return [line.strip() for line in (output or "").splitlines() if line.strip()]


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit, branch and uncommitted changes of the repository around `folder`.

    `known` is False, with a `reason`, where there is no git, no repository, no commit, or no answer within the time limit.
    `diff_stat` is git's own summary of changes to tracked files, without their content.
    """
    if shutil.which("git") is None:
        return {"known": False, "reason": "git is not installed"}
    if not folder.is_dir():
        return {"known": False, "reason": f"{folder} is no folder"}
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"known": False, "reason": "no repository with a commit, or git did not answer"}
    status = _git(folder, "status", "--porcelain")
    diff_stat = _git(folder, "diff", "--stat", "HEAD") or ""
    return {
        "known": True,
        "commit": commit.strip(),
        "branch": (_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "dirty": bool((status or "").strip()),
        "untracked_files": sum(line.startswith("??") for line in (status or "").splitlines()),
        "diff_stat": diff_stat.strip()[:MAX_DIFF_STAT_CHARS],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    return _run(("git", "-C", str(folder), "--no-optional-locks", *arguments))


def _run(command: Sequence[str]) -> str | None:
    """Return the command's output, or None where it is missing, fails, or takes longer than the limit."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=child_environment({"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
