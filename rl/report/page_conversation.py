"""What the page of rollouts has of a conversation: its messages with their calls and results, and its tokens with who made them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from samepath.rl.tracking.tracked_rollout import TrackedRollout, TrackedTool


def texts(rollout: TrackedRollout) -> Iterator[str]:
    """Every text of its messages, as `messages` shows them."""
    return texts_of(rollout.messages)


def texts_of(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Every text of these messages."""
    for message in messages:
        yield from (message.get("content") or "", message.get("reasoning_content") or "")
        yield from (_arguments(call) for call in message.get("tool_calls", ()))


def num_tokens(rollout: TrackedRollout) -> int:
    """Tokens that the page holds of it one by one: of a conversation all that the model read, of a single answer those it drew."""
    return sum(len(segment.tokens) for segment in rollout.segments) or len(rollout.tokens)


def messages(rollout: TrackedRollout, max_chars: int) -> list[dict[str, Any]]:
    """The messages, each text cut to `max_chars` and `left_out` saying by how much; a tool's has the record of its call as `record`."""
    shown: list[dict[str, Any]] = []
    asked: list[TrackedTool] = []
    for message in rollout.messages:
        content, reasoning = message.get("content") or "", message.get("reasoning_content") or ""
        calls = [(call["function"]["name"], _arguments(call)) for call in message.get("tool_calls", ())]
        own = [content, reasoning, *(arguments for _, arguments in calls)]
        one = {"role": message["role"], "content": content[:max_chars], "reasoning": reasoning[:max_chars]}
        one["calls"] = [[name, arguments[:max_chars]] for name, arguments in calls]
        one["left_out"] = sum(max(len(text) - max_chars, 0) for text in own)
        if "call" in message:
            one["call"] = message["call"]
            asked = [record for record in rollout.tool_calls if record.turn == message["call"]]
        record = next((record for record in asked if record.text == content), None) if one["role"] == "tool" else None
        if record is not None:
            one["record"] = {"name": record.name, "error": record.error, "seconds": float(f"{record.seconds:.3g}")}
            asked.remove(record)
        shown.append(one)
    return shown


def segments(rollout: TrackedRollout) -> list[dict[str, Any]]:
    """The segments token by token; calls as [index, first, end, kind, finish reason, seconds]."""
    return [
        {
            "epoch": segment.epoch,
            "tokens": list(segment.tokens),
            "kinds": segment.kinds,
            "calls": [
                [span.index, span.first, span.end, span.kind, span.finish_reason, float(f"{span.seconds:.3g}")]
                for span in segment.calls
            ],
        }
        for segment in rollout.segments
    ]


def _arguments(call: Mapping[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)
