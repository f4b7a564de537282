"""Passes as CUDA graphs: one replay in place of hundreds of launches from Python.

A graph is bound to sizes and addresses, never to values: passes are rounded up to a bucket of rows and key window, inputs come through
static memory, weights and cache stay where they are (new weights are written in place). A row's bits do not depend on the batch around
it, so padding changes nothing: padding rows run token 0 on the scratch slot. Tokens of a prompt run like samples, each with a key window of
its own, unless they are too many; their last rows' hidden states are kept for the first draw.

Axes: B rows of a bucket, R rows of the table of slots, S positions, D width, W words of 32 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.model.key_store import SlotCache
from samepath.model.network.network import CausalLM
from samepath.rollout.builtin.decode_pass import decode_pass, run_rows
from samepath.rollout.builtin.drawing import Drawn, HostDrawn, draw_rows, read_report
from samepath.rollout.builtin.graph_capture import Bucket, Capture, Graphs, key_bucket, row_bucket
from samepath.rollout.builtin.mixed_pass import PromptPiece
from samepath.rollout.builtin.sample_rows import DRAW_ROWS, INPUT_ROWS, RUN_ROWS, SampleRows

MOST_PROMPT_ROWS = 512
"""Prompt tokens of a step that a graph runs; more go through a pass of their own size."""

MOST_PROMPT_KEYS = 1 << 20
"""Rows times key window of such a graph, in which every row reads the indexer's keys of its window by itself."""


