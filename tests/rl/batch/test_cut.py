"""A batch cut into passes: every sequence is placed once, and where it was placed is where packing would place it."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.batch.cut import cut
from samepath.rl.batch.pack import TrainSequence, pack
from samepath.rl.batch.shared_rows import Placed, SharedRows
from samepath.rl.learner.worked_batches import supervised_sequence
from samepath.rollout.types import Segment
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import rollout_batch

SHAPE = tiny_model().shape


def sequences_of(prompts: list[int], lengths: list[int]) -> list[TrainSequence]:
    """Some with equal prompts, longer ones of which begin as shorter ones go on."""
    return [
        supervised_sequence((2 + prompt,) * 5, tuple(2 + place % 7 for place in range(length)), SHAPE)
        for prompt, length in zip(prompts, lengths)
    ]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_parts_are_placed_as_packing_places_them(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=14))
    prompts = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))))
    rollouts = sorted(data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths))))
    sequences = sequences_of(prompts, lengths)
    at_least, multiple = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    limit = data.draw(st.integers(16, 90))
    parts = cut(sequences, limit, at_least, multiple_of=multiple, rollout_S=rollouts)
    assert [index for part in parts for index in part.indices] == list(range(len(sequences)))
    for part in parts:
        own = [sequences[index] for index in part.indices]
        known, fresh = pack(own, SHAPE, placed=part.placed), pack(own, SHAPE)
        assert part.num_rows == known.num_rows == fresh.num_rows
        for field in fields(fresh):
            one, other = getattr(known, field.name), getattr(fresh, field.name)
            assert (
                torch.equal(one, other)
                if isinstance(other, torch.Tensor)
                else field.name in ("plan", "support") or one == other
            )
    if len(set(rollouts)) >= 12:
        assert len(parts) >= at_least


def test_parts_are_as_many_for_each_rank() -> None:
    """Nine of 14 rows each: two fit into a part, so there are five; of six no even cut is found."""
    sequences = sequences_of(list(range(9)), [10] * 9)
    assert [len(cut(sequences, 40, 1, multiple_of=ranks)) for ranks in (1, 2, 4, 5)] == [5, 5, 8, 5]
    assert [len(cut(sequences[:6], 50, 1, multiple_of=ranks)) for ranks in (1, 2, 3)] == [2, 2, 3]
    assert [part.indices for part in cut(sequences[:4], 1000, 2, multiple_of=4)] == [[0], [1], [2], [3]]
    assert len(cut(sequences[:2], 1000, 1, multiple_of=4)) == 2, "no more parts than rollouts"


@pytest.mark.parametrize(("at_least", "extra"), [(1, 0), (2, 8)])
def test_sequences_are_placed_once_and_those_behind_the_first_part_once_more(
    at_least: int, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of a part is one of all rows, for which all must be placed together."""
    batch = rollout_batch(character_tokenizer(ALPHABET))
    plain, seen = SharedRows.place, []

    def counted(shared: SharedRows, segment: Segment) -> Placed:
        seen.append(segment)
        return plain(shared, segment)

    monkeypatch.setattr(SharedRows, "place", counted)
    for part in cut(batch.sequences, 10_000, at_least):
        pack([batch.sequences[index] for index in part.indices], SHAPE, placed=part.placed)
    assert abs(len(seen) - len(batch.sequences) - extra) <= 2 * (at_least - 1)
