"""From sampled groups to a training batch: who is scored, who counts in the baseline, who gives loss, in which order."""

from dataclasses import replace

import numpy as np
import pytest

from samepath.rewards.score import Score
from samepath.rl.batch.score_groups import GroupScorer, training_batch
from samepath.rl.batch.segment_check import check_segments
from samepath.rl.diagnostics.segments import segment_metrics
from samepath.rl.objective.kl import beta_per_rollout
from samepath.rl.recipe.advantage import TruncationSettings
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.objective import KlSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.segments import SegmentError, as_calls, joined_segments
from samepath.rollout.types import Group, Rollout
from tests.conversations import drawn_call, numbered, recomputed_call
from tests.rl.sampled import Children, group, rollout, segment

RL = AlgorithmSettings()
TIMEOUT = Score(total=float("nan"), status="timeout", detail="answer: no result within 5.0 s")


def truncated(made: Group, index: int) -> Group:
    rollouts = list(made.rollouts)
    rollouts[index] = replace(rollouts[index], segments=(segment((4, 5), "length"),))
    return replace(made, rollouts=tuple(rollouts))


def test_scorer_asks_for_each_usable_rollout_and_puts_scores_where_they_belong() -> None:
    children = Children({"a/1": Score(total=0.25, parts={"answer": 0.25})})
    scorer = GroupScorer(children)
    first, second = group("a", None, None), group("b", None, None)
    broken = replace(first.rollouts[0], failure="prompt_too_long", segments=(), text="")
    first = replace(first, rollouts=(broken, first.rollouts[1]))
    scorer.submit(second)
    scorer.submit(first)
    assert [request.rollout_key for request in children.requests] == ["b/0", "b/1", "a/1"]
    asked = children.requests[2]
    assert (asked.prompt_text, asked.response_text, asked.answer) == ("1+2=", "a says 1", {"answer": "3"})
    assert (asked.dataset, asked.finish_reason, asked.num_tokens) == ("sums", "stop", 2)
    done = scorer.collect([first, second])
    assert [one.group_id for one in done] == ["a", "b"]
    assert done[0].rollouts[0].score is None
    assert done[0].rollouts[1].score == Score(total=0.25, parts={"answer": 0.25})
    assert [one.score.total for one in done[1].rollouts if one.score] == [1.0, 1.0]


def test_scorer_collects_a_score_once() -> None:
    scorer = GroupScorer(Children())
    scorer.submit(group("a", None))
    assert scorer.collect([group("a", None)])[0].rollouts[0].score is not None
    assert scorer.collect([group("a", None)])[0].rollouts[0].score is None


def test_batch_failed_reward_is_in_neither_baseline_nor_batch() -> None:
    """Scored are 1, 0 and 0.2: their mean is 0.4. A zero for the failed one would make it 0.3."""
    batch, by_group = training_batch([group("a", 1.0, TIMEOUT, 0.0, 0.2)], RL)
    assert batch is not None
    assert [entry.name for entry in batch.sequences] == ["a/0", "a/2", "a/3"]
    assert batch.advantages_B.tolist() == pytest.approx([0.6, -0.4, -0.2], abs=1e-6)
    assert by_group["a"].tolist() == pytest.approx([0.6, 0.0, -0.4, -0.2], abs=1e-6)
    assert [len(column) for column in (batch.group_B, batch.datasets, batch.in_loss_B)] == [3, 3, 3]


def test_batch_unscored_rollout_is_left_out_like_a_failed_one() -> None:
    batch, by_group = training_batch([group("a", 1.0, None, 0.0)], RL)
    assert batch is not None
    assert [entry.name for entry in batch.sequences] == ["a/0", "a/2"]
    assert by_group["a"].tolist() == [0.5, 0.0, -0.5]


def test_batch_status_decides_and_not_the_number() -> None:
    """A score with a number but another status than `ok` is no reward."""
    odd = Score(total=9.0, status="error")
    batch, _ = training_batch([group("a", 1.0, odd, 0.0)], RL)
    assert batch is not None
    assert batch.advantages_B.tolist() == [0.5, -0.5]


