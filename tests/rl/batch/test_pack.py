"""Packing: each row predicts the next token of its own segment, with the sampler's records beside it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.rl.batch.cut import split_by_tokens
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rl.batch.route_check import RouteError
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
    assert seen_rows(batch) == {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3], 4: [4], 5: [4, 5], 6: [4, 5, 6]}


def seen_rows(batch: PackedBatch) -> dict[int, list[int]]:
    """Batch rows that each row attends to, in order of position."""
    past = {}
    for window in batch.plan.windows:
        for rows_T, ends_T, keys_S in zip(window.rows_BT, window.ends_BT, window.keys_BS):
            for row, end in zip(rows_T.tolist(), ends_T.tolist()):
                if end:
                    past[row] = keys_S[:end].tolist()
    return past


def test_pack_samples_of_one_prompt_worked_by_hand() -> None:
    """Prompt [5, 6, 7] three times, responses [8, 1], [1] and [9, 4, 1]: 3 + 1 + 0 + 2 rows run instead of 4 + 3 + 5."""
    responses = [[8, 1], [1], [9, 4, 1]]
    batch = pack([sequence(make_segment([5, 6, 7], response)) for response in responses], CONFIG)
    assert batch.num_rows == 6
    assert batch.token_ids_N[:6].tolist() == [5, 6, 7, 8, 9, 4]
    assert batch.positions_N[:6].tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.rows_R.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 4, 5]
    assert batch.sequence_R.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert batch.rows_M.tolist() == [2, 3, 2, 2, 4, 5], "the prompt's last row predicts every first token"
    assert batch.targets_M.tolist() == [8, 1, 1, 9, 4, 1]
    assert batch.sequence_M.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.routes_LNX[0, :6, 0].tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.prompts_apart == 0
    assert seen_rows(batch) == {
        0: [0],
        1: [0, 1],
        2: [0, 1, 2],
        3: [0, 1, 2, 3],
        4: [0, 1, 2, 4],
        5: [0, 1, 2, 4, 5],
    }


@pytest.mark.parametrize("record", ["routes", "selection_fingerprint"])
def test_pack_samples_whose_prompts_took_other_paths_stay_apart(record: str) -> None:
    """The second sample's prompt went another way; the third's went the first's."""
    segments = [make_segment([5, 6, 7], response) for response in ([8, 1], [9, 1], [4, 1])]
    values = getattr(segments[1], record)
    values[1] = values[1][..., ::-1].copy() + (1 if record == "selection_fingerprint" else 0)
    batch = pack([sequence(segment) for segment in segments], CONFIG)
    assert batch.prompts_apart == 1
    assert batch.num_rows == 4 + 3 + 1, "all but its first row, which took the same path"
    assert batch.rows_R.tolist() == [0, 1, 2, 3, 0, 4, 5, 6, 0, 1, 2, 7]
    assert batch.fingerprints_NL is not None
    for index, segment in enumerate(segments):
        rows = batch.rows_R[batch.sequence_R == index]
        assert np.array_equal(batch.routes_LNX[:, rows].transpose(0, 1).numpy(), segment.routes[:4])
        assert np.array_equal(batch.fingerprints_NL[rows].numpy().view(np.uint64), segment.selection_fingerprint[:4])


def test_pack_responses_share_what_they_have_in_common() -> None:
    """[8, 9, 1], [8, 9, 4, 1] and [8, 9, 1] again: two rows of each response stand once, the third sequence adds none."""
    responses = [[8, 9, 1], [8, 9, 4, 1], [8, 9, 1]]
    batch = pack([sequence(make_segment([5, 6], response)) for response in responses], CONFIG)
    assert batch.rows_R.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.rows_M.tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 2, 3]
    assert batch.targets_M.tolist() == [8, 9, 1, 8, 9, 4, 1, 8, 9, 1]
    assert batch.first_U.tolist() == [0, 1, 2, 5, 6]
    assert batch.scored_M.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 2]
    assert batch.prompts_apart == 0


def test_pack_tokens_of_other_distributions_are_scored_apart() -> None:
    """Four times token 8 after the same row: at another temperature, among other candidates, and twice the same."""
    entries = [
        sequence(make_segment([5, 6], [8], [[7, 8]])),
        sequence(make_segment([5, 6], [8], [[7, 8]]), 0.5),
        sequence(make_segment([5, 6], [8], [[8, 9]])),
        sequence(make_segment([5, 6], [8], [[7, 8]])),
    ]
    batch = pack(entries, CONFIG)
    assert batch.rows_M.tolist() == [1, 1, 1, 1]
    assert batch.first_U.tolist() == [0, 1, 2]
    assert batch.scored_M.tolist() == [0, 1, 2, 0]
    assert batch.support is not None
    assert batch.support.select(batch.first_U).ids.tolist() == [7, 8, 7, 8, 8, 9]


