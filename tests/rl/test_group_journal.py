"""Sampled groups on disk: as they were, whole or not at all, and no longer than a checkpoint needs them."""

import pickle
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samepath.rl import group_journal
from samepath.rl.group_journal import GroupJournal, SampledGroup
from samepath.rl.record_file import JournalError
from samepath.rollout.types import Group
from tests.engine_runs import SAMPLINGS, assert_same_samples, make_engine
from tests.rl.damage import damage_end
from tests.rl.sampled import group
from tests.tiny_runs import request


def drawn_by(version: int, name: str = "g") -> Group:
    """Two samples of one to two tokens, all drawn by weights of one version."""
    made = group(name, None, None)
    rollouts = []
    for rollout in made.rollouts:
        (segment,) = rollout.segments
        versions = np.where(segment.trained, version, -1).astype(np.int32)
        rollouts.append(replace(rollout, segments=(replace(segment, weight_version=versions),)))
    return replace(made, rollouts=tuple(rollouts))


def numbers(journal: GroupJournal, step: int) -> list[int]:
    return [entry.number for entry in journal.entries(step)]


def test_entries_are_what_was_appended(tmp_path: Path) -> None:
    journal, made = GroupJournal(tmp_path), make_engine().run([request("g", (2, 3, 4), SAMPLINGS[1], (1, 2))])[0]
    journal.append(3, SampledGroup(number=12, group=made))
    journal.append(3, SampledGroup(number=13, group=group("failed")))
    one, other = GroupJournal(tmp_path).entries(3)
    assert_same_samples(one.group, made)
    assert one.group.sampling == made.sampling
    assert (one.number, one.newest_version, one.num_tokens) == (12, 0, sum(r.num_trained for r in made.rollouts))
    assert (other.number, other.newest_version) == (13, -1)
    assert journal.entries(4) == []


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_entries_end_where_the_file_is_not_whole(tmp_path: Path, damage: str) -> None:
    journal = GroupJournal(tmp_path)
    for number in (4, 5):
        journal.append(1, SampledGroup(number=number, group=drawn_by(0)))
    damage_end(tmp_path / "sampled" / "step-000001.groups", damage)
    assert numbers(journal, 1) == [4]
    journal.mend()
    journal.append(1, SampledGroup(number=5, group=drawn_by(1)))
    assert numbers(journal, 1) == [4, 5], "what comes later must not stand behind the damage"


def test_entries_make_records_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file from elsewhere runs no code, and costs its own group alone."""
    journal = GroupJournal(tmp_path)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return subprocess.call, ("touch", str(tmp_path / "touched"))

    content = pickle.dumps((7, Evil()))
    monkeypatch.setattr(group_journal, "as_bytes", lambda record: content)
    journal.append(1, SampledGroup(number=7, group=drawn_by(0)))
    monkeypatch.undo()
    journal.append(1, SampledGroup(number=8, group=drawn_by(0)))
    assert numbers(journal, 1) == [8]
    assert not (tmp_path / "touched").exists()


def test_rewind_leaves_what_the_checkpoint_goes_on_with(tmp_path: Path) -> None:
    """Checkpoint 2: of step 2 and 3 what versions up to 2 drew; three tokens a group are left out with version 3."""
    journal = GroupJournal(tmp_path)
    for step, number, version in ((1, 2, 1), (2, 4, 1), (2, 5, 2), (3, 6, 2), (3, 7, 3)):
        journal.append(step, SampledGroup(number=number, group=drawn_by(version)))
    assert journal.rewind(2) == 3
    assert [numbers(journal, step) for step in (1, 2, 3)] == [[2], [4, 5], [6]]
    assert journal.rewind(2) == 0


def test_prune_keeps_what_a_checkpoint_goes_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = GroupJournal(tmp_path)
    for step in range(8):
        journal.append(step, SampledGroup(number=step, group=drawn_by(step)))
    journal.prune(7, {0, 4}, 1)
    # Of the reference the steps 0 and 1, and all from the newest checkpoint on.
    assert [step for step in range(8) if numbers(journal, step)] == [0, 1, 4, 5, 6, 7]
    monkeypatch.setattr(group_journal, "MOST_KEPT_BYTES", 100)
    journal.prune(7, {0, 4}, 1)
    # Too much: of the newest checkpoint too only what its own weights drew; step 7 is not trained yet.
    assert [step for step in range(8) if numbers(journal, step)] == [0, 1, 4, 5, 7]
    journal.prune(8, {6}, 1)
    assert [step for step in range(8) if numbers(journal, step)] == [7]


def test_append_to_a_folder_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "sampled").write_text("in the way")
    with pytest.raises(JournalError, match=r"step-000001\.groups cannot be written: .*Make room"):
        GroupJournal(tmp_path).append(1, SampledGroup(number=4, group=drawn_by(0)))
