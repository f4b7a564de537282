"""Samples that are interrupted at any step and go on in another engine: the same to the bit, and nothing drawn twice."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from samepath.model.files.checkpoint import published_tensors
from samepath.rollout.begun import Progress, going_on, has_ended
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group, Rollout
from tests.conftest import tiny_model
from tests.engine_runs import (
    SAMPLINGS,
    assert_nothing_leaked,
    assert_same_samples,
    make_engine,
    mixed_requests,
    steps_until_done,
)
from tests.tiny_runs import request

OTHER = {name: tensor.clone() for name, tensor in published_tensors(tiny_model(3)).items()}


def interrupted(
    engine: BuiltinEngine, requests: Sequence[GroupRequest], steps: int, every: int
) -> list[GroupRequest | Group]:
    """Each group after so many steps: finished, or as a request that goes on; progress is told every so many steps."""
    told: dict[str, list[Progress]] = {one.group_id: [] for one in requests}
    done = {group.group_id: group for one in requests if (group := engine.submit(one)) is not None}
    for step in range(steps):
        done |= {group.group_id: group for group in engine.step()}
        if step % every == 0 or step == steps - 1:
            for one in engine.progress():
                told[one.group_id].append(one)
    return [done[one.group_id] if one.group_id in done else going_on(one, told[one.group_id]) for one in requests]


def gone_on(engine: BuiltinEngine, left: Sequence[GroupRequest | Group]) -> list[Group]:
    asked = [one for one in left if isinstance(one, GroupRequest)]
    finished = {group.group_id: group for group in engine.run(asked)}
    return [finished[one.group_id] if isinstance(one, GroupRequest) else one for one in left]


@pytest.mark.parametrize("steps", [1, 3, 8, 15])
@pytest.mark.parametrize("cache_tokens", [4096, 256])
def test_samples_that_go_on_elsewhere_are_those_that_nobody_interrupted(steps: int, cache_tokens: int) -> None:
    """At equal weights, with pages enough and with so few that samples give them back; cut twice."""
    wanted = make_engine(max_sequences=16).run(mixed_requests())
    settings = {"max_sequences": 16, "cache_tokens": cache_tokens, "page_size": 8}
    left: list[GroupRequest | Group] = [*mixed_requests()]
    for every in (1, 4):
        engine = make_engine(**settings)
        asked = [one for one in left if isinstance(one, GroupRequest)]
        ended = {one.group_id: one for one in left if isinstance(one, Group)}
        after = {one.group_id: one for one in interrupted(engine, asked, steps, every)}
        left = [after.get(one.group_id) or ended[one.group_id] for one in left]
    assert any(isinstance(one, GroupRequest) and one.begun for one in left) or steps > 10
    engine = make_engine(**settings)
    drawn = sum(one.num_trained for group in left if isinstance(group, GroupRequest) for one in group.begun)
    for got, group in zip(gone_on(engine, left), wanted, strict=True):
        assert_same_samples(got, group)
    total = sum(one.num_trained for group, one in ((group, one) for group in wanted for one in group.rollouts))
    over = sum(one.num_trained for group in left if isinstance(group, Group) for one in group.rollouts)
    assert engine.counters.sampled_tokens == total - over - drawn, "what was drawn is not drawn again"
    assert_nothing_leaked(engine)


@pytest.mark.parametrize("cut", [2, 5])
def test_samples_go_on_with_new_weights_as_recompute_lets_them(cut: int) -> None:
    """Interrupted between two versions or behind both: the segments are those of an engine that lived through it."""
    asked = [request(f"g{n}", (2, 3, 4 + n), SAMPLINGS[n], (n, n + 1)) for n in (0, 1, 3)]
    lived = make_engine()
    for one in asked:
        lived.submit(one)
    wanted: list[Group] = []
    for _ in range(4):
        wanted += lived.step()
    lived.load_weights(OTHER, 1, recompute=True)
    wanted += steps_until_done(lived)
    first = make_engine()
    left: Sequence[GroupRequest | Group]
    if cut == 2:
        left = interrupted(first, asked, 4, 1)
    else:
        told = interrupted(first, asked, 4, 2)
        assert all(isinstance(one, GroupRequest) for one in told)
        first.load_weights(OTHER, 1, recompute=True)
        progress = []
        for _ in range(3):
            assert not first.step()
            progress += first.progress()
        left = [
            going_on(one, [told for told in progress if told.group_id == one.group_id])
            for one in told
            if isinstance(one, GroupRequest)
        ]
    second = make_engine(tiny_model())
    second.load_weights(OTHER, 1)
    by_id = {group.group_id: group for group in gone_on(second, left)}
    for group in wanted:
        assert [len(one.segments) for one in by_id[group.group_id].rollouts] == [
            len(one.segments) for one in group.rollouts
        ]
        assert_same_samples(by_id[group.group_id], group)


def test_samples_of_a_group_that_have_ended_come_back_as_they_were() -> None:
    asked = request("g", (2, 3, 4), SAMPLINGS[1].model_copy(update={"max_new_tokens": 40}), range(6))
    (wanted,) = make_engine().run([asked])
    lengths = sorted(one.num_trained for one in wanted.rollouts)
    assert lengths[0] < lengths[-1]
    (left,) = interrupted(make_engine(), [asked], lengths[0] + 1, 1)
    assert isinstance(left, GroupRequest)
    assert 0 < sum(map(has_ended, left.begun)) < 6
    (got,) = gone_on(make_engine(), [left])
    assert_same_samples(got, wanted)


def test_weights_that_come_while_a_group_waits_to_go_on_cut_it_once(tokenizer) -> None:
    """Whether it has a row already or not."""
    asked = [request(name, (2, 3, 4), SAMPLINGS[0], (1, 2, 3)) for name in "ab"]
    left = interrupted(make_engine(), asked, 5, 1)
    engine = make_engine(max_sequences=4)
    for one in left:
        assert isinstance(one, GroupRequest)
        engine.submit(one)
    engine.step()
    engine.load_weights(OTHER, 1, recompute=True)
    for group in steps_until_done(engine):
        for rollout in group.rollouts:
            assert [one.finish_reason for one in rollout.segments] == ["weights", "length"]
            versions = [set(one.weight_version[one.trained].tolist()) for one in rollout.segments]
            assert versions == [{0}, {1}]


def test_progress_of_nothing_new_is_nothing_and_abort_keeps_what_had_begun() -> None:
    asked = [request(name, (2, 3, 4), SAMPLINGS[0], (1, 2, 3)) for name in "ab"]
    left = [one for one in interrupted(make_engine(), asked, 5, 1) if isinstance(one, GroupRequest)]
    engine = make_engine(max_sequences=4)
    for one in left:
        engine.submit(one)
    assert engine.progress() == []
    aborted = {group.group_id: group for group in engine.abort()}
    for one in left:
        assert [rollout.num_trained for rollout in aborted[one.group_id].rollouts] == [5, 5, 5]


def test_request_that_has_begun_in_part_is_refused() -> None:
    empty = Rollout(prompt_id="p", group_id="g", sample_index=0, segments=(), text="")
    with pytest.raises(ValueError, match=r"each of the 2 has a token; got \[0\] tokens"):
        replace(request("g", (2, 3), SAMPLINGS[0]), begun=(empty,))


def test_rows_are_told_once() -> None:
    """What is told every step and what is told at once is the same."""
    asked = [request("g", (2, 3, 4), SAMPLINGS[2], (1, 2))]
    often, (once,) = interrupted(make_engine(), asked, 6, 1), interrupted(make_engine(), asked, 6, 100)
    (one,) = often
    assert isinstance(one, GroupRequest)
    assert isinstance(once, GroupRequest)
    for left, right in zip(one.begun, once.begun, strict=True):
        for a, b in zip(left.segments, right.segments, strict=True):
            assert np.array_equal(a.routes, b.routes)
            assert np.array_equal(a.token_ids, b.token_ids)