def test_batch_nothing_scored_is_none_with_zero_advantages() -> None:
    batch, by_group = training_batch([group("a", None, TIMEOUT)], RL)
    assert batch is None
    assert by_group["a"].tolist() == [0.0, 0.0]


def test_batch_keeps_the_order_of_groups_and_samples_and_each_groups_own_baseline() -> None:
    batch, by_group = training_batch([group("z", 1.0, 0.0), group("a", 0.25, 0.75, 0.5)], RL)
    assert batch is not None
    assert [entry.name for entry in batch.sequences] == ["z/0", "z/1", "a/0", "a/1", "a/2"]
    assert batch.group_B.tolist() == [0, 0, 1, 1, 1]
    assert batch.advantages_B.dtype == np.float32
    assert batch.advantages_B.tolist() == [0.5, -0.5, -0.25, 0.25, 0.0]
    assert by_group["z"].tolist() == [0.5, -0.5]
    assert by_group["a"].tolist() == [-0.25, 0.25, 0.0]


def test_batch_drop_uninformative_leaves_out_groups_without_spread_and_only_where_asked() -> None:
    groups = [group("same", 1.0, 1.0), group("mixed", 1.0, 0.0), group("one", 0.5, TIMEOUT)]
    kept, _ = training_batch(groups, RL)
    dropped, by_group = training_batch(groups, RL.model_copy(update={"drop_uninformative": True}))
    assert kept is not None
    assert dropped is not None
    assert [entry.name for entry in kept.sequences] == ["same/0", "same/1", "mixed/0", "mixed/1", "one/0"]
    assert [entry.name for entry in dropped.sequences] == ["mixed/0", "mixed/1"]
    assert dropped.advantages_B.tolist() == [0.5, -0.5]
    assert dropped.in_loss_B.tolist() == [True, True]
    assert by_group["same"].tolist() == [0.0, 0.0]


def test_batch_drop_uninformative_of_every_group_is_none() -> None:
    settings = RL.model_copy(update={"drop_uninformative": True})
    assert training_batch([group("same", 1.0, 1.0)], settings)[0] is None


@pytest.mark.parametrize(
    ("truncation", "advantages", "in_loss"),
    [
        (TruncationSettings(mode="train"), [0.5, -0.5], [True, True]),
        # It counts in the baseline and stays in the batch for the denominators, but gives no loss.
        (TruncationSettings(mode="mask"), [0.5, -0.5], [False, True]),
        # 1 − 0.5 against 0: mean 0.25.
        (TruncationSettings(mode="penalise", penalty=0.5), [0.25, -0.25], [True, True]),
    ],
)
def test_batch_truncated_rollout_follows_the_rule(
    truncation: TruncationSettings, advantages: list[float], in_loss: list[bool]
) -> None:
    settings = RL.model_copy(update={"truncated": truncation})
    batch, _ = training_batch([truncated(group("a", 1.0, 0.0), 0)], settings)
    assert batch is not None
    assert batch.advantages_B.tolist() == advantages
    assert batch.in_loss_B.tolist() == in_loss


def test_batch_penalty_can_make_a_group_informative() -> None:
    settings = RL.model_copy(
        update={"drop_uninformative": True, "truncated": TruncationSettings(mode="penalise", penalty=1.0)}
    )
    batch, _ = training_batch([truncated(group("a", 1.0, 1.0), 1), group("b", 1.0, 1.0)], settings)
    assert batch is not None
    assert [entry.name for entry in batch.sequences] == ["a/0", "a/1"]
    assert batch.advantages_B.tolist() == [0.5, -0.5]


def test_batch_masked_entries_follow_their_rollouts_past_failed_ones() -> None:
    settings = RL.model_copy(update={"truncated": TruncationSettings(mode="mask")})
    batch, _ = training_batch([truncated(group("a", TIMEOUT, 1.0, 0.0), 2)], settings)
    assert batch is not None
    assert [entry.name for entry in batch.sequences] == ["a/1", "a/2"]
    assert batch.in_loss_B.tolist() == [True, False]


