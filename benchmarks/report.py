"""The benchmark's results for people: one table a case, the ratios, and what bounds each peer."""

import datetime
from collections.abc import Mapping, Sequence

from benchmarks.case import Case, PeerResult
from benchmarks.search import Failure, Ledger, Trial
from samepath.rl.machine import cpu_model, usable_cores

TARGETS = {"constant": 1.5, "heavy-tailed": 3.0}
"""Samples a second over the peer's that the project aims at."""

COLUMNS = (
    "peer",
    "setting",
    "samples/s",
    "engine tokens/s",
    "learner tokens/s",
    "sampling / learning / rest",
    "peak MiB",
    "above imports MiB",
    "gap, nats",
)


def median_result(results: Sequence[PeerResult]) -> PeerResult:
    """The run with the (lower) median of samples per second. Raises ValueError without results."""
    if not results:
        raise ValueError("a median needs at least one result; got none")
    return sorted(results, key=lambda result: result.samples_per_s)[(len(results) - 1) // 2]


def table_row(result: PeerResult) -> tuple[str, ...]:
    """The cells of one peer."""
    total, sampling, learning = (sum(seconds) for seconds in (result.step_s, result.sampling_s, result.learning_s))
    shares = (sampling / total, learning / total, 1 - (sampling + learning) / total)
    return (
        result.peer,
        str(result.case.setting),
        f"{result.samples_per_s:.1f}",
        f"{result.engine_tokens_per_s:,.0f}",
        f"{result.learner_tokens_per_s:,.0f}",
        " / ".join(f"{share:.0%}" for share in shares),
        f"{result.peak_bytes / 2**20:.0f}",
        f"{(result.peak_bytes - result.idle_bytes) / 2**20:.0f}",
        f"{result.gap_nats:.2g}",
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up as plain text too."""
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (columns, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def describe_lengths(case: Case) -> str:
    """What the response lengths of a case are."""
    if case.name == "constant":
        return f"every response {case.constant_tokens} tokens"
    return (
        f"a Pareto distribution of shape 1 from {case.shortest_tokens}, cut at {case.longest_tokens} tokens (mean about 32, median "
        "18), one length for all samples of a prompt, the same list for both peers"
    )


def case_section(name: str, by_peer: Mapping[str, Sequence[PeerResult]]) -> str:
    """Heading, table of every peer's median run, and the ratio."""
    chosen = {peer: median_result(results) for peer, results in by_peer.items()}
    first = next(iter(chosen.values()))
    lines = [f"## {name}: {describe_lengths(first.case)}", ""]
    lines.append(markdown_table(COLUMNS, [table_row(result) for result in chosen.values()]))
    if "samepath" in chosen and "trl" in chosen:
        own, peer = chosen["samepath"], chosen["trl"]
        lines += [
            "",
            f"Samepath over TRL: {own.samples_per_s / peer.samples_per_s:.2f}× the samples/s (target {TARGETS[name]:g}×), "
            f"{own.peak_bytes / peer.peak_bytes:.2f}× the peak memory (target at most 1×).",
        ]
    spread = "; ".join(
        f"{peer} " + " ".join(f"{result.samples_per_s:.1f}" for result in results) for peer, results in by_peer.items()
    )
    return "\n".join([*lines, "", f"All runs, samples/s: {spread}."])


def search_section(trials: Sequence[Trial], unit: str) -> str:
    """Every setting that was tried, fastest first within its peer and case."""
    rows = []
    for what in dict.fromkeys(trial.what for trial in trials):
        tried = [trial for trial in trials if trial.what == what]
        tried.sort(key=lambda trial: -1.0 if trial.speed is None else trial.speed, reverse=True)
        rows += [
            (trial.what, str(trial.setting), trial.note if trial.speed is None else f"{trial.speed:,.1f}")
            for trial in tried
        ]
    table = markdown_table(("peer and case", "setting", unit), rows)
    return f"## Settings tried, one short run of each\n\n{table}"


def failure_section(failures: Sequence[Failure]) -> str:
    """What ended without a result, with the last lines of its output."""
    parts = ["## What failed"]
    for failure in failures:
        last_lines = "\n".join(failure.message.strip().splitlines()[-12:])
        parts.append(f"{failure.what}, {failure.setting}:\n\n```text\n{last_lines}\n```")
    return "\n\n".join(parts)


def closing_sections(ledger: Ledger, unit: str) -> list[str]:
    """What was tried and what failed, where there is any."""
    return [
        *([search_section(ledger.trials, unit)] if ledger.trials else []),
        *([failure_section(ledger.failures)] if ledger.failures else []),
    ]


def machine_line(versions: Mapping[str, str], command: str) -> str:
    """Date, machine, versions and the command that made a page."""
    return (
        f"{datetime.datetime.now(datetime.UTC).date().isoformat()}, {cpu_model()}, {usable_cores()} cores, "
        + "".join(f"{name} {version}, " for name, version in versions.items()).removesuffix(", ")
        + f". Command: `{command}`."
    )


def describe_measurement(results: Sequence[PeerResult]) -> str:
    """What a step is, which models ran, and how the peers were run."""
    ones = {result.peer: result for result in results}
    sizes = [f"{peer} {one.active_parameters:,} active of {one.parameters:,}" for peer, one in ones.items()]
    case = results[0].case
    return (
        f"A step: {case.prompts_per_step} prompts of 9 tokens × {case.group_size} samples, {case.updates_per_rollout} optimiser steps on "
        f"a share each, KL to a frozen reference on, temperature 1, no truncation, float32, {case.warmup_steps} steps of warm-up. "
        "Models: 4 layers, width 128, 8 experts, 2 chosen; parameters: "
        + ", ".join(sizes)
        + ". TRL generates with transformers, without gradient checkpointing or load-balancing loss. Each peer ran as is fastest for it "
        "on this machine (threads, OpenMP's wait policy, expert implementation: tables at the end), in processes of its own, in turns; "
        "shown is the median run. samples/s are of whole steps (median step); tokens leave out padding; peak memory is of all the "
        "peer's processes."
    )


def report(results: Sequence[PeerResult], ledger: Ledger, command: str) -> str:
    """The whole page as markdown; without results it still says what was tried and what failed."""
    cases: dict[str, dict[str, list[PeerResult]]] = {}
    versions: dict[str, str] = {}
    for result in results:
        cases.setdefault(result.case.name, {}).setdefault(result.peer, []).append(result)
        versions |= result.versions
    parts = ["# Samepath and TRL's GRPOTrainer, whole training steps", machine_line(versions, command)]
    if results:
        parts.append(describe_measurement(results))
    parts += [case_section(name, by_peer) for name, by_peer in cases.items()]
    return "\n\n".join([*parts, *closing_sections(ledger, "samples/s")]) + "\n"
