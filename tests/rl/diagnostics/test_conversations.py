"""Numbers of conversations, worked by hand; and that the page on metrics names every one."""

from dataclasses import replace
from pathlib import Path

import pytest

from samepath.model.text.conversation import Message
from samepath.rl.diagnostics.conversations import cache_share, conversation_metrics
from samepath.rl.diagnostics.rollouts import rollout_metrics
from samepath.rollout.segments import as_call, joined_segments
from samepath.rollout.types import Group, Rollout, ToolError, ToolRecord
from tests.conversations import drawn_call, numbered
from tests.rl.sampled import group, rollout
from tests.test_examples import documented_metrics, generic

SAID = (Message(role="user", content="1+2?"), Message(role="assistant", content="3"))
CALLS = [drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7]), drawn_call([2, 8], [9])]


def record(error: ToolError = "") -> ToolRecord:
    return ToolRecord(turn=0, name="add", arguments={"a": 1}, text="3", error=error)


def conversations() -> list[Group]:
    """Three messages and three tool calls; two messages behind an edit, one tool call; a failed one; a single answer."""
    segments = joined_segments(numbered(CALLS, [0, 0, 1]), exact=True)
    edited = joined_segments(
        [as_call(CALLS[0], index=0, epoch=0), as_call(CALLS[2], index=1, epoch=1, kind="edit")], exact=True
    )
    first = rollout(
        "a", 0, 1.0, segments=segments, messages=SAID, tool_calls=(record(), record("timeout"), record("raised")),
        problems=("unknown_tool", "call_unclosed", "unknown_tool"), ended="malformed",
    )  # fmt: skip
    second = rollout("a", 1, 0.0, segments=edited, messages=SAID, tool_calls=(record(),), problems=("empty_reasoning",))
    failed = rollout("a", 2, None, messages=SAID, failure="environment_died", problems=("call_unclosed",), segments=())
    return [replace(group("a", 0.0), rollouts=(first, second, failed)), group("b", 1.0)]


def test_conversation_metrics_hand_worked() -> None:
    metrics = conversation_metrics(conversations())
    expected = {
        "conversation/turns_mean": (3 + 1) / 2,
        "conversation/calls_mean": 4 / 2,
        "conversation/ended.malformed": 1 / 2,
        "conversation/ended.answer": 1 / 2,
        "conversation/ended.time": 0.0,
        "conversation/malformed": 1 / 2,
        # Of four messages; the edit of the context is none.
        "conversation/problem.unknown_tool": 2 / 4,
        "conversation/problem.call_unclosed": 1 / 4,
        "conversation/problem.empty_reasoning": 1 / 4,
        "conversation/problem.value_not_json": 0.0,
        "conversation/tool_errors": 2 / 4,
        "conversation/tool_error.timeout": 1 / 4,
        "conversation/tool_error.raised": 1 / 4,
        "conversation/tool_error.bad_arguments": 0.0,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert sum(value for name, value in metrics.items() if "/ended." in name) == 1


@pytest.mark.parametrize("problem", ["unknown_tool", "missing_parameter", "wrong_type", "empty_reasoning"])
def test_problem_that_breaks_no_form_is_not_malformed(problem: str) -> None:
    (first, *_), *_ = (one.rollouts for one in conversations())
    metrics = conversation_metrics([replace(group("a", 0.0), rollouts=(replace(first, problems=(problem,)),))])
    assert metrics["conversation/malformed"] == 0
    assert metrics[f"conversation/problem.{problem}"] == 1 / 3


def test_metrics_of_a_batch_have_them_and_count_failures_of_environments() -> None:
    metrics = rollout_metrics(conversations(), 1)
    assert metrics["conversation/turns_mean"] == 2
    assert metrics["rollout/failure.environment_died"] == 1
    assert metrics["rollout/failed"] == 1 / 4


def test_batch_without_conversations_has_no_such_metrics() -> None:
    assert conversation_metrics([group("a", 1.0, 0.0)]) == {}
    alone: Rollout = conversations()[0].rollouts[2]
    assert conversation_metrics([replace(group("a", 0.0), rollouts=(alone,))]) == {}
    assert not any(name.startswith("conversation/") for name in rollout_metrics([group("a", 1.0, 0.0)], 1))


def test_cache_share_is_of_what_was_read_between() -> None:
    before = {"reused_tokens": 10.0, "prefill_tokens": 100.0, "replaced_workers": 0.0}
    after = {"reused_tokens": 40.0, "prefill_tokens": 190.0, "replaced_workers": 0.0}
    assert cache_share(before, after) == {"rollout/cache_share": 30 / 120}
    assert cache_share({}, after) == {"rollout/cache_share": 40 / 230}
    again = {"rerun_tokens": 30.0}
    assert cache_share(before, after | again) == {"rollout/cache_share": 30 / 120, "rollout/rerun_share": 30 / 120}
    assert cache_share(before | again, after | again) == {"rollout/cache_share": 30 / 120}
    assert cache_share(before | again, after) == {}
    assert cache_share(after, after) == {}
    assert cache_share(after, before) == {}
    assert cache_share(before, {**after, "replaced_workers": 1.0}) == {}


def test_algorithm_page_names_every_metric_of_conversations() -> None:
    page = (Path(__file__).parents[3] / "docs" / "algorithm.md").read_text(encoding="utf-8")
    documented = documented_metrics(page)
    named = {generic(name) for name in conversation_metrics(conversations())}
    assert sorted(named - documented) == []
    assert sorted(name for name in documented if name.startswith("conversation/") and name not in named) == []
    assert {"rollout/cache_share", "rollout/rerun_share"} <= documented
