"""The pictures of a run's report: which metrics stand together, and how they are drawn."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from samepath.rl.report.drawing import Line, heat_svg, line_svg, stacked_svg
from samepath.rl.report.panel import DrawnPanel, drawn_panel

Steps = Mapping[int, Mapping[str, float]]
"""Metrics by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPanel:
    """One picture.

    Example:
        ReportPanel(title="Route flips by layer", unit="share", names=("routing/flip_rate.layer_*",), kind="heat")
    """

    title: str
    unit: str
    names: tuple[str, ...]
    """Metric names, `*` standing for anything; all that the run has are drawn."""
    kind: Literal["lines", "stacked", "heat"] = "lines"
    """Curves, parts of a sum, or a row of colour for each layer."""
    logarithmic: bool = False
    """True where the values span orders of magnitude."""
    with_delta: bool = False
    """True where δ of the off-policy mask is a level of the picture."""
    left_out: tuple[str, ...] = ()
    """Names that are not drawn although they fit."""


def _lines(title: str, unit: str, *names: str, logarithmic: bool = False) -> ReportPanel:
    return ReportPanel(title=title, unit=unit, names=names, logarithmic=logarithmic)


def _heat(title: str, unit: str, name: str) -> ReportPanel:
    return ReportPanel(title=title, unit=unit, names=(f"{name}.layer_*",), kind="heat")


QUANTILES = ("_p50", "_p90", "_p99", "_max")
SECTIONS: Mapping[str, tuple[ReportPanel, ...]] = {
    "Does it learn?": (
        _lines("Held-out accuracy", "share right", "eval/accuracy", "evaluation/*/accuracy"),
        _lines("Reward", "mean reward", "reward/mean", "reward/part.*"),
        _lines(
            "Groups that teach nothing",
            "share of groups",
            *(f"reward/groups_{kind}" for kind in ("no_spread", "all_right", "all_wrong", "unusable")),
        ),
        _lines("Reward by dataset", "mean reward", "dataset/*/reward_mean"),
        _lines("What is learned from, by dataset", "share of tokens", "dataset/*/token_share"),
        _lines("Entropy", "nats per token", "policy/entropy"),
    ),
    "How far from the reference?": (
        _lines(
            "KL to the reference",
            "nats per token",
            *(f"kl/reference_{kind}" for kind in ("unbiased", "k1", "k3", "full")),
        ),
    ),
    "Is the learner on the sampler's path?": (
        _lines(
            "KL sampler → learner: numerics and drift",
            "nats per token",
            *(f"kl/sampler_k3{part}" for part in ("", "_numerics", "_drift")),
            logarithmic=True,
        ),
        _lines("Largest gap of a token", "nats", "policy/gap_at_lag_0", "kl/sampler_gap_max", logarithmic=True),
        ReportPanel(
            title="Off-policy statistic and δ",
            unit="nats per token",
            names=tuple(f"policy/off_policy{end}" for end in QUANTILES),
            with_delta=True,
        ),
        _lines(
            "Masked share",
            "share",
            *(f"policy/masked_{what}{end}" for what in ("sequences", "tokens") for end in ("", "_negative")),
        ),
        _lines("Effective sample size", "share", "policy/ess", "policy/ess_after_mask"),
        _lines("Ratio and clipping", "mean ratio, share", "policy/ratio", "policy/clip_low", "policy/clip_high"),
        _lines("Weight lag", "versions", "rollout/weight_lag_mean", "rollout/weight_lag_max"),
    ),
    "Routes and keys": (
        _heat("Route flips by layer", "share", "routing/flip_rate"),
        _lines("Route flips", "share", "routing/flip_rate", "routing/flip_rate_at_lag_0", "routing/missing"),
        _heat("Load of the busiest expert by layer", "over the mean", "routing/load_max_over_mean"),
        _heat("Evenness of the expert load by layer", "entropy / log E", "routing/load_entropy"),
        _heat("Key selection that differs by layer", "share of rows", "routing/selection_mismatch"),
        _lines("Indexer", "nats", "indexer/kl"),
    ),
    "Candidates": (
        _lines("Support sizes", "candidates", *(f"policy/support_size{end}" for end in QUANTILES), logarithmic=True),
        _lines("Kept mass", "probability", "policy/kept_mass", "policy/kept_mass_min", "policy/support_full"),
    ),
    "Rollouts": (
        _lines("Response lengths", "tokens", *(f"rollout/length{end}" for end in ("_mean", *QUANTILES))),
        _lines("Cut and failed responses", "share", "rollout/truncated", "rollout/failed", "conversation/malformed"),
        _lines("Turns and calls of a conversation", "mean", "conversation/turns_mean", "conversation/calls_mean"),
    ),
    "Learner and time": (
        _lines("Gradient norm", "norm", "learner/grad_norm", "indexer/grad_norm", logarithmic=True),
        _lines("Learning rate", "rate", "learner/lr"),
        ReportPanel(
            title="Time by phase", unit="seconds", names=("time/*_s",), kind="stacked", left_out=("time/step_s",)
        ),
        _lines("Tokens a second", "tokens a second", "rollout/tokens_per_s", "learner/tokens_per_s", logarithmic=True),
        _lines("Idle share", "share", "rollout/idle_share", "learner/idle_share"),
        _lines("Learner ranks in collectives", "share", "learner/collectives_share", "learner/collectives_share_least"),
        _lines("Memory", "GiB", "memory/driver_gib", "memory/learner_gib", "learner/gpu_peak_gib"),
    ),
}
"""Pictures by the question that they answer; those that a run has no finite value for are left out."""


