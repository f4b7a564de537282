"""What a killed run had drawn: on the disk as it was told, and trained once the weights that drew it are there again."""

from pathlib import Path

import numpy as np
import pytest

from samepath.rl.begun_journal import BegunJournal
from samepath.rl.group_journal import GroupJournal, SampledGroup
from samepath.rl.kept_samples import KeptSamples
from samepath.rollout.begun import Drawn, Progress
from samepath.rollout.record_bytes import as_bytes
from tests.rl.damage import damage_end
from tests.rl.sampled import rollout
from tests.rl.test_group_journal import drawn_by


class ByTwos:
    """In place of a feed: two groups a step."""

    def step(self, number: int) -> int:
        return number // 2


def told(version: int, count: int, sample: int = 0) -> Progress:
    """So many tokens of one sample."""
    drawn = Drawn(
        index=sample,
        segment=0,
        token_ids=np.arange(count, dtype=np.int32),
        logprobs=np.zeros(count, np.float32),
        versions=np.full(count, version, np.int32),
        support=None,
        routes=np.zeros((count, 1, 1), np.int16),
        fingerprints=np.zeros((count, 1), np.uint64),
    )
    return Progress(group_id="g", drawn=(drawn,), ended=())


def kept(tmp_path: Path) -> KeptSamples:
    feed, groups, begun = ByTwos(), GroupJournal(tmp_path), BegunJournal(tmp_path)
    return KeptSamples(feed=feed, journal=groups, begun_journal=begun)  # type: ignore[arg-type]


def versions(progress: list[Progress]) -> list[int]:
    return [one.newest_version for one in progress]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_begun_journal_gives_back_what_was_told_in_order_as_far_as_it_is_whole(tmp_path: Path, damage: str) -> None:
    journal = BegunJournal(tmp_path)
    journal.append(1, [(2, as_bytes(told(0, 3))), (3, as_bytes(told(1, 1)))])
    journal.append(1, [(2, as_bytes(told(2, 1)))])
    assert {number: versions([*one]) for number, one in journal.entries(1).items()} == {2: [0, 2], 3: [1]}
    damage_end(tmp_path / "sampled" / "step-000001.begun", damage)
    journal.mend()
    journal.append(1, [(2, as_bytes(told(3, 1)))])
    assert {number: versions([*one]) for number, one in journal.entries(1).items()} == {2: [0, 3], 3: [1]}
    journal.prune(1)
    assert journal.entries(1)
    journal.prune(2)
    assert not journal.entries(1)


def test_begun_journal_makes_records_alone_and_leaves_a_spoilt_group_out(tmp_path: Path) -> None:
    journal = BegunJournal(tmp_path)
    journal.append(0, [(0, as_bytes(told(0, 1))), (1, as_bytes(told(0, 1))), (0, b"cos\nsystem\n(S'true'\ntR.")])
    journal.append(0, [(0, as_bytes(told(0, 1)))])
    assert [*journal.entries(0)] == [1]


def test_rewind_of_begun_samples_leaves_the_beginning_that_older_weights_drew(tmp_path: Path) -> None:
    journal = BegunJournal(tmp_path)
    journal.append(2, [(4, as_bytes(told(version, 1))) for version in (1, 2, 3, 2)])
    journal.rewind(2)
    assert versions([*journal.entries(2)[4]]) == [1, 2]


def test_groups_wait_for_the_weights_that_drew_them(tmp_path: Path) -> None:
    made = kept(tmp_path)
    for number, version in ((2, 1), (3, 2), (5, 3)):
        made.journal.append(number // 2, SampledGroup(number=number, group=drawn_by(version)))
    made.begun_journal.append(2, [(4, as_bytes(told(2, 3)))])
    made.begun_journal.append(1, [(2, as_bytes(told(1, 1)))])
    made.read(range(1, 4), lambda number: True)
    assert [entry.number for entry in made.ready(1)] == [2]
    assert [number for number in range(6) if made.waits(number, 1)] == [3, 4, 5]
    assert [entry.number for entry in made.ready(2)] == [3]
    assert [number for number in range(6) if made.waits(number, 2)] == [5]
    assert versions(made.taken(4)) == [2]
    assert made.taken(4) == []
    assert made.taken(2) == [], "it has ended"


def test_other_weights_cost_what_they_and_later_ones_drew_and_no_more(tmp_path: Path) -> None:
    made = kept(tmp_path)
    made.journal.append(2, SampledGroup(number=4, group=drawn_by(3)))
    made.begun_journal.append(2, [(4, as_bytes(told(1, 1))), (5, as_bytes(told(1, 2))), (5, as_bytes(told(2, 4)))])
    ended = Progress(group_id="g", drawn=(), ended=(rollout("g", 3),))
    made.begun_journal.append(3, [(6, as_bytes(told(1, 2, sample=3))), (6, as_bytes(ended)), (7, as_bytes(told(1, 1)))])
    made.read(range(2, 5), lambda number: True)
    # Of group 4 the one token of three that was told under version 1 stays; of group 5 two of six; groups 6 and 7 are of older weights.
    assert made.drop(2) == 2 + 4
    assert not made.groups
    assert {number: versions(one) for number, one in made.begun.items()} == {4: [1], 5: [1], 6: [1, 0], 7: [1]}
    # On the disk too: what is told from now on stands behind it.
    made.begun_journal.append(2, [(5, as_bytes(told(2, 1)))])
    assert versions([*made.begun_journal.entries(2)[5]]) == [1, 2]
    assert made.drop(2) == 0
    assert made.drop(0) == 1 + 2 + 4 + 1
    assert made.begun == {}
