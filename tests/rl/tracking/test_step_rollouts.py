"""What people read of each rollout: its own reward, and what the update measured of it, not of its neighbour."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from samepath.model.text.conversation import Message, ToolCall
from samepath.model.text.renderer import PieceKind
from samepath.model.text.tokenizer import Tokenizer
from samepath.rewards.score import Score
from samepath.rl.batch.score_groups import training_batch
from samepath.rl.batch.train_batch import TokenReport, UpdateReport
from samepath.rl.diagnostics.conversations import conversation_metrics
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.tracking.jsonl import plain, rollout_from_plain
from samepath.rl.tracking.step_rollouts import tracked_rollouts
from samepath.rl.tracking.tracked_rollout import TrackedCall
from samepath.rollout.segments import as_call, as_calls, joined_segments
from samepath.rollout.types import Group, Support, ToolRecord
from tests.conversations import drawn_call, numbered, recomputed_call
from tests.rl.sampled import group, rollout, segment

TIMEOUT = Score(total=math.nan, status="timeout", detail="answer: no result within 5.0 s")

MESSAGES = (
    Message(role="user", content="1+2?"),
    Message(role="assistant", reasoning="sum", calls=(ToolCall(name="add", arguments={"a": 1, "b": 2}),)),
    Message(role="tool", content="3"),
)
KINDS: list[PieceKind] = ["scaffold", "content", "sampled", "sampled", "content"]


def report(count: int) -> UpdateReport:
    """Every column numbers the sequences of the batch: sequence 2 has 2.25 nats, 0.2 flips, a lag of 2."""
    numbers = np.arange(count)
    return UpdateReport(
        metrics={},
        kl_B=(numbers + 0.25).astype(np.float32),
        off_policy_B=(numbers + 0.5).astype(np.float32),
        masked_B=numbers == 1,
        route_flips_B=(numbers / 10).astype(np.float32),
        weight_lag_B=numbers.astype(np.int64),
        kl_tokens=tuple(np.full(2, number, np.float32) for number in numbers),
    )


def groups() -> list[Group]:
    """Two groups; the first sample has no answer, the third no reward: the batch holds a/1, a/3, b/0, b/1."""
    first = group("a", None, 1.0, TIMEOUT, 0.0)
    broken = replace(first.rollouts[0], failure="prompt_too_long", segments=(), text="")
    return [replace(first, rollouts=(broken, *first.rollouts[1:])), group("b", 0.25, 0.75, dataset="code")]


def test_tracked_rollouts_past_unscored_ones_get_their_own_measurements(tokenizer: Tokenizer) -> None:
    batch, by_group = training_batch(groups(), AlgorithmSettings())
    assert batch is not None
    tracked = tracked_rollouts(7, groups(), by_group, batch, report(4), tokenizer)
    assert [(one.group_id, one.sample_index) for one in tracked] == [
        ("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1),
    ]  # fmt: skip
    trained = [tracked[place] for place in (1, 3, 4, 5)]
    assert [one.kl for one in trained] == [0.25, 1.25, 2.25, 3.25]
    assert [one.off_policy for one in trained] == [0.5, 1.5, 2.5, 3.5]
    assert [one.route_flips for one in trained] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [one.masked for one in trained] == [False, True, False, False]
    assert [one.weight_lag for one in trained] == [0, 1, 2, 3]
    assert [one.kl_tokens for one in trained] == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    for one in (tracked[0], tracked[2]):
        assert math.isnan(one.kl)
        assert math.isnan(one.off_policy)
        assert math.isnan(one.route_flips)
        assert (one.masked, one.weight_lag, one.kl_tokens) == (False, 0, ())


def test_tracked_rollouts_have_advantage_reward_and_status_of_their_own(tokenizer: Tokenizer) -> None:
    batch, by_group = training_batch(groups(), AlgorithmSettings())
    tracked = tracked_rollouts(7, groups(), by_group, batch, report(4), tokenizer)
    assert [one.advantage for one in tracked] == [0.0, 0.5, 0.0, -0.5, -0.25, 0.25]
    assert [one.reward for one in tracked[1::2]] == [1.0, 0.0, 0.75]
    assert math.isnan(tracked[0].reward)
    assert math.isnan(tracked[2].reward)
    assert [one.reward_status for one in tracked] == ["prompt_too_long", "ok", "timeout", "ok", "ok", "ok"]
    assert [one.failed for one in tracked] == [True, False, True, False, False, False]
    assert tracked[2].reward_detail == "answer: no result within 5.0 s"
    assert tracked[5].reward_parts == {"answer": 0.75}
    assert {one.step for one in tracked} == {7}
    assert [one.dataset for one in tracked] == ["sums"] * 4 + ["code"] * 2
    assert {one.gold for one in tracked} == {"3"}


def test_tracked_rollouts_keep_texts_and_tokens_of_the_response_alone(tokenizer: Tokenizer) -> None:
    batch, by_group = training_batch(groups(), AlgorithmSettings())
    tracked = tracked_rollouts(7, groups(), by_group, batch, report(4), tokenizer)
    assert tracked[1].prompt_text == "1+2="
    assert tracked[1].response_text == "a says 1"
    assert tracked[1].tokens == tuple(tokenizer.token_texts([4, 5]))
    assert tracked[1].sampler_logprobs == (-0.5, -1.0)
    assert (tracked[1].num_tokens, tracked[1].finish_reason) == (2, "stop")
    assert (tracked[0].tokens, tracked[0].num_tokens, tracked[0].finish_reason) == ((), 0, "")


def test_tracked_rollouts_have_what_the_update_saw_of_their_own_tokens(tokenizer: Tokenizer) -> None:
    """Number 2 of the batch, b/0, has one token, and its live router took expert 5; number 3, b/1, gave no loss."""
    batch, by_group = training_batch(groups(), AlgorithmSettings())
    assert batch is not None
    lengths = [len(batch.sequences[place].segment.token_ids) - 2 for place in range(4)]
    seen = tuple(
        TokenReport(
            log_ratio_T=np.full(count, np.nan if place == 3 else place / 8, np.float32),
            entropy_T=np.full(count, 0.123456, np.float32),
            role_T=np.full(count, (2, 1, 2, 0)[place]),
            flips=np.array([[0, 0, 5]]) if place == 2 else np.zeros((0, 2), np.int64),
        )
        for place, count in enumerate(lengths)
    )
    tracked = tracked_rollouts(
        7, groups(), by_group, batch, replace(report(4), tokens=seen, moe_layers=(3,)), tokenizer
    )
    trained = [tracked[place] for place in (1, 3, 4, 5)]
    assert [one.log_ratios for one in trained] == [(0.0,) * lengths[0], (0.125,) * lengths[1], (0.25,) * lengths[2], ()]
    assert [one.roles for one in trained] == ["t" * lengths[0], "m" * lengths[1], "t" * lengths[2], "o" * lengths[3]]
    assert trained[2].entropies == (0.1235,) * lengths[2]
    assert [one.routes is not None and one.routes.live for one in trained] == [(), (), ((0, 0, 5),), ()]
    assert trained[2].routes is not None
    assert trained[2].routes.layers == (3,)
    assert tracked[2].roles == "", "it was in no update"
    assert tracked[2].weight_versions == ((0, tracked[2].num_tokens),)


def test_tracked_rollouts_say_from_how_many_candidates_each_token_was_drawn(tokenizer: Tokenizer) -> None:
    drawn = segment((4, 5))
    support = Support(counts=np.array([1, 2], np.int32), ids=np.array([4, 5, 6], np.int32))
    made = rollout("a", 0, 1.0, segments=(replace(drawn, support=support),))
    (one,) = tracked_rollouts(1, [replace(group("a"), rollouts=(made,))], {"a": np.zeros(1)}, None, None, tokenizer)
    assert one.support_sizes == (1, 2)
    assert one.weight_versions == ((0, 2),)


def test_tracked_rollouts_without_an_update_have_rewards_and_no_measurements(tokenizer: Tokenizer) -> None:
    unscored = [group("a", None, TIMEOUT)]
    batch, by_group = training_batch(unscored, AlgorithmSettings())
    assert batch is None
    first, second = tracked_rollouts(1, unscored, by_group, batch, None, tokenizer)
    assert (first.reward_status, second.reward_status) == ("unscored", "timeout")
    assert first.advantage == second.advantage == 0.0
    assert math.isnan(first.kl)


def test_tracked_conversation_holds_the_tokens_of_all_its_segments(tokenizer: Tokenizer) -> None:
    calls = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7]), drawn_call([2, 8], [9])], [0, 0, 1])
    segments = joined_segments(calls, exact=True)
    made = replace(
        group("a", 1.0, 0.0),
        rollouts=(rollout("a", 0, 1.0, segments=segments, ended="turns", messages=MESSAGES), rollout("a", 1, 0.0)),
    )
    batch, by_group = training_batch([made], AlgorithmSettings())
    first, second = tracked_rollouts(1, [made], by_group, batch, report(2), tokenizer)
    assert first.tokens == tuple(tokenizer.token_texts([4, 5, 7, 9]))
    drawn = [float(value) for call in calls for value in call.sampler_logprobs[call.trained]]
    assert first.sampler_logprobs == pytest.approx(drawn)
    assert (first.segment_tokens, first.num_tokens, first.ended) == ((3, 1), 4, "turns")
    assert (second.segment_tokens, second.ended) == ((2,), "answer")
    assert (first.kl, second.kl) == (0.25, 1.25), "numbers of the rollout, not of its segments"
    read = rollout_from_plain(json.loads(json.dumps(asdict(first))))
    assert (read.segment_tokens, read.ended, read.tokens) == (first.segment_tokens, "turns", first.tokens)
    assert [message["role"] for message in read.messages] == ["user", "assistant", "tool"]
    assert read.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1, "b": 2}}
    assert read.messages == first.messages
    assert second.messages == ()


def test_tracked_message_that_new_weights_cut_is_one_calls(tokenizer: Tokenizer) -> None:
    drawn = [([2, 3], [(0, [4]), (1, [5])]), ([2, 3, 4, 5, 6], [(1, [7])])]
    calls = [
        part
        for index, (prompt, versions) in enumerate(drawn)
        for part in as_calls(recomputed_call(prompt, versions), index=index, epoch=0, kinds=KINDS[: len(prompt)])
    ]
    messages = (
        Message(role="assistant", content="a", sampled=(4, 5)),
        Message(role="user", content="b"),
        Message(role="assistant", content="c", sampled=(7,)),
    )
    made = rollout("a", 0, 1.0, segments=joined_segments(calls, exact=True, one_version=True), messages=messages)
    (first,) = tracked_rollouts(1, [replace(group("a"), rollouts=(made,))], {"a": np.zeros(1)}, None, None, tokenizer)
    assert [message.get("call") for message in first.messages] == [0, None, 1]
    shown = [[(one.index, one.finish_reason) for one in segment.calls] for segment in first.segments]
    assert shown == [[(0, "weights")], [(0, "stop"), (1, "stop")]]
    assert conversation_metrics([replace(group("a"), rollouts=(made,))])["conversation/turns_mean"] == 2


def test_tracked_conversation_says_who_made_each_token_and_which_call_drew_each_message(tokenizer: Tokenizer) -> None:
    """An edit, which draws no message, opens a second epoch; the first message of the model came with the prompt."""
    calls = [
        as_call(drawn_call([2, 3], [4, 5]), index=0, epoch=0, kinds=["scaffold", "content"]),
        as_call(drawn_call([2, 3, 4, 5, 6], [7]), index=1, epoch=0, kind="edit", kinds=KINDS[:5]),
        as_call(drawn_call([2, 5, 8], [9]), index=2, epoch=1, kinds=["scaffold", "sampled", "content"]),
    ]
    messages = (
        Message(role="assistant", content="hello"),
        Message(role="assistant", reasoning="sum", calls=MESSAGES[1].calls, sampled=(4, 5)),
        *MESSAGES[2:],
        Message(role="assistant", content="3", sampled=(9,)),
    )
    record = ToolRecord(turn=0, name="add", arguments={"a": [1, {"b": 2}]}, text="3", error="raised", seconds=0.25)
    made = replace(
        rollout("a", 0, 1.0),
        segments=joined_segments(calls, exact=True),
        messages=messages,
        tool_calls=(record,),
        problems=("unknown_tool", "unknown_tool"),
    )
    first, second = tracked_rollouts(
        1,
        [replace(group("a", 1.0, 0.0), rollouts=(made, rollout("a", 1, 0.0)))],
        {"a": np.zeros(2)},
        None,
        None,
        tokenizer,
    )
    assert [segment.kinds for segment in first.segments] == ["scttct", "srct"]
    assert [segment.epoch for segment in first.segments] == [0, 1]
    assert first.segments[1].tokens == tuple(tokenizer.token_texts([2, 5, 8, 9]))
    assert [[span.index for span in segment.calls] for segment in first.segments] == [[0, 1], [2]]
    assert [message.get("call") for message in first.messages] == [None, 0, None, 2]
    assert [asdict(one) for one in first.tool_calls] == [asdict(record)]
    assert first.segments[0].calls[1] == TrackedCall(
        index=1, first=5, end=6, kind="edit", finish_reason="stop", seconds=0.0
    )
    assert first.problems == ("unknown_tool", "unknown_tool")
    entry = json.loads(json.dumps(plain(first)))
    assert entry == json.loads(json.dumps(plain(asdict(first))))
    entry["segments"][0]["new"] = entry["tool_calls"][0]["new"] = entry["segments"][0]["calls"][0]["new"] = 1
    read = rollout_from_plain(entry)
    assert (read.segments, read.tool_calls, read.problems) == (first.segments, first.tool_calls, first.problems)
    assert (read.tool_calls[0].seconds, read.messages) == (0.25, first.messages)
    assert (second.segments, second.tool_calls, second.problems) == ((), (), ())
