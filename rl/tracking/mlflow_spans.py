"""The spans of a rollout's trace: generation and scoring, or of a conversation each call of the model and each call of a tool.

When a call began is not kept, only how long it took: spans are laid one after another, the tools that one message called side by side. Imports
mlflow: import this file only where MLflow is wanted.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from mlflow.entities import Span, SpanType

from samepath.rl.tracking.tracked_rollout import TrackedCall, TrackedRollout

ROOT = "rollout"
"""Name of the span that holds the others."""
SCORING_SHARE_NS = 1_000_000
"""Drawn length of the scoring span, 1 ms: scoring times are not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A span before it has a place in time."""

    name: str
    """As people read it."""
    key: str = ""
    """Unique in its trace; empty: the name."""
    seconds: float = 0.0
    """How long it took, where that is what places it."""
    kind: str
    """MLflow's type."""
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further attributes by their whole names."""
    failed: str = ""
    """Why it gave no result, or empty."""


def trace_ms(rollout: TrackedRollout) -> int:
    """Drawn length of the trace: the rollout's time, or that of its calls one after another where that is more."""
    calls_s = sum(max(span.seconds for span in spans) for spans in _in_turn(rollout))
    return max(round(1000 * max(rollout.generate_s, calls_s)), 1)


def build_spans(rollout: TrackedRollout, digest: str, start_ms: int, end_ms: int) -> list[Span]:
    """The root span, then its children in the order of time."""
    start_ns, end_ns = 1_000_000 * start_ms, 1_000_000 * end_ms
    middle_ns = max(end_ns - SCORING_SHARE_NS, start_ns)
    failed = rollout.reward_detail or rollout.reward_status if rollout.failed else ""
    how = {"ended": rollout.ended, "problems": list(rollout.problems)} if rollout.segments else {}
    whole = _Part(
        name=ROOT,
        kind=SpanType.AGENT,
        inputs={"prompt": rollout.prompt_text},
        outputs={"response": rollout.response_text, **how},
        failed=failed,
    )
    scored = {"reward": _number(rollout.reward), **{name: _number(part) for name, part in rollout.reward_parts.items()}}
    score = _Part(
        name="score",
        kind=SpanType.EVALUATOR,
        inputs={"response": rollout.response_text, "gold": rollout.gold},
        outputs={**scored, "status": rollout.reward_status, "detail": rollout.reward_detail},
        failed=failed,
    )
    if rollout.segments:
        generated = list(_laid(rollout, digest, start_ns, middle_ns))
    else:
        generated = [_span(_generate(rollout), digest, start_ns, middle_ns)]
    return [_span(whole, digest, start_ns, end_ns), *generated, _span(score, digest, middle_ns, end_ns)]


def _generate(rollout: TrackedRollout) -> _Part:
    """The only call of the model."""
    return _Part(
        name="generate",
        kind=SpanType.CHAT_MODEL,
        inputs={"messages": [{"role": "user", "content": rollout.prompt_text}]},
        outputs=_choice({"role": "assistant", "content": rollout.response_text}),
    )


def _laid(rollout: TrackedRollout, digest: str, start_ns: int, end_ns: int) -> Iterator[Span]:
    """The calls of a conversation, none beyond `end_ns`."""
    at_ns = start_ns
    for together in _in_turn(rollout):
        for part in together:
            yield _span(part, digest, at_ns, min(at_ns + round(1e9 * part.seconds), end_ns))
        at_ns = min(at_ns + round(1e9 * max(part.seconds for part in together)), end_ns)


def _in_turn(rollout: TrackedRollout) -> Iterator[list[_Part]]:
    """Spans that run side by side, in the order of time: a call of the model, then the tools that it called."""
    tools = {turn: list(records) for turn, records in groupby(rollout.tool_calls, key=lambda record: record.turn)}
    said = _said(rollout.messages)
    for epoch, span in _whole_calls(rollout):
        yield [_model_call(span, epoch, *said.get(span.index, ((), {"role": "assistant", "content": ""})))]
        called = [
            _Part(
                name=record.name,
                key=f"tool {span.index} {number}",
                seconds=record.seconds,
                kind=SpanType.TOOL,
                inputs=record.arguments,
                outputs={"result": record.text, "error": record.error},
                more={"seconds": record.seconds},
                failed=record.error,
            )
            for number, record in enumerate(tools.get(span.index, ()))
        ]
        if called:
            yield called


def _whole_calls(rollout: TrackedRollout) -> Iterator[tuple[int, TrackedCall]]:
    """(epoch, call) in order; one that new weights cut is one call, from its first part's beginning to its last part's end."""
    spans = [(segment.epoch, span) for segment in rollout.segments for span in segment.calls]
    for _, parts in groupby(spans, key=lambda one: one[1].index):
        own = list(parts)
        yield own[-1][0], replace(own[-1][1], first=own[0][1].first)


def _model_call(span: TrackedCall, epoch: int, new: Sequence[Mapping[str, Any]], message: Mapping[str, Any]) -> _Part:
    name = f"{'edit' if span.kind == 'edit' else 'generate'} {span.index}"
    return _Part(
        name=name,
        key=name,
        seconds=span.seconds,
        kind=SpanType.CHAT_MODEL,
        inputs={"messages": list(map(_openai, new))},
        outputs=_choice(_openai(message)),
        more={
            "seconds": span.seconds,
            "finish_reason": span.finish_reason,
            "context_tokens": span.first,
            "drawn_tokens": span.end - span.first,
            "epoch": epoch,
        },
    )


def _said(messages: Sequence[Mapping[str, Any]]) -> dict[int, tuple[list[Mapping[str, Any]], Mapping[str, Any]]]:
    """By the call that drew it: the messages that were new in its context, and its own."""
    said: dict[int, tuple[list[Mapping[str, Any]], Mapping[str, Any]]] = {}
    new: list[Mapping[str, Any]] = []
    for message in messages:
        if "call" in message:
            said[message["call"]] = (new, message)
            new = []
        else:
            new.append(message)
    return said


def _openai(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as MLflow's page reads it: arguments of calls are text there."""
    shown = {name: value for name, value in message.items() if name != "call"}
    if "tool_calls" in shown:
        shown["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
            for call in shown["tool_calls"]
        ]
    return shown


def _choice(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message}]}


def _span(part: _Part, digest: str, start_ns: int, end_ns: int) -> Span:
    named = {"spanType": part.kind, "spanInputs": part.inputs, "spanOutputs": part.outputs}
    if part.kind == SpanType.CHAT_MODEL:
        named["message.format"] = "openai"
    attributes = {**{f"mlflow.{name}": value for name, value in named.items()}, **part.more}
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(bytes.fromhex(digest)).decode(),
            "span_id": _span_id(digest, part.key or part.name),
            "parent_span_id": None if part.kind == SpanType.AGENT else _span_id(digest, ROOT),
            "name": part.name,
            "start_time_unix_nano": start_ns,
            "end_time_unix_nano": end_ns,
            "status": {"code": "STATUS_CODE_ERROR" if part.failed else "STATUS_CODE_OK", "message": part.failed},
            "attributes": {
                "mlflow.traceRequestId": json.dumps(f"tr-{digest}"),
                **{name: _json(value) for name, value in attributes.items()},
            },
            "events": [],
        }
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _span_id(digest: str, name: str) -> str:
    return base64.b64encode(hashlib.sha256(f"{digest}/{name}".encode()).digest()[:8]).decode()


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
