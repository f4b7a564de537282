"""A conversation as a run's tracking holds it: two tools called side by side, one of which fails, and a second question, which opens an epoch."""

from typing import Any

from samepath.rl.tracking.tracked_rollout import TrackedCall, TrackedRollout, TrackedSegment, TrackedTool

MESSAGES: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "You keep a store."},
    {"role": "user", "content": "C plus K?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Two keys.",
        "tool_calls": [
            {"id": "call-0", "type": "function", "function": {"name": "get", "arguments": {"key": "C"}}},
            {"id": "call-1", "type": "function", "function": {"name": "get", "arguments": {"key": "K"}}},
        ],
        "call": 0,
    },
    {"role": "tool", "content": "25", "tool_call_id": "call-0"},
    {"role": "tool", "content": "no answer in 0.5 s", "tool_call_id": "call-1"},
    {"role": "assistant", "content": "I cannot tell.", "call": 1},
    {"role": "user", "content": "And C?"},
    {"role": "assistant", "content": "25", "call": 2},
)
TOOL_CALLS = (
    TrackedTool(turn=0, name="get", arguments={"key": "C"}, text="25", error="", seconds=0.25),
    TrackedTool(turn=0, name="get", arguments={"key": "K"}, text="no answer in 0.5 s", error="timeout", seconds=0.5),
)


def span(index: int, first: int, end: int, seconds: float) -> TrackedCall:
    return TrackedCall(index=index, first=first, end=end, kind="act", finish_reason="stop", seconds=seconds)


SEGMENTS = (
    TrackedSegment(
        epoch=0,
        tokens=("<user>", "C plus", " K?", "<model>", "get C", " get K", "<end>", "<tool>", "25", "<model>", "no", "<end>"),
        kinds="sccstttscstt",
        calls=(span(0, 4, 7, 1.0), span(1, 10, 12, 0.5)),
    ),
    TrackedSegment(
        epoch=1,
        tokens=("<user>", "C plus", " K?", "<model>", "no", "<end>", "<user>", "And C?", "<model>", "25", "<end>"),
        kinds="sccsrrscstt",
        calls=(span(2, 9, 11, 0.75),),
    ),
)  # fmt: skip


def tracked_conversation(**changes: Any) -> TrackedRollout:
    """Seven drawn tokens in three calls."""
    values: dict[str, Any] = {
        "step": 1, "group_id": "s1-g0", "sample_index": 0, "prompt_text": "C plus K?", "response_text": "25", "reward": 0.5,
        "reward_parts": {"right": 0.5}, "messages": MESSAGES, "tool_calls": TOOL_CALLS, "segments": SEGMENTS,
        "problems": ("empty_reasoning",), "segment_tokens": (5, 2), "num_tokens": 7, "finish_reason": "stop",
        "tokens": ("get C", " get K", "<end>", "no", "<end>", "25", "<end>"), "generate_s": 4.0,
        "sampler_logprobs": (-0.5, -1.0, -0.25, -2.0, -0.5, -0.125, -0.0625),
    }  # fmt: skip
    return TrackedRollout(**{**values, **changes})
