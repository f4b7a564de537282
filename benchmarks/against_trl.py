"""Samepath beside TRL's GRPOTrainer: `python -m benchmarks.against_trl` (or `make bench`, which installs requirements-bench.txt first).

Each measurement runs in a process of its own, so that peak memory is that peer's alone; peers take turns, so that what else the
machine does meets both. Each peer runs as is fastest for it here: threads, wait policy and expert implementation are searched first,
for every case.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.case import Case, CaseName, PeerResult
from benchmarks.process import LONGEST_RUN_S, peer_environment, run_process
from benchmarks.report import report
from benchmarks.search import Ledger
from benchmarks.setting import OWN_EXPERTS, TRANSFORMERS_EXPERTS, Experts, PeerSetting, settings_to_try

PEERS = {"samepath": "benchmarks.samepath", "trl": "benchmarks.trl"}
EXPERTS: Mapping[str, tuple[Experts, ...]] = {"samepath": OWN_EXPERTS, "trl": TRANSFORMERS_EXPERTS}
RESULT_NAME = "bench-trl"

QUICK: dict[str, Any] = {"prompts_per_step": 4, "group_size": 4, "warmup_steps": 1, "measured_steps": 1}
"""Shows that both sides run; says nothing about speed."""
TRIAL: dict[str, Any] = {"warmup_steps": 1, "measured_steps": 2}
"""How long a setting is tried in the search."""

Chosen = dict[tuple[CaseName, str], PeerSetting]
"""By case and peer."""


def measure(peer: str, case: Case, limit_s: float = LONGEST_RUN_S) -> PeerResult:
    """Run one peer on one case in a new process. Raises BenchError if it fails or takes too long."""
    environment = peer_environment(case.setting)
    text = run_process(PEERS[peer], case.model_dump_json(), environment, f"{peer} on {case.name}", limit_s)
    return PeerResult.model_validate_json(text)


def choose_settings(
    cases: Sequence[Case], settings: Mapping[str, Sequence[PeerSetting]], changes: Mapping[str, Any], ledger: Ledger
) -> Chosen:
    """The fastest setting of each peer on each case; a peer that fails in every one has none."""
    chosen: Chosen = {}
    for case in cases:
        for peer, tried in settings.items():

            def speed(setting: PeerSetting, limit_s: float, peer: str = peer, case: Case = case) -> float:
                trial = case.model_copy(update={**changes, "setting": setting})
                return measure(peer, trial, limit_s).samples_per_s

            found = ledger.fastest(f"{peer}, {case.name}", tried, speed)
            if found is not None:
                chosen[case.name, peer] = found
    return chosen


def measurements(cases: Sequence[Case], chosen: Chosen, repeats: int, ledger: Ledger) -> list[PeerResult]:
    """Every case, `repeats` times, peers in turns; the order of the peers is turned round each time."""
    results = []
    for repeat in range(repeats):
        for case in cases:
            peers = [peer for name, peer in chosen if name == case.name]
            for peer in peers if repeat % 2 == 0 else peers[::-1]:
                setting = chosen[case.name, peer]

                def run_once(setting: PeerSetting, peer: str = peer, case: Case = case) -> PeerResult:
                    return measure(peer, case.model_copy(update={"setting": setting}))

                result = ledger.attempt(f"{peer}, {case.name}", setting, run_once)
                if result is None:
                    continue
                typer.echo(
                    f"{case.name:12} {peer:8} {setting!s:38} {result.samples_per_s:7.1f} samples/s  "
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
    """Find each peer's fastest setting, measure constant and heavy-tailed response lengths and print the tables.

    A peer that fails is named in the report and by exit status 1; the other's measurements stand.
    """
    peers = peer.split(",")
    if unknown := set(peers) - set(PEERS):
        raise typer.BadParameter(f"peers must be among {', '.join(PEERS)}; got {', '.join(sorted(unknown))}")
    if "trl" in peers and find_spec("trl") is None:
        raise typer.BadParameter("TRL is not installed: use `make bench`, or `pip install -r requirements-bench.txt`")
    cases = [Case(name=name, **(QUICK if quick else {})) for name in get_args(CaseName)]
    counts = [1] if quick else [int(count) for count in threads.split(",")]
    settings = {name: settings_to_try(counts, EXPERTS[name]) for name in peers}
    ledger = Ledger()
    chosen = choose_settings(cases, settings, {} if quick else TRIAL, ledger)
    results = measurements(cases, chosen, 1 if quick else repeats, ledger)
    page = report(results, ledger, " ".join(["python -m benchmarks.against_trl", *sys.argv[1:]]))
    typer.echo("\n" + page)
    if write:
        write_results(results, ledger, page, Path("docs/results"))
    if ledger.failures:
        raise typer.Exit(1)


def write_results(results: Sequence[PeerResult], ledger: Ledger, page: str, folder: Path) -> None:
    """The page, and everything behind it as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{RESULT_NAME}.md").write_text(page)
    raw = {"results": [result.model_dump(mode="json") for result in results], **ledger.plain()}
    (folder / f"{RESULT_NAME}.json").write_text(json.dumps(raw, indent=1) + "\n")
    typer.echo(f"wrote {folder / RESULT_NAME}.md and .json")


if __name__ == "__main__":
    typer.run(run)
