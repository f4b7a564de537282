"""A measurement in a process of its own: its environment, its result, and what a process that failed leaves."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.setting import PeerSetting
from samepath.rl.machine import child_environment, read_variable

LONGEST_RUN_S = 1800.0
CHECKOUT = Path(__file__).resolve().parents[1]
"""Where `benchmarks` stands, which no installation has."""
MOST_OUTPUT = 4000
"""Characters of a failed process's output that are kept, from its end."""


class BenchError(RuntimeError):
    """A measurement that did not finish; the message holds the end of the process's output."""


class TooSlowError(BenchError):
    """A measurement that was stopped at its limit."""


def peer_environment(setting: PeerSetting) -> dict[str, str]:
    """Variables of a peer's process: its setting's threads and wait policy and nobody else's; the checkout's modules; no network, no telemetry."""
    path = [str(CHECKOUT), read_variable("PYTHONPATH")]
    environment = child_environment(
        {
            "PYTHONPATH": os.pathsep.join(entry for entry in path if entry),
            "OMP_NUM_THREADS": str(setting.threads),
            "MKL_NUM_THREADS": str(setting.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    )
    # What stands in the caller's environment would meet every setting alike, or overrule it; MKL's mode each peer sets itself, or does not.
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_CBWR"):
        environment.pop(name, None)
    if setting.wait_policy != "unset":
        environment["OMP_WAIT_POLICY"] = setting.wait_policy.upper()
    return environment


def run_process(
    module: str, case_json: str, environment: Mapping[str, str], what: str, limit_s: float = LONGEST_RUN_S
) -> str:
    """Run `python -m module case.json result.json` and return the result's text.

    Raises BenchError if it fails, TooSlowError if it takes longer than `limit_s` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        case_file, result_file = Path(folder) / "case.json", Path(folder) / "result.json"
        case_file.write_text(case_json)
        command = [sys.executable, "-m", module, str(case_file), str(result_file)]
        try:
            done = subprocess.run(
                command, env=dict(environment), capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise TooSlowError(f"{what} took longer than {limit_s:.0f} s") from error
        if done.returncode or not result_file.is_file():
            ended = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {done.returncode}"
            raise BenchError(f"{what} ended {ended}:\n{done.stderr[-MOST_OUTPUT:]}")
        return result_file.read_text()
