"""The decoding samples' tables: what a pass is told, and which samples someone must look at."""

import numpy as np

from samepath.rollout.builtin.sample import SampleState
from samepath.rollout.builtin.sample_rows import INPUT_ROWS, RUN_ROWS, SampleRows
from samepath.rollout.request import GroupState
from samepath.rollout.sampling import uniforms
from samepath.rollout.sampling_settings import SamplingSettings
from tests.tiny_runs import request

ENDS_V = np.arange(10) == 1


def tables_with(*settings: SamplingSettings) -> tuple[SampleRows, list[SampleState]]:
    """One sample for each of the settings, in rows 3, 2, 1 …, after a prompt of two tokens."""
    tables = SampleRows(4, 32)
    samples = []
    for number, sampling in enumerate(settings):
        group = GroupState(request=request(f"g{number}", (2, 3), sampling, (number + 70,)), submitted_s=0.0)
        sample = SampleState(group=group, index=0, row=3 - number, pages=[])
        tables.take([sample], [np.arange(100 * number + 16, 100 * number + 32)], 2)
        samples.append(sample)
    return tables, samples


def draw(tables: SampleRows, rows: np.ndarray, *tokens: int, version: int = 0) -> None:
    tables.count_drawn(rows, np.array(tokens), -np.array(tokens, np.float64), version)


def test_fill_tells_a_pass_token_position_row_and_draw_of_each_sample() -> None:
    tables, _ = tables_with(SamplingSettings(temperature=0.7, top_p=0.9), SamplingSettings(top_k=3))
    rows = np.array([3, 2])
    draw(tables, rows, 5, 6)
    tables.lengths_R[rows] += 1
    draw(tables, rows, 7, 8)
    inputs_9B = np.full((INPUT_ROWS, 16), -1)
    tables.fill_run(rows, inputs_9B)
    tables.fill_draw(rows, inputs_9B[RUN_ROWS:])
    assert inputs_9B[:3, :3].T.tolist() == [[7, 3, 3], [8, 3, 2], [0, 0, 4]]
    wanted = uniforms(np.array([70, 71], np.uint64), np.array([2, 2]))
    numbers = inputs_9B[3:, :2].view(np.float64)
    assert numbers[0].tolist() == wanted.tolist()
    assert numbers[1:].T.tolist() == [[0.7, 0, 0.9, 0, 4096], [1.0, 3, 1, 0, 4096]]
    assert not inputs_9B[3:, 2:].any()
    assert not tables.slots_RS[4].any()
    assert tables.slots_RS[2, :17].tolist() == [*range(116, 132), 0]


def test_may_end_names_ends_limits_and_samples_with_stops_of_their_own() -> None:
    plain, short = SamplingSettings(max_new_tokens=3), SamplingSettings(max_new_tokens=2)
    ignoring = SamplingSettings(max_new_tokens=3, ignore_stop=True, stop_token_ids=(4,))
    own = SamplingSettings(max_new_tokens=3, stop_token_ids=(4,))
    tables, _ = tables_with(plain, short, ignoring, own)
    rows = np.array([3, 2, 1, 0])
    draw(tables, rows, 5, 5, 5, 5)
    assert tables.may_end(rows, ENDS_V) == [3]
    draw(tables, rows, 1, 5, 1, 5)
    assert tables.may_end(rows, ENDS_V) == [0, 1, 3]
    draw(tables, rows[2:], 5, 5)
    assert tables.may_end(rows[2:], ENDS_V) == [0, 1]


def columns(tables: SampleRows, sample: SampleState) -> tuple[list[int], list[float], list[int]]:
    sampled = tables.sampled(sample.row)
    return sampled.token_ids.tolist(), sampled.logprobs.tolist(), sampled.versions.tolist()


def test_sampled_gives_a_sample_its_own_tokens_with_the_version_of_each() -> None:
    tables, (first, second) = tables_with(SamplingSettings(), SamplingSettings())
    draw(tables, np.array([3, 2]), 5, 6)
    draw(tables, np.array([3]), 7, version=4)
    assert columns(tables, first) == ([5, 7], [-5.0, -7.0], [0, 4])
    assert columns(tables, second) == ([6], [-6.0], [0])


def test_take_forgets_what_an_earlier_sample_left_in_the_row() -> None:
    tables, _ = tables_with(SamplingSettings(top_k=2))
    draw(tables, np.array([3]), 5)
    assert tables.truncates(np.array([3]))
    group = GroupState(request=request("new", (2,), SamplingSettings(), (9,)), submitted_s=0.0)
    later = SampleState(group=group, index=0, row=3, pages=[])
    tables.take([later], [np.array([40, 41])], 1)
    assert (columns(tables, later), tables.lengths_R[3], tables.slots_RS[3, :4].tolist()) == (
        ([], [], []),
        1,
        [40, 41, 0, 0],
    )
    assert not tables.truncates(np.array([3]))