def test_batch_temperature_is_that_of_each_sequences_own_group() -> None:
    own = replace(group("b", 1.0, 0.0), sampling=SamplingSettings(temperature=0.5))
    groups = [group("a", 1.0, 0.0), own]
    batch, _ = training_batch(groups, RL)
    assert batch is not None
    assert [entry.temperature for entry in batch.sequences] == [0.75, 0.75, 0.5, 0.5]


def test_batch_datasets_give_each_sequence_its_groups_kl_weight() -> None:
    groups = [group("a", 1.0, TIMEOUT, 0.0, dataset="code"), group("b", 1.0, 0.0, dataset="sums")]
    batch, _ = training_batch(groups, RL)
    assert batch is not None
    assert batch.datasets == ("code", "code", "sums", "sums")
    beta_B = beta_per_rollout(batch.datasets, KlSettings(beta=0.125, beta_by_dataset={"code": 0.5}))
    assert beta_B.tolist() == [0.5, 0.5, 0.125, 0.125]


def conversation(name: str, index: int, reward: float, epochs: list[int], **changes: object) -> Rollout:
    """A rollout of three calls; the third's prompt has another token in place of one that was drawn."""
    calls = [drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7]), drawn_call([2, 3, 8], [9, 9, 9])]
    segments = joined_segments(numbered(calls, epochs), exact=True)
    return rollout(name, index, reward, segments=segments, **changes)


def test_batch_conversation_that_drifted_stops_the_run_or_is_cut_as_set() -> None:
    drifted = conversation("a", 1, 0.0, [0, 0, 0])
    groups = [replace(group("a", 1.0), rollouts=(rollout("a", 0, 1.0), drifted))]
    with pytest.raises(
        SegmentError,
        match="a/1: within an epoch .* 1 do not, and the first has other tokens in place of some that were",
    ):
        training_batch(groups, RL)
    assert segment_metrics(groups)["segments/drift"] == segment_metrics(groups)["segments/drift.sampled"] == 1
    check_segments(drifted, strict=False)
    asked_for = conversation("a", 1, 0.0, [0, 0, 1])
    check_segments(asked_for, strict=True)
    assert segment_metrics([replace(groups[0], rollouts=(rollout("a", 0, 1.0), asked_for))]) == {
        "segments/per_rollout": 1.5,
        "segments/calls_per_rollout": 2.0,
        "segments/drift": 0.0,
        "segments/drift.sampled": 0.0,
        "segments/drift.given": 0.0,
        "segments/drift.shortened": 0.0,
        "segments/route_conflicts": 0.0,
        "segments/superseded_rows": 0.0,
    }
    assert segment_metrics([group("a", 1.0, 0.0)]) == {}, "single answers have nothing to count"


def test_batch_holds_segments_to_one_version_where_contexts_are_computed_anew() -> None:
    """Version 0 draws [4], version 1 [5] and the second call: two calls in two segments, and no drift."""
    drawn = [([2, 3], [(0, [4]), (1, [5])]), ([2, 3, 4, 5, 6], [(1, [7])])]
    calls = [
        part
        for index, (prompt, versions) in enumerate(drawn)
        for part in as_calls(recomputed_call(prompt, versions), index=index, epoch=0)
    ]
    segments = joined_segments(calls, exact=True, one_version=True)
    groups = [replace(group("a", 1.0), rollouts=(rollout("a", 0, 1.0), rollout("a", 1, 0.0, segments=segments)))]
    recomputes = RL.model_copy(update={"max_weight_lag": 1, "on_new_weights": "recompute"})
    batch, _ = training_batch(groups, recomputes)
    assert batch is not None
    assert [entry.name for entry in batch.sequences] == ["a/0", "a/1, segment 0", "a/1, segment 1"]
    assert batch.rollout_S.tolist() == [0, 1, 1]
    metrics = segment_metrics(groups)
    assert (metrics["segments/per_rollout"], metrics["segments/calls_per_rollout"]) == (1.5, 1.5)
    assert (metrics["segments/weight_cuts"], metrics["segments/drift"]) == (0.5, 0.0)
    between = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7], version=1)], [0, 0])
    mixed = [replace(groups[0], rollouts=(rollout("a", 0, 1.0, segments=joined_segments(between, exact=True)),))]
    training_batch(mixed, RL)
    with pytest.raises(SegmentError, match=r"a/0, segment 0: with rl\.on_new_weights=recompute .* tokens of \[0, 1\]"):
        training_batch(mixed, recomputes)


