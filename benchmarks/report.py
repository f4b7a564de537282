"""The benchmark's results for people: one table a case, the ratios, and what bounds each peer."""

import datetime
from collections.abc import Mapping, Sequence

from benchmarks.case import Case, PeerResult
from samepath.rl.machine import cpu_model, usable_cores

TARGETS = {"constant": 1.5, "heavy-tailed": 3.0}
"""Samples a second over the peer's that the project aims at."""

COLUMNS = (
    "peer",
    "threads",
    "samples/s",
    "engine tokens/s",
    "learner tokens/s",
    "sampling / learning / rest",
    "peak MiB",
    "above imports MiB",
    "gap, nats",
)


def median_result(results: Sequence[PeerResult]) -> PeerResult:
    """The run with the (lower) median of samples a second. Raises ValueError without results."""
    if not results:
        raise ValueError("a median needs at least one result; got none")
    return sorted(results, key=lambda result: result.samples_per_s)[(len(results) - 1) // 2]


def best_threads(results: Sequence[PeerResult]) -> PeerResult:
    """The median run at the number of threads whose median run is the fastest."""
    settings = sorted({result.case.threads for result in results})
    medians = [median_result([result for result in results if result.case.threads == count]) for count in settings]
    return max(medians, key=lambda result: result.samples_per_s)


def table_row(result: PeerResult) -> tuple[str, ...]:
    """The cells of one peer."""
    total, sampling, learning = (sum(seconds) for seconds in (result.step_s, result.sampling_s, result.learning_s))
    shares = (sampling / total, learning / total, 1 - (sampling + learning) / total)
    return (
        result.peer,
        str(result.case.threads),
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
    """Heading, table of every peer at its better number of threads, and the ratio."""
    chosen = {peer: best_threads(results) for peer, results in by_peer.items()}
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
    spread = ", ".join(
        f"{peer} with {count} thread{'s' if count > 1 else ''} "
        + " ".join(f"{result.samples_per_s:.1f}" for result in results if result.case.threads == count)
        for peer, results in by_peer.items()
        for count in sorted({result.case.threads for result in results})
    )
    return "\n".join([*lines, "", f"All runs, samples/s: {spread}."])


def report(results: Sequence[PeerResult], command: str) -> str:
    """The whole page as markdown."""
    cases: dict[str, dict[str, list[PeerResult]]] = {}
    for result in results:
        cases.setdefault(result.case.name, {}).setdefault(result.peer, []).append(result)
    versions: dict[str, str] = {}
    sizes = []
    for peer in dict.fromkeys(result.peer for result in results):
        one = next(result for result in results if result.peer == peer)
        versions |= one.versions
        sizes.append(f"{peer} {one.active_parameters:,} active of {one.parameters:,}")
    case = results[0].case
    threads = " and ".join(str(count) for count in sorted({result.case.threads for result in results}))
    head = [
        "# Samepath and TRL's GRPOTrainer, whole training steps",
        "",
        f"{datetime.datetime.now(datetime.UTC).date().isoformat()}, {cpu_model()}, {usable_cores()} cores, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Command: `{command}`.",
        "",
        f"A step: {case.prompts_per_step} prompts of 9 tokens × {case.group_size} samples, {case.updates_per_rollout} optimiser steps on "
        f"a share each, KL to a frozen reference on, temperature 1, no truncation, float32, {case.warmup_steps} steps of warm-up. "
        "Models: 4 layers, width 128, 8 experts, 2 chosen; parameters: "
        + ", ".join(sizes)
        + ". TRL generates with transformers "
        "and runs at its faster settings: no gradient checkpointing, no load-balancing loss. Each peer ran in processes of its own, "
        f"in turns, with {threads} CPU thread(s); shown is the median run at the better number. samples/s are of whole steps (median "
        "step); tokens leave out padding; peak memory is of all the peer's processes.",
    ]
    sections = [case_section(name, by_peer) for name, by_peer in cases.items()]
    return "\n\n".join(["\n".join(head), *sections]) + "\n"
