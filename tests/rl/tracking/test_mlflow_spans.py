"""A conversation as an MLflow trace: what each call of the model read and said, what each tool gave, in the order of time."""

import os
from dataclasses import replace

import pytest

# Read while mlflow is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow")

from mlflow.entities import Span  # noqa: E402

from samepath.rl.tracking.mlflow_traces import TraceTarget, build_trace, shortened  # noqa: E402
from samepath.rl.tracking.tracked_rollout import TrackedRollout  # noqa: E402
from tests.rl.tracked_conversation import MESSAGES, SEGMENTS, TOOL_CALLS, tracked_conversation  # noqa: E402

ENDED_MS = 1_767_225_600_000


def spans(rollout: TrackedRollout) -> list[Span]:
    target = TraceTarget(experiment_id="1", run_id="r", run_name="quick", attempt=1)
    return build_trace(rollout, target, ENDED_MS)[1]


def times(made: list[Span]) -> dict[str, tuple[float, float]]:
    """Beginning and end of each span, seconds since the root began."""
    begin = made[0].start_time_ns
    return {span.span_id: ((span.start_time_ns - begin) / 1e9, (span.end_time_ns - begin) / 1e9) for span in made}


def test_conversation_has_a_span_a_call_in_the_order_of_time() -> None:
    made = spans(tracked_conversation())
    assert [(span.name, span.span_type) for span in made] == [
        ("rollout", "AGENT"), ("generate 0", "CHAT_MODEL"), ("get", "TOOL"), ("get", "TOOL"), ("generate 1", "CHAT_MODEL"),
        ("generate 2", "CHAT_MODEL"), ("score", "EVALUATOR"),
    ]  # fmt: skip
    assert len({span.span_id for span in made}) == len(made)
    assert {span.parent_id for span in made[1:]} == {made[0].span_id}
    # One second for the first call, then the tools side by side, 0.25 and 0.5, then 0.5 and 0.75; what is left waited.
    placed = list(times(made).values())
    assert placed[1:6] == [(0, 1), (1, 1.25), (1, 1.5), (1.5, 2), (2, 2.75)]
    assert placed[0] == (0, 4)
    assert placed[6] == (3.999, 4)


def test_model_call_has_what_was_new_in_its_context_and_its_message() -> None:
    _, first, _, _, second, third, _ = spans(tracked_conversation())
    assert first.inputs == {"messages": list(MESSAGES[:2])}
    message = first.outputs["choices"][0]["message"]
    assert message["reasoning_content"] == "Two keys."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "get", "arguments": '{"key": "C"}'},
        {"name": "get", "arguments": '{"key": "K"}'},
    ]
    assert "call" not in message
    assert [said["content"] for said in second.inputs["messages"]] == ["25", "no answer in 0.5 s"]
    assert [said["role"] for said in third.inputs["messages"]] == ["user"]
    assert third.outputs["choices"][0]["message"] == {"role": "assistant", "content": "25"}
    names = ("context_tokens", "drawn_tokens", "epoch", "finish_reason", "seconds")
    assert [first.attributes[name] for name in names] == [4, 3, 0, "stop", 1.0]
    assert [third.attributes[name] for name in names] == [9, 2, 1, "stop", 0.75]


def test_tool_call_has_arguments_result_and_error() -> None:
    root, _, first, second, *_ = spans(tracked_conversation())
    assert (first.inputs, first.outputs) == ({"key": "C"}, {"result": "25", "error": ""})
    assert (second.inputs, second.outputs["error"]) == ({"key": "K"}, "timeout")
    assert [str(span.status.status_code) for span in (root, first, second)] == [
        "SpanStatusCode.OK", "SpanStatusCode.OK", "SpanStatusCode.ERROR",
    ]  # fmt: skip
    assert second.status.description == "timeout"
    assert second.attributes["seconds"] == 0.5
    assert root.outputs == {"response": "25", "ended": "answer", "problems": ["empty_reasoning"]}


def test_calls_that_took_longer_than_the_rollout_says_make_the_trace_longer() -> None:
    """The clocks of an engine and of a session are not one."""
    made = spans(tracked_conversation(generate_s=1.0))
    placed = list(times(made).values())
    assert placed[0] == (0, 2.75)
    assert placed[5] == (2, 2.749), "up to where the scoring is drawn"


def test_call_that_new_weights_cut_is_one_span_with_its_tools_behind_it() -> None:
    """Cut behind two of its three tokens; its time is that of the whole."""
    before = replace(SEGMENTS[0].calls[0], end=6, finish_reason="weights", seconds=0.0)
    rest = replace(SEGMENTS[0].calls[0], first=6)
    parts = (
        replace(SEGMENTS[0], tokens=SEGMENTS[0].tokens[:6], kinds=SEGMENTS[0].kinds[:6], calls=(before,)),
        replace(SEGMENTS[0], kinds="sccsrrtscstt", calls=(rest, SEGMENTS[0].calls[1])),
    )
    whole, cut = spans(tracked_conversation()), spans(tracked_conversation(segments=(*parts, SEGMENTS[1])))
    assert [(one.name, one.attributes, one.start_time_ns) for one in cut] == [
        (one.name, one.attributes, one.start_time_ns) for one in whole
    ]


def test_edit_of_the_context_is_named_so_and_says_no_message() -> None:
    first = replace(SEGMENTS[0], calls=(SEGMENTS[0].calls[0], replace(SEGMENTS[0].calls[1], kind="edit")))
    messages = tuple(message for message in MESSAGES if message.get("call") != 1)
    made = spans(tracked_conversation(segments=(first, SEGMENTS[1]), messages=messages))
    assert [span.name for span in made[1:6]] == ["generate 0", "get", "get", "edit 1", "generate 2"]
    assert made[4].inputs == {"messages": []}
    assert [said["content"] for said in made[5].inputs["messages"]] == ["25", "no answer in 0.5 s", "And C?"]


def test_texts_of_a_trace_are_cut_wherever_they_stand() -> None:
    record = replace(TOOL_CALLS[0], arguments={"keys": ["x" * 50, 3]}, text="y" * 50)
    messages = ({"role": "tool", "content": "z" * 50, "call": 7},)
    cut = shortened(tracked_conversation(messages=messages, tool_calls=(record,)), 40)
    assert cut.messages[0]["content"].startswith("z" * 40 + " … [10 more")
    assert cut.messages[0]["call"] == 7
    assert cut.tool_calls[0].arguments["keys"][0].startswith("x" * 40 + " … [10 more")
    assert cut.tool_calls[0].arguments["keys"][1] == 3
    assert cut.tool_calls[0].text.startswith("y" * 40 + " … [10 more")
    assert [(segment.tokens, segment.kinds, len(segment.calls)) for segment in cut.segments] == [
        ((), "", 2),
        ((), "", 1),
    ]