def test_pack_other_prompts_share_a_long_beginning_but_not_a_short_one() -> None:
    texts = [[7] * shared + [last, 3] for shared, last in ((16, 5), (16, 6), (15, 5), (15, 6))]
    long = pack([sequence(make_segment(prompt, [8, 1])) for prompt in texts[:2]], CONFIG)
    assert long.num_rows == 19 + 3
    assert long.rows_R[19:].tolist() == [*range(16), 19, 20, 21]
    assert seen_rows(long)[21] == long.rows_R[19:].tolist()
    short = pack([sequence(make_segment(prompt, [8, 1])) for prompt in texts[2:]], CONFIG)
    assert short.num_rows == 18 + 18
    assert short.prompts_apart == 0


def test_pack_without_fingerprints_shares_only_among_its_kind() -> None:
    first, second = make_segment([5, 6], [8, 1]), make_segment([5, 6], [9, 1])
    bare = replace(second, selection_fingerprint=None)
    assert pack([sequence(first), sequence(bare)], CONFIG).num_rows == 6
    assert pack([sequence(bare), sequence(replace(first, selection_fingerprint=None))], CONFIG).num_rows == 4


def test_pack_other_records_of_the_response_do_not_part_the_prompt() -> None:
    segments = [make_segment([5, 6], [8, 1]), make_segment([5, 6], [8, 1])]
    segments[1].routes[2, 0] = [6, 7]
    batch = pack([sequence(segment) for segment in segments], CONFIG)
    assert batch.num_rows == 4, "the prompt and a row of each response"
    assert batch.routes_LNX[0, 2:4].tolist() == [[2, 3], [6, 7]]
    assert batch.prompts_apart == 0


def test_pack_missing_routes_of_a_shared_prompt_count_for_each_sequence() -> None:
    segments = [make_segment([5, 6], [8, 1]), make_segment([5, 6], [9, 1])]
    for segment in segments:
        segment.routes[0] = -1
    batch = pack([sequence(segment) for segment in segments], CONFIG)
    assert batch.num_rows == 4
    assert batch.missing_routes == 4


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
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12),
    max_tokens=st.integers(1, 60),
    prompts=st.integers(1, 12),
)
def test_split_by_tokens_keeps_order_and_fits_whenever_it_can(
    lengths: list[int], max_tokens: int, prompts: int
) -> None:
    """With one prompt for all up to a prompt for each: the rows that `pack` runs are the rows that are bounded."""
    entries = [
        sequence(make_segment([50 + place % prompts] * 9, [100 + place // 2] * (length - 1)))
        for place, length in enumerate(lengths)
    ]
    parts = split_by_tokens(entries, max_tokens)
    assert [index for part in parts for index in part] == list(range(len(lengths)))

    def rows(part: list[int]) -> int:
        return pack([entries[index] for index in part], CONFIG).num_rows

    for part in parts:
        assert rows(part) <= max_tokens or len(part) == 1
    for part, follower in itertools.pairwise(parts):
        assert rows([*part, follower[0]]) > max_tokens


def test_split_by_tokens_cuts_between_groups_rather_than_inside_one() -> None:
    """Four groups of three that share their prompts alone; half of the rows end inside the second."""
    sizes = [2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    entries = [sequence(make_segment([50 + place // 3] * 6, [100 + place] * size)) for place, size in enumerate(sizes)]
    assert split_by_tokens(entries, 1000, 2) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_split_by_tokens_worked_by_hand() -> None:
    entries = [sequence(make_segment([5 + count], [3] * count)) for count in (4, 4, 9, 2, 3)]
    entries[1] = sequence(make_segment([20], [3] * 4))
    assert split_by_tokens(entries, 8) == [[0, 1], [2], [3, 4]]
    assert split_by_tokens([], 8) == []


def test_pack_padding_is_at_most_fifteen_rows() -> None:
    for count in (16, 17, 31, 32):
        batch = pack([sequence(make_segment([5], [3] * count))], CONFIG)
        assert len(batch.token_ids_N) == -(-count // 16) * 16
        assert batch.num_rows == count
        assert torch.equal(batch.rows_M, torch.arange(count))
