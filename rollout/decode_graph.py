"""Decode passes as CUDA graphs: one replay in place of hundreds of launches from Python.

A graph is bound to sizes and addresses, never to values: passes are rounded up to a bucket of rows and key window, inputs come through
one static buffer, weights and cache stay where they are (new weights are written in place). A row's bits do not depend on the batch around
it, so padding changes nothing: padding rows run token 0 on the scratch slot.

Axes: B rows of a bucket, R rows of the table of slots, S positions, W words of 32 tokens.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import Backend, round_up
from samepath.model.key_store import SlotCache
from samepath.model.network import CausalLM
from samepath.rollout.decode_pass import decode_pass
from samepath.rollout.drawing import HostDrawn, read_report
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.engine_settings import BuiltinSettings
from samepath.rollout.sample_rows import INPUT_ROWS, SampleRows

SHORTEST_WINDOW = 128
"""Key window of the smallest bucket, positions; the others are its doubles."""

MOST_GRAPHS = 64
"""Graphs kept; the one unused for longest is dropped first."""


class Capture(Protocol):
    """Turns a function without arguments into one that repeats its work on the same memory."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """The repetition. The function may be run on the way, any number of times."""
        ...


class CudaCapture:
    """Captures CUDA graphs that share one memory pool; they must not run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run once on a side stream (kernels are compiled, libraries set up), then capture."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        replay: Callable[[], None] = graph.replay
        return replay


def wants_graphs(settings: BuiltinSettings, device: torch.device, backend: Backend) -> bool:
    """Whether passes are captured. Raises EngineUnavailableError if `cuda_graph: on` meets a device or backend that cannot."""
    problem = settings.graph_problem(device.type, backend)
    if problem:
        raise EngineUnavailableError(problem)
    return settings.cuda_graph != "off" and (device.type, backend) == ("cuda", "triton")


def row_bucket(count: int, most: int) -> int:
    """Rows of the pass that runs `count` samples: 16, 32, 48, 64, 96, 128, 192 … (2ⁿ and 3·2ⁿ), at most `most` rounded up to 16."""
    power = 1 << (count - 1).bit_length()
    between = 3 * power // 4
    rows = between if count <= between and between % 16 == 0 else max(power, 16)
    return min(rows, round_up(most))