TEXT_SECTIONS: Mapping[str, tuple[ReportPanel, ...]] = {
    "What does the selection cost?": (
        _lines("Perplexity above that over all keys", "share", "sparse/excess", "sparse/excess_top*"),
        _lines("Perplexity on the held-out text", "perplexity", "sparse/perplexity", "sparse/dense_perplexity"),
        _lines("KL of the logits", "nats per token", "sparse/logits_kl"),
        _lines("Needles", "share, probability", "sparse/needle_*"),
    ),
    "Does the indexer find the keys?": (
        _lines("Recall", "share of attention", "sparse/recall", "sparse/recall_min", "sparse/recall_best"),
        _lines("Output error", "relative", "sparse/output_error", "sparse/output_error_max"),
        _lines("The indexer's loss", "nats per row and layer", "text/indexer_kl"),
    ),
    "Trainer and time": (
        _lines("Loss of the step", "nats per token", "text/loss"),
        _lines("Gradient norm", "norm", "text/grad_norm", "text/indexer_grad_norm", logarithmic=True),
        _lines("Learning rate", "rate", "text/lr"),
        _lines("Tokens a second", "tokens a second", "text/tokens_per_s"),
        _lines("Memory", "GiB", "memory/learner_gib"),
    ),
}
"""The same of a run on text."""


def drawn_sections(
    by_step: Steps, delta: float | None, sections: Mapping[str, tuple[ReportPanel, ...]] = SECTIONS
) -> Iterator[tuple[str, list[DrawnPanel]]]:
    """(question, its pictures) of a run; `delta` is the off-policy mask's δ, None without the mask."""
    present = list(dict.fromkeys(name for values in by_step.values() for name in values))
    for title, panels in sections.items():
        drawn = [one for panel in panels if (one := _drawn(panel, by_step, present, delta)) is not None]
        if drawn:
            yield title, drawn


def _drawn(panel: ReportPanel, by_step: Steps, present: Sequence[str], delta: float | None) -> DrawnPanel | None:
    names = dict.fromkeys(name for pattern in panel.names for name in present if fnmatchcase(name, pattern))
    curves = {name: _points(by_step, name) for name in names if name not in panel.left_out}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    labels = {name: _label(panel, name) for name in curves}
    if len(set(labels.values())) < len(labels):
        labels = {name: name for name in curves}
    lines = [Line(label=labels[name], points=points) for name, points in curves.items()]
    match panel.kind:
        case "heat":
            svg = heat_svg(sorted(lines, key=lambda line: int(line.label)), unit=panel.unit)
        case "stacked":
            svg = stacked_svg(lines, unit=panel.unit)
        case "lines":
            limits = [(f"δ = {delta:g}", delta)] if panel.with_delta and delta is not None else []
            svg = line_svg(lines, unit=panel.unit, logarithmic=panel.logarithmic, limits=limits)
    return drawn_panel(panel.title, svg, curves)


def _points(by_step: Steps, name: str) -> list[tuple[int, float]]:
    """Finite values; those of the cold start, whose metrics count its own steps, are drawn in no picture."""
    return [(step, values[name]) for step, values in by_step.items() if name in values and math.isfinite(values[name])]


def _label(panel: ReportPanel, name: str) -> str:
    """What tells a curve from the others of its picture."""
    if panel.kind == "heat":
        return str(int(name.rpartition("_")[2]))
    return name.partition("/")[2].removesuffix("_s") if panel.kind == "stacked" else name.partition("/")[2]