def test_batch_token_that_is_not_what_was_sampled_stops_the_run_in_every_step() -> None:
    """Whatever becomes of the rollout: the second has no reward, and `strict_segments` is about cuts alone."""
    made = group("a", 1.0, TIMEOUT, 0.0)
    segment = made.rollouts[1].segments[0]
    ids = segment.token_ids.copy()
    ids[-1] += 1
    wrong = replace(made.rollouts[1], segments=(replace(segment, token_ids=ids),))
    groups = [replace(made, rollouts=(made.rollouts[0], wrong, made.rollouts[2]))]
    with pytest.raises(SegmentError, match="a/1, segment 0: call 0 must end the tokens that it read and drew"):
        training_batch(groups, RL.model_copy(update={"strict_segments": False}))


def test_batch_conversation_that_ran_out_of_tokens_or_time_counts_as_truncated() -> None:
    for ended, cut in (("answer", False), ("tokens", True), ("time", True), ("turns", False)):
        assert conversation("a", 0, 1.0, [0, 0, 1], ended=ended).truncated == cut


def test_batch_conversation_counts_as_one_answer_and_gives_its_segments() -> None:
    """Rewards 1, 0 and 0.5: a baseline by segment would be 0.625 (the first has two)."""
    two, nothing = conversation("a", 0, 1.0, [0, 0, 1]), rollout("a", 1, 0.0)
    third = joined_segments(numbered([drawn_call([2, 3], []), drawn_call([2, 4], [5])], [0, 1]), exact=True)
    made = replace(group("a"), rollouts=(two, nothing, rollout("a", 2, 0.5, segments=third)))
    batch, by_group = training_batch([made, group("b", 1.0, 0.0)], RL)
    assert batch is not None
    # A segment in which nothing was drawn has nothing to train.
    names = ["a/0, segment 0", "a/0, segment 1", "a/1", "a/2, segment 1", "b/0", "b/1"]
    assert [entry.name for entry in batch.sequences] == names
    assert batch.rollout_S.tolist() == [0, 0, 1, 2, 3, 4]
    assert batch.names == ("a/0", "a/1", "a/2", "b/0", "b/1")
    assert batch.advantages_B.tolist() == [0.5, -0.5, 0.0, 0.5, -0.5]
    assert batch.group_B.tolist() == [0, 0, 0, 1, 1]
    assert [len(column) for column in (batch.datasets, batch.in_loss_B)] == [5, 5]
    assert by_group["a"].tolist() == [0.5, -0.5, 0.0]


def test_scorer_hands_over_every_token_that_a_conversation_drew() -> None:
    children = Children()
    GroupScorer(children).submit(replace(group("a"), rollouts=(conversation("a", 0, 1.0, [0, 0, 1]),)))
    (asked,) = children.requests
    assert (asked.token_ids, asked.num_tokens) == ((4, 5, 7, 9, 9, 9), 6)


def test_scorer_takes_the_environments_score_and_asks_no_reward_function() -> None:
    children, own = Children(), Score(total=0.25, parts={"environment": 0.25})
    judged = conversation("a", 0, 0.0, [0, 0, 1], environment_score=own, score=None)
    made = replace(
        group("a"), rollouts=(judged, rollout("a", 1, None), replace(judged, sample_index=2, failure="aborted"))
    )
    scorer = GroupScorer(children)
    scorer.submit(made)
    assert [request.rollout_key for request in children.requests] == ["a/1"]
    assert [one.score for one in scorer.collect([made])[0].rollouts] == [
        own,
        Children().submit(children.requests[0]).result(),
        None,
    ]
