"""New weights in the middle of conversations that compute every context anew: each token's record is its own version's, to the last bit."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samepath.model.files.checkpoint import published_tensors
from samepath.rl.batch.segment_check import check_segments
from samepath.rollout import segments as cutting
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.conservation import weight_cuts
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.segments import SegmentError
from samepath.rollout.types import TOKEN_KINDS, Group, Rollout
from tests.conftest import tiny_model
from tests.engine_runs import assert_nothing_leaked
from tests.random_conversations import episodes, talking_tokenizer
from tests.rollout.builtin.test_recompute import gap, versions

VERSIONS = 5
APART = 5
"""Fewest steps between two versions."""


def led(*, recompute: bool = True, one_version: bool = True, groups: int = 3, **changes: int) -> list[Group]:
    """Conversations with new weights again and again, in the very step that ends a message: it lies between two calls, and others are within one."""
    torch.set_grad_enabled(True)
    settings = BuiltinSettings(max_sequences=6, page_size=4).model_copy(update=changes)
    engine = BuiltinEngine(tiny_model(), talking_tokenizer(), settings)
    runner, step, ends = EpisodeRunner(engine, exact=True), engine.step, [0]

    def watched() -> list[Group]:
        messages = step()
        ends.append(len(messages))
        return messages

    engine.step = watched  # type: ignore[method-assign]
    coming, newest_at, held = versions(VERSIONS), 0, list[Group]()
    for request in episodes(groups):
        assert runner.submit(replace(request, one_version=one_version)) is None
    try:
        while runner.busy:
            held += runner.step()
            if ends[-1] and engine.counters.steps >= newest_at + APART and engine.weight_version < VERSIONS - 1:
                newest_at, version = engine.counters.steps, engine.weight_version + 1
                engine.load_weights(published_tensors(coming[version]), version, recompute=recompute)
    finally:
        runner.abort()
    assert engine.weight_version == VERSIONS - 1
    assert_nothing_leaked(engine)
    assert not changes or engine.counters.preempted > 0
    return sorted(held, key=lambda group: group.group_id)


def rollouts(groups: list[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def within(rollout: Rollout) -> int:
    """Calls that new weights cut, as often as they did."""
    return sum(segment.finish_reason == "weights" for segment in rollout.segments)


@pytest.mark.parametrize("changes", [{}, {"max_batch_tokens": 16, "cache_tokens": 336}])
def test_every_token_of_a_conversation_has_a_gap_of_zero_to_its_own_version(changes: dict[str, int]) -> None:
    """Also where the cache is small, contexts are prefilled in pieces, and calls give their pages back."""
    groups = led(**changes)
    played = rollouts(groups)
    assert not any(rollout.failure for rollout in played)
    assert gap(groups, versions(VERSIONS)) == 0.0
    assert sum(map(within, played)) > 4, "weights came within calls"
    assert sum(weight_cuts(one.segments) - within(one) for one in played) > 0, "and between two"
    for rollout in played:
        check_segments(rollout, strict=True, one_version=True)
        assert all(segment.trained.any() for segment in rollout.segments)
        turns = [span.index for segment in rollout.segments for span in segment.calls if not span.goes_on]
        drawn = [message for message in rollout.messages if message.sampled]
        assert turns == list(range(len(drawn)))
        for before, after in pairwise(rollout.segments):
            if before.epoch == after.epoch:
                assert after.kinds is not None
                assert before.kinds is not None
                read = after.kinds[: len(before.kinds)][before.trained]
                assert {TOKEN_KINDS[kind] for kind in read.tolist()} == {"sampled"}, "read again, not trained again"
        ids = [int(id_) for segment in rollout.segments for id_ in segment.token_ids[segment.trained]]
        assert ids == [id_ for message in drawn for id_ in message.sampled]


def test_conversation_that_is_not_cut_at_new_weights_is_the_control_that_has_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Segments of an epoch whole, as if the weights had stood still: rows of earlier calls are of other weights."""
    monkeypatch.setattr(cutting, "cut_versions", lambda calls: [list(calls)])
    groups = led()
    assert gap(groups, versions(VERSIONS)) > 1e-3
    versions_of = [{int(version) for version in one.segments[0].weight_version} - {-1} for one in rollouts(groups)]
    mixed = next(one for one, own in zip(rollouts(groups), versions_of, strict=True) if len(own) > 1)
    with pytest.raises(SegmentError, match="must be of one weight version in every row|a call that new weights cut"):
        check_segments(mixed, strict=True, one_version=True)


def test_going_on_behind_old_keys_is_refused_where_every_context_is_to_be_of_one_version() -> None:
    with pytest.raises(SegmentError, match=r"one weight version must have drawn each segment of a call; got \[\d, "):
        led(recompute=False, groups=1)


def test_conversation_that_expects_no_cut_refuses_one() -> None:
    with pytest.raises(SegmentError, match="new weights may cut a call only where"):
        led(one_version=False, groups=1)
