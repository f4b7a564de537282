"""Samepath beside TRL's GRPOTrainer: `python -m benchmarks.against_trl` (or `make bench`, which installs requirements-bench.txt first).

Each measurement runs in a process of its own, so that peak memory is that peer's alone; peers take turns, so that what else the
machine does meets both.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.case import Case, CaseName, PeerResult
from benchmarks.report import report
from samepath.rl.machine import child_environment

PEERS = {"samepath": "benchmarks.samepath", "trl": "benchmarks.trl"}
RESULT_NAME = "bench-trl"
LONGEST_RUN_S = 1800.0

QUICK: dict[str, Any] = {"prompts_per_step": 4, "group_size": 4, "warmup_steps": 1, "measured_steps": 1}
"""Shows that both sides run; says nothing about speed."""


class BenchError(RuntimeError):
    """A measurement that did not finish; the message holds the end of the process's output."""


def measure(peer: str, case: Case) -> PeerResult:
    """Run one peer on one case in a new process. Raises BenchError if it fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        case_file, result_file = Path(folder) / "case.json", Path(folder) / "result.json"
        case_file.write_text(case.model_dump_json())
        command = [sys.executable, "-m", PEERS[peer], str(case_file), str(result_file)]
        try:
            done = subprocess.run(
                command,
                env=peer_environment(case.threads),
                capture_output=True,
                text=True,
                timeout=LONGEST_RUN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{peer} on {case.name} took longer than {LONGEST_RUN_S:g} s") from error
        if done.returncode or not result_file.is_file():
            raise BenchError(f"{peer} on {case.name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return PeerResult.model_validate_json(result_file.read_text())


def peer_environment(threads: int) -> dict[str, str]:
    """The same thread settings for both peers; no network, no telemetry."""
    return child_environment(
        {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # Waiting threads that spin would steal the core of the process that does the work.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    )


def measurements(cases: Sequence[Case], peers: Sequence[str], repeats: int) -> list[PeerResult]:
    """Every case, `repeats` times, peers in turns; the order of the peers is turned round each time."""
    results = []
    for repeat in range(repeats):
        for case in cases:
            for peer in peers if repeat % 2 == 0 else peers[::-1]:
                result = measure(peer, case)
                typer.echo(
                    f"{case.name:12} {peer:8} {case.threads} thread(s)  {result.samples_per_s:7.1f} samples/s  "
                    f"{result.peak_bytes / 2**20:5.0f} MiB  gap {result.gap_nats:.2g}"
                )
                results.append(result)
    return results


def run(
    quick: Annotated[bool, typer.Option(help="a smoke run of seconds; its speeds mean nothing")] = False,
    write: Annotated[bool, typer.Option(help="write docs/results/bench-trl.md and .json")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each peer on each case")] = 3,
    threads: Annotated[str, typer.Option(help="thread counts to try, with commas")] = "1,2",
    peer: Annotated[str, typer.Option(help="`samepath`, `trl` or both with a comma")] = "samepath,trl",
) -> None:
    """Measure both peers on constant and heavy-tailed response lengths and print the tables."""
    peers = peer.split(",")
    if unknown := set(peers) - set(PEERS):
        raise typer.BadParameter(f"peers must be among {', '.join(PEERS)}; got {', '.join(sorted(unknown))}")
    if "trl" in peers and find_spec("trl") is None:
        raise typer.BadParameter("TRL is not installed: use `make bench`, or `pip install -r requirements-bench.txt`")
    changes = QUICK if quick else {}
    counts = [1] if quick else [int(count) for count in threads.split(",")]
    cases = [Case(name=name, threads=count, **changes) for name in get_args(CaseName) for count in counts]
    results = measurements(cases, peers, 1 if quick else repeats)
    page = report(results, " ".join(["python -m benchmarks.against_trl", *sys.argv[1:]]))
    typer.echo("\n" + page)
    if write:
        folder = Path("docs/results")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{RESULT_NAME}.md").write_text(page)
        raw = [result.model_dump(mode="json") for result in results]
        (folder / f"{RESULT_NAME}.json").write_text(json.dumps(raw, indent=1) + "\n")
        typer.echo(f"wrote {folder / RESULT_NAME}.md and .json")


if __name__ == "__main__":
    typer.run(run)