def key_bucket(longest: int, most: int) -> int:
    """Key window of the pass whose longest sample sees `longest` positions: 128, 256, 512 …, at most `most` rounded up to 16."""
    return min(max(SHORTEST_WINDOW, 1 << (longest - 1).bit_length()), round_up(most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What a graph is made for."""

    rows: int
    """B."""
    keys: int
    """S of the key window."""
    truncates: bool
    """Whether rows may leave tokens out."""


class DecodeGraphs:
    """Runs decode passes by graphs, captured at the first use of a bucket."""

    def __init__(self, model: CausalLM, cache: SlotCache, max_sequences: int, capture: Capture) -> None:
        self._model, self._cache, self._capture = model, cache, capture
        self._most_rows, self._most_keys = max_sequences, model.config.max_position_embeddings
        device = model.norm.device
        rows = round_up(max_sequences)
        self._slots_RS = torch.zeros(max_sequences + 1, round_up(self._most_keys), dtype=torch.int64, device=device)
        self._inputs = torch.zeros(INPUT_ROWS * rows, dtype=torch.int64, device=device)
        self._report = torch.zeros(3 * rows, dtype=torch.float64, device=device)
        words = -(-model.config.vocab_size // 32)
        self._words_BW = torch.zeros(rows, words, dtype=torch.int32, device=device)
        # Page-locked memory is what a copy can go to without a wait.
        pinned = device.type == "cuda"
        self._host_inputs = torch.zeros(self._inputs.shape, dtype=torch.int64, pin_memory=pinned)
        self._host_report = torch.zeros(self._report.shape, dtype=torch.float64, pin_memory=pinned)
        self._host_words_BW = torch.zeros(self._words_BW.shape, dtype=torch.int32, pin_memory=pinned)
        self._replays: OrderedDict[Bucket, Callable[[], None]] = OrderedDict()
        self._addresses = _addresses(model)
        self.captured = 0
        """Graphs captured so far."""

    def check_addresses(self) -> None:
        """Raise RuntimeError if a weight has moved since the engine was made: graphs read where it was."""
        if self._addresses != _addresses(self._model):
            raise RuntimeError(
                "new weights must be written in place while decode passes are captured; a tensor of the model has moved. "
                "Set engine.cuda_graph=off, or write into the tensors that are there."
            )

    def place(self, rows: Sequence[int], tables: SampleRows) -> None:
        """Bring the slots of new samples to the device."""
        device = self._slots_RS.device
        slots_BS = torch.from_numpy(tables.slots_RS[rows, : self._slots_RS.shape[1]]).to(device)
        self._slots_RS[torch.tensor(rows, device=device)] = slots_BS

    def launch(self, rows: NDArray[np.int64], tables: SampleRows) -> "Launched":
        """Start one decode pass over the samples in `rows`; the result is read later."""
        bucket = Bucket(
            rows=row_bucket(len(rows), self._most_rows),
            keys=key_bucket(int(tables.lengths_R[rows].max()) + 1, self._most_keys),
            truncates=tables.truncates(rows),
        )
        size = INPUT_ROWS * bucket.rows
        tables.fill_inputs(rows, self._host_inputs[:size].view(INPUT_ROWS, -1).numpy())
        events = None
        if self._inputs.device.type == "cuda":
            events = (_timed_event(), _timed_event())
            events[0].record()
        self._inputs[:size].copy_(self._host_inputs[:size], non_blocking=True)
        # Behind the copy: a capture runs the pass, and what it writes must be what this step writes.
        self._replay(bucket)()
        self._host_report[: 3 * bucket.rows].copy_(self._report[: 3 * bucket.rows], non_blocking=True)
        if bucket.truncates:
            self._host_words_BW[: bucket.rows].copy_(self._words_BW[: bucket.rows], non_blocking=True)
        if events is not None:
            events[1].record()
        return Launched(
            count=len(rows),
            report_3B=self._host_report[: 3 * bucket.rows].view(3, -1),
            words_BW=self._host_words_BW if bucket.truncates else None,
            events=events,
        )

    def _replay(self, bucket: Bucket) -> Callable[[], None]:
        """The bucket's graph."""
        replay = self._replays.get(bucket)
        if replay is None:
            if len(self._replays) == MOST_GRAPHS:
                self._replays.popitem(last=False)
            replay = self._replays[bucket] = self._capture(lambda: self._pass(bucket))
            self.captured += 1
        self._replays.move_to_end(bucket)
        return replay

    def _pass(self, bucket: Bucket) -> None:
        """From the static inputs to the static outputs."""
        inputs_9B = self._inputs[: INPUT_ROWS * bucket.rows].view(INPUT_ROWS, -1)
        drawn = decode_pass(
            self._model, self._cache, self._slots_RS, inputs_9B, bucket.keys, truncates=bucket.truncates
        )
        self._report[: 3 * bucket.rows].view(3, -1).copy_(drawn.report_3B)
        if drawn.words_BW is not None:
            self._words_BW[: bucket.rows].copy_(drawn.words_BW)


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _addresses(model: CausalLM) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A decode pass on its way."""

    count: int
    """Samples in it."""
    report_3B: Tensor
    """Host memory that its report comes to."""
    words_BW: Tensor | None
    """Host memory that its candidates come to."""
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None
    """Recorded before and behind the pass and its copies; None on a CPU."""

    def read(self) -> HostDrawn:
        """Wait for the device and read; to be called before the next launch."""
        if self.events is not None:
            self.events[1].synchronize()
        words_BW = None if self.words_BW is None else self.words_BW[: self.count].numpy()
        return read_report(self.report_3B[:, : self.count].numpy(), words_BW)

    @property
    def device_s(self) -> float:
        """Seconds of the pass on the device, once it was read; 0 on a CPU."""
        return 0.0 if self.events is None else self.events[0].elapsed_time(self.events[1]) / 1000
