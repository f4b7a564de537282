"""The decoding samples' state in arrays, one row per sample: what a decode pass is told, and what planning needs.

Axes: R rows of the tables, B samples of a pass, S positions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samepath.rollout.builtin.sample import SampleState
from samepath.rollout.record import SampledTokens
from samepath.rollout.sampling import SETTING_ROWS, setting_rows, uniforms

RUN_ROWS = 3
"""What a row of a pass is told: token, position, row of the tables."""
DRAW_ROWS = 1 + SETTING_ROWS
"""What a draw is told: uniform number and settings, floats by their bits."""
INPUT_ROWS = RUN_ROWS + DRAW_ROWS
"""What a row of a decode pass is told: both."""


class SampleRows:
    """Tables of `count` rows and one more, whose slots are all scratch: padding of a pass points there."""

    def __init__(self, count: int, longest: int) -> None:
        self.slots_RS = np.zeros((count + 1, longest), np.int64)
        """Slot of each position."""
        self.room_R = np.zeros(count + 1, np.int64)
        """Positions that have a slot."""
        self.lengths_R = np.zeros(count + 1, np.int64)
        """Tokens whose keys are in the cache."""
        self.drawn_R = np.zeros(count + 1, np.int64)
        """Tokens drawn."""
        # Memory that nothing is written to costs nothing.
        self._tokens_RS = np.zeros((count + 1, longest), np.int32)
        self._logprobs_RS = np.zeros((count + 1, longest), np.float32)
        self._versions_RS = np.zeros((count + 1, longest), np.int32)
        self._limits_R = np.zeros(count + 1, np.int64)
        self._may_stop_R = np.zeros(count + 1, np.bool_)
        self._own_stops_R = np.zeros(count + 1, np.bool_)
        self._last_R = np.zeros(count + 1, np.int64)
        self._seeds_R = np.zeros(count + 1, np.uint64)
        self._settings_5R = np.zeros((SETTING_ROWS, count + 1))
        self._truncates_R = np.zeros(count + 1, np.bool_)
        self.free = list(range(count))[::-1]
        self.scratch = count
        """The row whose slots are all scratch."""

    def take(self, samples: Sequence[SampleState], slots: Sequence[NDArray[np.int64]], length: int) -> None:
        """Fill the rows of new samples of one group, whose prompt of `length` tokens is in the cache."""
        request = samples[0].group.request
        rows = [sample.row for sample in samples]
        for row, own in zip(rows, slots):
            self.place(row, own)
        self.lengths_R[rows], self.drawn_R[rows] = length, 0
        self._seeds_R[rows] = np.array([request.seeds[sample.index] for sample in samples], np.uint64)
        self._settings_5R[:, rows] = setting_rows([request.sampling])
        sampling = request.sampling
        self._truncates_R[rows] = sampling.truncates
        self._limits_R[rows], self._may_stop_R[rows] = sampling.max_new_tokens, not sampling.ignore_stop
        self._own_stops_R[rows] = bool(sampling.stop_token_ids or sampling.stop_strings)

    def count_drawn(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64], logprobs: NDArray[np.float64], version: int
    ) -> None:
        """One more token of each row, drawn under a weight version, which a later pass runs."""
        place = self.drawn_R[rows]
        self._tokens_RS[rows, place], self._logprobs_RS[rows, place], self._versions_RS[rows, place] = (
            tokens,
            logprobs,
            version,
        )
        self._last_R[rows] = tokens
        self.drawn_R[rows] = place + 1

    def restore(self, row: int, sampled: SampledTokens, length: int) -> None:
        """Let the row's sample, whose prompt has `length` tokens, stand behind what it drew before; none of its tokens has a slot."""
        drawn = len(sampled.token_ids)
        self._tokens_RS[row, :drawn] = sampled.token_ids
        self._logprobs_RS[row, :drawn] = sampled.logprobs
        self._versions_RS[row, :drawn] = sampled.versions
        self._last_R[row], self.drawn_R[row], self.lengths_R[row] = sampled.token_ids[-1], drawn, length + drawn - 1
        self.room_R[row] = 0

    def may_end(self, rows: NDArray[np.int64], ends_V: NDArray[np.bool_]) -> list[int]:
        """Places among the rows of those that may end with their last token, by `ends_V` or their own settings: the others go on."""
        ends = ends_V[self._last_R[rows]] | self._own_stops_R[rows]
        places = (self.drawn_R[rows] >= self._limits_R[rows]) | (ends & self._may_stop_R[rows])
        found: list[int] = places.nonzero()[0].tolist()
        return found

    def sampled(self, row: int) -> SampledTokens:
        """What was drawn for the sample of a row so far: views, which its next tokens and the row's next sample overwrite."""
        drawn = slice(0, int(self.drawn_R[row]))
        return SampledTokens(
            token_ids=self._tokens_RS[row, drawn],
            logprobs=self._logprobs_RS[row, drawn],
            versions=self._versions_RS[row, drawn],
        )

    def truncates(self, rows: NDArray[np.int64]) -> bool:
        """True if any of the rows may leave tokens out."""
        return bool(self._truncates_R[rows].any())

    def draw_inputs(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(`setting_rows` [5, B], uniform numbers [B]) of the rows' next draws."""
        return self._settings_5R[:, rows], uniforms(self._seeds_R[rows], self.drawn_R[rows])

    def fill_run(self, rows: NDArray[np.int64], inputs_3B: NDArray[np.int64]) -> None:
        """Write token, position and row of the samples' next pass; columns from their number on are padding."""
        count = len(rows)
        inputs_3B[0, :count], inputs_3B[1, :count], inputs_3B[2, :count] = (
            self._last_R[rows],
            self.lengths_R[rows],
            rows,
        )
        self.fill_padding(inputs_3B, count)

    def fill_padding(self, inputs_3B: NDArray[np.int64], count: int) -> None:
        """Let columns from `count` on run token 0 at position 0 of the scratch row."""
        inputs_3B[:2, count:] = 0
        inputs_3B[2, count:] = self.scratch

    def fill_draw(self, rows: NDArray[np.int64], inputs_6B: NDArray[np.int64]) -> None:
        """Write uniform number and settings of the samples' next draw; columns from their number on draw greedily."""
        count = len(rows)
        settings_5B, uniforms_B = self.draw_inputs(rows)
        inputs_6B[0, :count], inputs_6B[1:, :count] = uniforms_B.view(np.int64), settings_5B.view(np.int64)
        inputs_6B[:, count:] = 0

    def place(self, row: int, slots: NDArray[np.int64]) -> None:
        """Give the row's tokens these slots, and no others."""
        self.slots_RS[row], self.room_R[row] = 0, 0
        self.extend(row, slots)

    def extend(self, row: int, slots: NDArray[np.int64]) -> None:
        """Give the row's next tokens slots."""
        start = int(self.room_R[row])
        stop = min(start + len(slots), self.slots_RS.shape[1])
        self.slots_RS[row, start:stop] = slots[: stop - start]
        self.room_R[row] = stop

    def last(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Last drawn token of each row."""
        return self._last_R[rows]
