"""Packing: each row predicts the next token of its own segment, with the sampler's records beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.rl.batch import TrainSequence, pack, split_by_tokens
from samepath.rl.replay import RouteError
from samepath.rollout.types import Segment, Support
from tests.conftest import tiny_config

CONFIG = tiny_config()


def make_segment(prompt: list[int], response: list[int], support: list[list[int]] | None = None) -> Segment:
    """A segment whose records number themselves, so that every entry can be told from every other."""
    total = len(prompt) + len(response)
    trained = np.arange(total) >= len(prompt)
    routes = (np.arange(total)[:, None, None] + np.array([[0, 1], [2, 3]])).astype(np.int16) % 8
    routes[-1] = -1
    fingerprints = (np.arange(total)[:, None] * 10 + np.arange(3)).astype(np.uint64) + np.uint64(2**63)
    record = None
    if support is not None:
        record = Support(
            counts=np.array([len(ids) for ids in support], np.int32),
            ids=np.array([token for ids in support for token in ids], np.int32),
        )
    return Segment(
        token_ids=np.array(prompt + response, np.int32),
        trained=trained,
        sampler_logprobs=np.where(trained, -np.arange(total) / 8, 0).astype(np.float32),
        routes=routes,
        support=record,
        selection_fingerprint=fingerprints,
        weight_version=np.where(trained, 4, -1).astype(np.int32),
        finish_reason="stop",
    )


def sequence(segment: Segment, temperature: float = 1.0) -> TrainSequence:
    return TrainSequence(segment=segment, temperature=temperature, name="g/0")


def test_pack_two_segments_worked_by_hand() -> None:
    """Prompts [5, 6, 7] and [9], responses [8, 1] and [3, 4, 1]: 4 + 3 rows run, 5 tokens trained."""
    first, second = make_segment([5, 6, 7], [8, 1]), make_segment([9], [3, 4, 1])
    batch = pack([sequence(first), sequence(second, 0.5)], CONFIG)
    assert batch.num_rows == 7
    assert batch.token_ids_N.tolist() == [5, 6, 7, 8, 9, 3, 4] + [0] * 9
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 0, 1, 2] + [0] * 9
    assert batch.rows_M.tolist() == [2, 3, 4, 5, 6]
    assert batch.targets_M.tolist() == [8, 1, 3, 4, 1]
    assert batch.sequence_M.tolist() == [0, 0, 1, 1, 1]
    assert batch.temperature_M.tolist() == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert batch.sampler_logprobs_M.tolist() == [-0.375, -0.5, -0.125, -0.25, -0.375]
    assert batch.version_M.tolist() == [4] * 5
    assert batch.support is None
    assert batch.missing_routes == 0
    assert batch.routes_LNX.shape == (2, 16, 2)
    assert batch.routes_LNX[1, :7, 0].tolist() == [2, 3, 4, 5, 2, 3, 4]
    assert bool((batch.routes_LNX[:, 7:] == -1).all())
    recorded = batch.fingerprints_NL.numpy().view(np.uint64)
    assert (recorded[:7, 1] - np.uint64(2**63)).tolist() == [1, 11, 21, 31, 1, 11, 21]


def test_pack_windows_keep_segments_apart() -> None:
    batch = pack([sequence(make_segment([5, 6, 7], [8, 1])), sequence(make_segment([9], [3, 4, 1]))], CONFIG)
    past = {}
    for window in batch.plan.windows:
        for rows_T, ends_T, keys_S in zip(window.rows_BT, window.ends_BT, window.keys_BS):
            for row, end in zip(rows_T.tolist(), ends_T.tolist()):
                if end:
                    past[row] = keys_S[:end].tolist()
    assert past == {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3], 4: [4], 5: [4, 5], 6: [4, 5, 6]}


def test_pack_trained_tokens_need_not_be_contiguous() -> None:
    """Tool text between two sampled stretches is run but not trained."""
    segment = make_segment([5, 6], [7, 8, 9, 1])
    trained = np.array([False, False, True, False, False, True])
    batch = pack([sequence(replace(segment, trained=trained))], CONFIG)
    assert batch.rows_M.tolist() == [1, 4]
    assert batch.targets_M.tolist() == [7, 1]


def test_pack_supports_of_mixed_segments_are_aligned() -> None:
    """A segment without a record has the full vocabulary: count 0 on each of its tokens."""
    entries = [
        sequence(make_segment([5], [8, 1], [[1, 8], [1]])),
        sequence(make_segment([5], [8, 7, 1])),
        sequence(make_segment([5], [1], [[]])),
        sequence(make_segment([5], [3], [[2, 3, 4]])),
    ]
    support = pack(entries, CONFIG).support
    assert support is not None
    assert support.counts_N.tolist() == [2, 1, 0, 0, 0, 0, 3]
    assert support.ids.tolist() == [1, 8, 1, 2, 3, 4]


def test_pack_support_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="each of the 2 sampled tokens; got 1"):
        pack([sequence(make_segment([5], [8, 1], [[1, 8]]))], CONFIG)


def test_pack_missing_routes_are_counted_without_the_last_row_and_padding() -> None:
    segment = make_segment([5, 6], [7, 1])
    segment.routes[1] = -1
    assert pack([sequence(segment)], CONFIG).missing_routes == 2


def test_pack_unusable_routes_name_the_sequence() -> None:
    segment = make_segment([5, 6], [7, 1])
    segment.routes[1, 0] = [3, 3]
    with pytest.raises(RouteError, match="g/0: an expert is chosen at most once"):
        pack([sequence(segment)], CONFIG)


def test_pack_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        pack([], CONFIG)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12), max_tokens=st.integers(1, 60))
def test_split_by_tokens_keeps_order_and_fits_whenever_it_can(lengths: list[int], max_tokens: int) -> None:
    entries = [sequence(make_segment([5], [3] * (length - 1))) for length in lengths]
    parts = split_by_tokens(entries, max_tokens)
    assert [index for part in parts for index in part] == list(range(len(lengths)))
    rows = [sum(lengths[index] - 1 for index in part) for part in parts]
    for part, total in zip(parts, rows, strict=True):
        assert total <= max_tokens or len(part) == 1
    for (_, total), follower in zip(zip(parts, rows), parts[1:]):
        assert total + lengths[follower[0]] - 1 > max_tokens


def test_split_by_tokens_worked_by_hand() -> None:
    entries = [sequence(make_segment([5], [3] * count)) for count in (4, 4, 9, 2, 3)]
    assert split_by_tokens(entries, 8) == [[0, 1], [2], [3, 4]]
    assert split_by_tokens([], 8) == []


def test_pack_padding_is_at_most_fifteen_rows() -> None:
    for count in (16, 17, 31, 32):
        batch = pack([sequence(make_segment([5], [3] * count))], CONFIG)
        assert len(batch.token_ids_N) == -(-count // 16) * 16
        assert batch.num_rows == count
        assert torch.equal(batch.rows_M, torch.arange(count))
