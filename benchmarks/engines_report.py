"""The engines' results for people: one table a model, and the built-in engine's ratios to the others."""

from collections.abc import Sequence

from benchmarks.engines_case import EngineCase, EngineResult
from benchmarks.report import closing_sections, machine_line, markdown_table
from benchmarks.search import Ledger

COLUMNS = (
    "engine",
    "precision",
    "setting",
    "tokens/s",
    "all runs",
    "first token, ms",
    "weight update, ms",
    "start, s",
    "peak MiB",
)
TARGETS = {"generate": 5.0, "vllm": 1.0}
"""Tokens a second of the built-in engine over the peer's that the project aims at, on the tiny mixture of experts."""

Setting = tuple[str, str, int]
"""(engine, precision, threads)."""


def setting_of(result: EngineResult) -> Setting:
    """What distinguishes the rows of one model's table."""
    return result.case.peer, result.case.precision, result.case.setting.threads


def median_by_setting(results: Sequence[EngineResult]) -> dict[Setting, EngineResult]:
    """The run with the (lower) median of tokens per second for each engine, precision and thread count, in order of appearance."""
    grouped: dict[Setting, list[EngineResult]] = {}
    for result in results:
        grouped.setdefault(setting_of(result), []).append(result)
    return {
        setting: sorted(group, key=lambda result: result.tokens_per_s)[(len(group) - 1) // 2]
        for setting, group in grouped.items()
    }


def table_row(result: EngineResult, runs: Sequence[EngineResult]) -> tuple[str, ...]:
    """The cells of one engine."""
    return (
        result.case.peer,
        result.case.precision,
        str(result.case.setting),
        f"{result.tokens_per_s:,.0f}",
        " ".join(f"{run.tokens_per_s:,.0f}" for run in runs),
        f"{1000 * result.first_token_s:.1f}",
        f"{1000 * result.update_s:.0f}",
        f"{result.start_s:.1f}",
        f"{result.peak_bytes / 2**20:.0f}",
    )


def ratios(medians: dict[Setting, EngineResult], with_targets: bool) -> list[str]:
    """A line for every other engine at the same number of threads."""
    lines = []
    for (peer, _, threads), own in medians.items():
        if peer != "builtin":
            continue
        for (other, precision, count), result in medians.items():
            if other == "builtin" or count != threads:
                continue
            target = f" (target at least {TARGETS[other]:g}×)" if with_targets else ""
            lines.append(
                f"- {threads} thread{'s' if threads > 1 else ''}: built-in over {other} in {precision}: "
                f"{own.tokens_per_s / result.tokens_per_s:.2f}× the tokens/s{target}, "
                f"{own.peak_bytes / result.peak_bytes:.2f}× the peak memory"
            )
    return lines


def describe_measurement(case: EngineCase) -> str:
    """What was asked of every engine, and what the columns hold."""
    return (
        f"{case.num_sequences} sequences of {case.prompt_tokens} prompt and {case.new_tokens} sampled tokens, temperature 1, nothing "
        f"truncated; no two prompts share a prefix. tokens/s: sampled tokens, median of {case.rounds} rounds after one of warm-up. First token: "
        "one fresh prompt alone. Weight update: a full set of new weights from this process's memory (`generate`: a plain copy). Start: "
        "imports and construction. Peak memory: of the whole process, a second copy of the weights (the update's source) included. Every "
        "measurement ran in a process of its own, as is fastest for that engine at that number of threads on this machine (OpenMP's wait "
        "policy, expert implementation: table at the end); engines took turns."
    )


def model_section(model: str, chosen: Sequence[EngineResult]) -> str:
    """Heading, table of every engine, and the ratios."""
    medians = median_by_setting(chosen)
    rows = [
        table_row(result, [run for run in chosen if setting_of(run) == setting]) for setting, result in medians.items()
    ]
    lines = [f"## {model}, {chosen[0].parameters:,} parameters", "", markdown_table(COLUMNS, rows), ""]
    return "\n".join([*lines, *ratios(medians, model == "tiny-qwen3-moe")])


def report(results: Sequence[EngineResult], ledger: Ledger, command: str) -> str:
    """The whole page as markdown; without results it still says what was tried and what failed."""
    versions: dict[str, str] = {}
    for result in results:
        versions |= result.versions
    parts = ["# Engines side by side", machine_line(versions, command)]
    if results:
        parts.append(describe_measurement(results[0].case))
    for model in dict.fromkeys(result.case.model for result in results):
        parts.append(model_section(model, [result for result in results if result.case.model == model]))
    return "\n\n".join([*parts, *closing_sections(ledger, "tokens/s")]) + "\n"
