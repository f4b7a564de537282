"""Rollouts as MLflow traces: spans, rewards as feedback, the gold answer as expectation.

Traces are built after the fact as plain entities with ids derived from run, step, group and sample, so that sending one a
second time changes nothing. Imports mlflow: import this file only where MLflow is wanted.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities import (
    AssessmentSource,
    Expectation,
    Feedback,
    Span,
    TraceInfo,
    TraceLocation,
    TraceState,
)

from samepath.rl.tracking.mlflow_spans import build_spans, trace_ms
from samepath.rl.tracking.names import MAX_NAME_CHARS, NameBook
from samepath.rl.tracking.tracked_rollout import TrackedRollout

PREVIEW_CHARS = 1000
"""Longest request and response preview that MLflow stores."""

FIRST_COLUMNS = ("kl", "reward", "route_flips")
"""Feedback that MLflow's list of traces shows by itself; the others are in its menu of columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTarget:
    """Where traces belong."""

    experiment_id: str
    """MLflow experiment."""
    run_id: str
    """MLflow run the traces are tied to."""
    run_name: str
    """Stands before group names, which repeat from run to run."""
    attempt: int
    """1, and one more after each resume."""


def build_trace(rollout: TrackedRollout, target: TraceTarget, ended_ms: int) -> tuple[TraceInfo, list[Span]]:
    """Return a rollout's trace: head with tags and feedback, and its spans, dated back from `ended_ms`."""
    name = f"{target.run_id}/{target.attempt}/{rollout.step}/{rollout.group_id}/{rollout.sample_index}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    duration_ms = trace_ms(rollout)
    info = TraceInfo(
        trace_id=f"tr-{digest}",
        trace_location=TraceLocation.from_experiment_id(target.experiment_id),
        request_time=ended_ms - duration_ms,
        execution_duration=duration_ms,
        state=TraceState.ERROR if rollout.failed else TraceState.OK,
        request_preview=rollout.prompt_text[:PREVIEW_CHARS],
        response_preview=rollout.response_text[:PREVIEW_CHARS],
        trace_metadata={
            "mlflow.sourceRun": target.run_id,
            "mlflow.trace.session": f"{target.run_name}-{rollout.group_id}"[-MAX_NAME_CHARS:],
        },
        tags=_tags(rollout, target.attempt),
        assessments=_assessments(rollout, digest, ended_ms),
    )
    return info, build_spans(rollout, digest, ended_ms - duration_ms, ended_ms)


def _tags(rollout: TrackedRollout, attempt: int) -> dict[str, str]:
    return {
        "mlflow.traceName": f"{rollout.group_id}/{rollout.sample_index}",
        "step": str(rollout.step),
        "group": rollout.group_id,
        "sample": str(rollout.sample_index),
        "dataset": rollout.dataset,
        "reward_status": rollout.reward_status,
        "finish_reason": rollout.finish_reason,
        "masked": str(rollout.masked).lower(),
        "attempt": str(attempt),
    }


def _assessments(rollout: TrackedRollout, digest: str, time_ms: int) -> list[Feedback | Expectation]:
    """Return feedback and expectation. Values that are no finite number are left out: the page cannot read NaN.

    The page shows ten columns, seven of which are not ours to choose, and fills up with feedback by the alphabet: `kl`, `reward` and
    `route_flips` come first, and nothing else may stand before or between them. Its column of tokens would take another place.
    """
    names = NameBook()
    numbers = {
        FIRST_COLUMNS[0]: rollout.kl,
        FIRST_COLUMNS[1]: rollout.reward,
        FIRST_COLUMNS[2]: rollout.route_flips,
        **{names.clean(f"score/{name}"): value for name, value in rollout.reward_parts.items()},
        "tokens": float(rollout.num_tokens),
        "update/advantage": rollout.advantage,
        "update/off_policy": rollout.off_policy,
        "update/weight_lag": float(rollout.weight_lag),
    }
    values: dict[str, float | bool | str] = {name: value for name, value in numbers.items() if math.isfinite(value)}
    values |= {"status": rollout.reward_status, "update/masked": rollout.masked}
    source = AssessmentSource(source_type="CODE", source_id="samepath")
    assessments: list[Feedback | Expectation] = [
        Feedback(
            name=name,
            value=value,
            source=source,
            create_time_ms=time_ms,
            last_update_time_ms=time_ms,
            rationale=rollout.reward_detail or None if name == "status" else None,
        )
        for name, value in values.items()
    ]
    if rollout.gold:
        expected = Expectation(
            name="gold", value=rollout.gold, source=source, create_time_ms=time_ms, last_update_time_ms=time_ms
        )
        assessments.append(expected)
    for assessment in assessments:
        key = hashlib.sha256(f"{digest}/{assessment.name}".encode()).hexdigest()
        assessment.assessment_id = f"a-{key[:32]}"
    return assessments


def shortened(rollout: TrackedRollout, max_chars: int) -> TrackedRollout:
    """What a trace is made of: texts of at most `max_chars`, no token-level values."""

    def cut(text: str) -> str:
        return cut_text(text, max_chars)

    return replace(
        rollout,
        prompt_text=cut(rollout.prompt_text),
        response_text=cut(rollout.response_text),
        gold=cut(rollout.gold),
        reward_detail=cut(rollout.reward_detail),
        messages=tuple(_cut_leaves(message, cut) for message in rollout.messages),
        tool_calls=tuple(
            replace(record, arguments=_cut_leaves(record.arguments, cut), text=cut(record.text))
            for record in rollout.tool_calls
        ),
        segments=tuple(replace(segment, tokens=(), kinds="") for segment in rollout.segments),
        tokens=(),
        sampler_logprobs=(),
        kl_tokens=(),
        log_ratios=(),
        entropies=(),
        roles="",
        support_sizes=(),
        weight_versions=(),
        routes=None,
    )


def _cut_leaves(value: Any, cut: Callable[[str], str]) -> Any:
    """The same data with every text in it cut."""
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, Mapping):
        return {key: _cut_leaves(item, cut) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut_leaves(item, cut) for item in value]
    return value


def cut_text(text: str, max_chars: int) -> str:
    """Return the text, cut with a note of how much is missing."""
    left_out = len(text) - max_chars
    return text if left_out <= 0 else f"{text[:max_chars]} … [{left_out} more characters in the JSON lines]"
