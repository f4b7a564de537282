"""Rollouts as MLflow traces: spans for generation and scoring, rewards as feedback, the gold answer as expectation.

Traces are built after the fact as plain entities with ids derived from run, step, group and sample, so that sending one a
second time changes nothing. Imports mlflow: import this file only where MLflow is wanted.
"""

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from mlflow.entities import (
    AssessmentSource,
    Expectation,
    Feedback,
    Span,
    SpanType,
    TraceInfo,
    TraceLocation,
    TraceState,
)

from samepath.rl.tracking.names import MAX_NAME_CHARS, NameBook
from samepath.rl.tracking.tracked_rollout import TrackedRollout

PREVIEW_CHARS = 1000
"""Longest request and response preview that MLflow stores."""

FIRST_COLUMNS = ("kl", "reward", "route_flips")
"""Feedback that MLflow's list of traces shows by itself; the others are in its menu of columns."""

SCORING_SHARE_NS = 1_000_000
"""Drawn length of the scoring span, 1 ms: scoring times are not kept."""


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
    duration_ms = max(round(1000 * rollout.generate_s), 1)
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
    return info, _spans(rollout, digest, ended_ms - duration_ms, ended_ms)


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


def _spans(rollout: TrackedRollout, digest: str, start_ms: int, end_ms: int) -> list[Span]:
    start_ns, end_ns = 1_000_000 * start_ms, 1_000_000 * end_ms
    question = {"messages": [{"role": "user", "content": rollout.prompt_text}]}
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": rollout.response_text}}]}
    scored = {"reward": _number(rollout.reward), **{name: _number(part) for name, part in rollout.reward_parts.items()}}
    whole = {
        "spanType": SpanType.AGENT,
        "spanInputs": {"prompt": rollout.prompt_text},
        "spanOutputs": {"response": rollout.response_text},
    }
    generate = {
        "spanType": SpanType.CHAT_MODEL,
        "spanInputs": question,
        "spanOutputs": answer,
        "message.format": "openai",
    }
    score = {
        "spanType": SpanType.EVALUATOR,
        "spanInputs": {"response": rollout.response_text, "gold": rollout.gold},
        "spanOutputs": {**scored, "status": rollout.reward_status, "detail": rollout.reward_detail},
    }
    middle_ns = max(end_ns - SCORING_SHARE_NS, start_ns)
    failed = rollout.reward_detail or rollout.reward_status if rollout.failed else ""
    return [
        _span("rollout", whole, digest, (start_ns, end_ns), failed),
        _span("generate", generate, digest, (start_ns, middle_ns), ""),
        _span("score", score, digest, (middle_ns, end_ns), failed),
    ]


def _span(name: str, attributes: dict[str, Any], digest: str, times_ns: tuple[int, int], failed: str) -> Span:
    is_root = name == "rollout"
    named = {f"mlflow.{key}": json.dumps(value, ensure_ascii=False) for key, value in attributes.items()}
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(bytes.fromhex(digest)).decode(),
            "span_id": _span_id(digest, name),
            "parent_span_id": None if is_root else _span_id(digest, "rollout"),
            "name": name,
            "start_time_unix_nano": times_ns[0],
            "end_time_unix_nano": times_ns[1],
            "status": {"code": "STATUS_CODE_ERROR" if failed else "STATUS_CODE_OK", "message": failed},
            "attributes": {"mlflow.traceRequestId": json.dumps(f"tr-{digest}"), **named},
            "events": [],
        }
    )


def _span_id(digest: str, name: str) -> str:
    return base64.b64encode(hashlib.sha256(f"{digest}/{name}".encode()).digest()[:8]).decode()


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def cut_text(text: str, max_chars: int) -> str:
    """Return the text, cut with a note of how much is missing."""
    left_out = len(text) - max_chars
    return text if left_out <= 0 else f"{text[:max_chars]} … [{left_out} more characters in the JSON lines]"