class DecodeGraphs:
    """Runs passes by graphs, captured at the first use of a bucket."""

    def __init__(self, model: CausalLM, cache: SlotCache, max_sequences: int, longest: int, capture: Capture) -> None:
        """`longest` is the length of the longest sequence that can come, rounded up to 16."""
        self._model, self._cache = model, cache
        self.graphs = Graphs(capture)
        self._most_rows, self._most_keys = max_sequences, longest
        device = model.norm.device
        rows = round_up(max_sequences)
        self._slots_RS = torch.zeros(max_sequences + 1, longest, dtype=torch.int64, device=device)
        self._inputs = Inbox(INPUT_ROWS * rows, device)
        self._prompt_inputs = Inbox(RUN_ROWS * MOST_PROMPT_ROWS, device)
        self._hidden_BD = torch.zeros(MOST_PROMPT_ROWS, model.config.hidden_size, dtype=model.norm.dtype, device=device)
        self._report = torch.zeros(3 * rows, dtype=torch.float64, device=device)
        words = -(-model.config.vocab_size // 32)
        self._words_BW = torch.zeros(rows, words, dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._host_report = torch.zeros(self._report.shape, dtype=torch.float64, pin_memory=pinned)
        self._host_words_BW = torch.zeros(self._words_BW.shape, dtype=torch.int32, pin_memory=pinned)
        self._addresses = _addresses(model)

    def check_addresses(self) -> None:
        """Raise RuntimeError if a weight has moved since the engine was made: graphs read where it was."""
        if self._addresses != _addresses(self._model):
            raise RuntimeError(
                "new weights must be written in place while passes are captured; a tensor of the model has moved. "
                "Set engine.cuda_graph=off, or write into the tensors that are there."
            )

    def place(self, rows: Sequence[int], tables: SampleRows, length: int) -> None:
        """Bring the slots of the rows' first `length` positions to the device."""
        device = self._slots_RS.device
        length = min(length, self._slots_RS.shape[1])
        slots_BS = torch.from_numpy(tables.slots_RS[rows, :length]).to(device)
        self._slots_RS[torch.tensor(rows, device=device), :length] = slots_BS

    def decode(self, rows: NDArray[np.int64], tables: SampleRows) -> "Launched":
        """Start one pass over the samples in `rows`, which draws a token for each; to be read before the next one."""
        bucket = Bucket(
            kind="decode",
            rows=row_bucket(len(rows), self._most_rows),
            keys=key_bucket(int(tables.lengths_R[rows].max()) + 1, self._most_keys),
            truncates=tables.truncates(rows),
        )
        started = self._event()
        inputs_9B = self._inputs.open(INPUT_ROWS, bucket.rows)
        tables.fill_run(rows, inputs_9B)
        tables.fill_draw(rows, inputs_9B[RUN_ROWS:])
        self._inputs.send()
        self.graphs.run(bucket, lambda: self._decode(bucket))
        return self._launched(bucket, len(rows), started)

    def takes(self, pieces: Sequence[PromptPiece]) -> bool:
        """Whether a graph runs these pieces."""
        count = sum(len(piece.token_ids) for piece in pieces)
        longest = max(piece.first + len(piece.token_ids) for piece in pieces)
        rows = row_bucket(count, MOST_PROMPT_ROWS)
        return count <= MOST_PROMPT_ROWS and rows * key_bucket(longest, self._most_keys) <= MOST_PROMPT_KEYS

    def run_prompts(self, pieces: Sequence[PromptPiece], tables: SampleRows) -> None:
        """Start one pass over pieces of prompts, whose hidden states `draw` finds."""
        longest = max(piece.first + len(piece.token_ids) for piece in pieces)
        count = sum(len(piece.token_ids) for piece in pieces)
        bucket = Bucket(
            kind="prompt", rows=row_bucket(count, MOST_PROMPT_ROWS), keys=key_bucket(longest, self._most_keys)
        )
        inputs_3B = self._prompt_inputs.open(RUN_ROWS, bucket.rows)
        tables.fill_padding(inputs_3B, count)
        start = 0
        for piece in pieces:
            stop = start + len(piece.token_ids)
            inputs_3B[0, start:stop] = piece.token_ids
            inputs_3B[1, start:stop] = np.arange(piece.first, piece.first + stop - start)
            inputs_3B[2, start:stop] = piece.row
            start = stop
        self._prompt_inputs.send()
        self.graphs.run(bucket, lambda: self._run_prompts(bucket))

    def draw(self, rows: NDArray[np.int64], source_rows: Sequence[int], tables: SampleRows) -> "Launched":
        """Start to draw a first token for the samples in `rows`, each from a row of the last `run_prompts`."""
        bucket = Bucket(kind="draw", rows=row_bucket(len(rows), self._most_rows), truncates=tables.truncates(rows))
        inputs_7B = self._inputs.open(1 + DRAW_ROWS, bucket.rows)
        inputs_7B[0, : len(rows)] = source_rows
        inputs_7B[0, len(rows) :] = 0
        tables.fill_draw(rows, inputs_7B[1:])
        self._inputs.send()
        self.graphs.run(bucket, lambda: self._draw(bucket))
        return self._launched(bucket, len(rows), None)

    def _decode(self, bucket: Bucket) -> None:
        inputs_9B = self._inputs.on_device(INPUT_ROWS, bucket.rows)
        drawn = decode_pass(
            self._model, self._cache, self._slots_RS, inputs_9B, bucket.keys, truncates=bucket.truncates
        )
        self._keep(bucket, drawn)

    def _run_prompts(self, bucket: Bucket) -> None:
        inputs_3B = self._prompt_inputs.on_device(RUN_ROWS, bucket.rows)
        hidden_BD = run_rows(self._model, self._cache, self._slots_RS, inputs_3B, bucket.keys)
        self._hidden_BD[: bucket.rows].copy_(hidden_BD)

    def _draw(self, bucket: Bucket) -> None:
        inputs_7B = self._inputs.on_device(1 + DRAW_ROWS, bucket.rows)
        hidden_BD = self._hidden_BD.index_select(0, inputs_7B[0])
        numbers_6B = inputs_7B[1:].view(torch.float64)
        drawn = draw_rows(self._model, hidden_BD, numbers_6B[1:], numbers_6B[0], truncates=bucket.truncates)
        self._keep(bucket, drawn)

    def _keep(self, bucket: Bucket, drawn: Drawn) -> None:
        """Put what was drawn where every graph of the kind puts it."""
        self._report[: 3 * bucket.rows].view(3, -1).copy_(drawn.report_3B)
        if drawn.words_BW is not None:
            self._words_BW[: bucket.rows].copy_(drawn.words_BW)

    def _launched(self, bucket: Bucket, count: int, started: torch.cuda.Event | None) -> "Launched":
        """Start the copies to the host."""
        size = 3 * bucket.rows
        self._host_report[:size].copy_(self._report[:size], non_blocking=True)
        if bucket.truncates:
            self._host_words_BW[: bucket.rows].copy_(self._words_BW[: bucket.rows], non_blocking=True)
        return Launched(
            count=count,
            report_3B=self._host_report[:size].view(3, -1),
            words_BW=self._host_words_BW if bucket.truncates else None,
            started=started,
            done=self._event(),
        )

    def _event(self) -> torch.cuda.Event | None:
        """An event recorded now; None on a CPU."""
        if self._report.device.type != "cuda":
            return None
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class Inbox:
    """Static int64 inputs on the device, and page-locked memory that a copy goes out of without a wait."""

    def __init__(self, size: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._device = torch.zeros(size, dtype=torch.int64, device=device)
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=pinned)
        self._sent: torch.cuda.Event | None = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._size = 0

    def open(self, height: int, width: int) -> NDArray[np.int64]:
        """Host memory [height, width] to fill, once the last copy out of it is over."""
        if self._sent is not None:
            self._sent.synchronize()
        self._size = height * width
        opened: NDArray[np.int64] = self._host[: self._size].view(height, width).numpy()
        return opened

    def send(self) -> None:
        """Start the copy of what was opened."""
        self._device[: self._size].copy_(self._host[: self._size], non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def on_device(self, height: int, width: int) -> Tensor:
        """int64 [height, width]."""
        return self._device[: height * width].view(height, width)


def _addresses(model: CausalLM) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A draw on its way."""

    count: int
    """Samples in it."""
    report_3B: Tensor
    """Host memory that its report comes to."""
    words_BW: Tensor | None
    """Host memory that its candidates come to."""
    started: torch.cuda.Event | None
    """Recorded before a pass and its copies; None on a CPU, and where nothing but a draw was started."""
    done: torch.cuda.Event | None
    """Recorded behind the copies; None on a CPU."""

    def read(self) -> HostDrawn:
        """Wait for the device and read."""
        if self.done is not None:
            self.done.synchronize()
        words_BW = None if self.words_BW is None else self.words_BW[: self.count].numpy()
        return read_report(self.report_3B[:, : self.count].numpy(), words_BW)

    @property
    def device_s(self) -> float:
        """Seconds of the pass on the device, once it was read; 0 on a CPU."""
        return 0.0 if self.started is None or self.done is None else self.started.elapsed_time(self.done) / 1000
