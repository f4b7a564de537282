"""Engines in two ranks sample what one does, from the weights that each has learned itself; a lost rank is said, and what it was asked for is not mixed up."""

from collections.abc import Iterator

import numpy as np
import pytest

from samepath.rollout.pool.pool import Handover, RolloutPool
from samepath.rollout.types import Group
from tests.engine_runs import assert_same_samples
from tests.random_conversations import episodes
from tests.rl.learner.rank_pools import Pools, asked


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    made = Pools(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()


def sampled_tokens(pool: RolloutPool) -> float:
    return pool.statistics()["sampled_tokens"]


def test_two_ranks_sample_what_one_engine_does_before_and_after_an_update(pools: Pools) -> None:
    requests = asked(9)
    samples = []
    for _ in range(2):
        heard: list[Group] = []
        groups = pools.both.sample(requests, heard.append)
        assert [group.group_id for group in groups] == [one.group_id for one in requests]
        assert sorted(group.group_id for group in heard) == sorted(group.group_id for group in groups), "each once"
        for group, other in zip(groups, pools.alone.sample(requests, lambda group: None), strict=True):
            assert_same_samples(group, other)
        samples.append(groups)
        pools.learn()
        for pool in (pools.both, pools.alone):
            pool.load_weights(pools.learner.weights(), pools.version)
        assert pools.both.handover() == Handover(load_s=0.0, sent_bytes=0), "both share their learners' tensors"
    first, second = ([one.segments[0] for group in groups for one in group.rollouts] for groups in samples)
    assert not all(np.array_equal(one.token_ids, other.token_ids) for one, other in zip(first, second, strict=True))


def test_both_engines_work_and_their_totals_are_added(pools: Pools) -> None:
    before = [sampled_tokens(pool) for pool in (pools.both, pools.both._own)]
    pools.both.sample(asked(8), lambda group: None)
    both, own = (sampled_tokens(pool) - at for pool, at in zip((pools.both, pools.both._own), before, strict=True))
    assert (both, own) == (8 * 2 * 12, 8 * 12), "equal groups are dealt out in turn"
    assert pools.both.statistics()["peak_bytes"] > 1.2 * pools.both._own.statistics()["peak_bytes"]
    assert pools.both.statistics()["replaced_workers"] == 0


def test_rank_without_groups_counts_as_idle(pools: Pools) -> None:
    before = pools.both._clocks[0].seconds
    pools.both.sample(asked(1, tokens=60), lambda group: None)
    assert pools.both._clocks[0].seconds > before
    assert pools.both.idle_s() == pytest.approx(
        (pools.both._own.idle_s() + pools.both._clocks[0].seconds) / 2, abs=0.05
    )


def test_groups_beyond_what_both_hold_wait_for_room(pools: Pools) -> None:
    pools.both.submit(asked(30))
    assert len(pools.both._queue) == 30 - 8, "twice the four rows of each engine, two samples a group"
    pools.drained(30)
    assert pools.both.poll(0.0) == []


def test_call_of_all_ranks_in_the_middle_of_sampling_gets_its_own_answer_and_no_group_is_lost(pools: Pools) -> None:
    pools.both.submit(asked(6, tokens=40))
    groups: list[Group] = []
    while len(groups) < 6:
        assert pools.learner.statistics()["parameters"] > 0
        groups += pools.both.poll(1.0)
    assert sorted(group.group_id for group in groups) == [f"g{index}" for index in range(6)]


def test_weights_offered_while_samples_are_under_way_are_taken_by_both(pools: Pools) -> None:
    pools.both.submit(asked(40, tokens=45))
    pools.learn()
    pools.both.offer_weights(pools.learner.weights(), pools.version, "continue")
    of_each: list[set[str]] = [set(), set()]
    groups: list[Group] = []
    while len(groups) < 40:
        for seen, under_way in zip(of_each, pools.both._under_way, strict=True):
            seen |= set(under_way)
        groups += pools.both.poll(1.0)
    newest = {
        group.group_id: max(int(one.segments[-1].weight_version.max()) for one in group.rollouts) for group in groups
    }
    for seen in of_each:
        # Most were dealt out after the weights had come.
        assert [newest[group_id] for group_id in seen].count(pools.version) > len(seen) / 2


def test_conversations_are_led_in_both_ranks(pools: Pools) -> None:
    requests, before = episodes(), [sampled_tokens(pool) for pool in (pools.both._own, pools.both)]
    groups = pools.both.sample(requests, lambda group: None)
    own, both = (sampled_tokens(pool) - at for pool, at in zip((pools.both._own, pools.both), before, strict=True))
    assert 0 < own < both
    pools.alone.load_weights(pools.learner.weights(), pools.version)
    for group, other in zip(groups, pools.alone.sample(requests, lambda group: None), strict=True):
        assert_same_samples(group, other)
