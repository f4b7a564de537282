"""CUDA graphs by their sizes: which size a pass is rounded up to, how it is captured, and how many are kept."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from samepath.kernels.backend import CAPABILITIES, Backend, round_up
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_errors import EngineUnavailableError

SHORTEST_WINDOW = 64
"""Key window of the smallest bucket, positions; the others are its doubles."""

MOST_GRAPHS = 64
"""Graphs kept; the one unused for longest is dropped first."""

Work = Callable[[], None]
"""A function that works from static memory to static memory."""


class Capture(Protocol):
    """Turns work into something that repeats it on the same memory."""

    def __call__(self, work: Work) -> Work:
        """The repetition. The work may be done on the way, any number of times."""
        ...


class CudaCapture:
    """Captures CUDA graphs that share one memory pool; they must not run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        """Run once on a side stream (kernels are compiled, libraries set up), then capture."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Work = graph.replay
        return replay


def wants_graphs(settings: BuiltinSettings, device: torch.device, backend: Backend) -> bool:
    """Whether passes are captured. Raises EngineUnavailableError if `cuda_graph: on` meets a device or backend that cannot."""
    problem = settings.graph_problem(device.type, backend)
    if problem:
        raise EngineUnavailableError(problem)
    return settings.cuda_graph != "off" and device.type == "cuda" and CAPABILITIES[backend].graphs


def row_bucket(count: int, most: int) -> int:
    """Rows of the pass that runs `count` rows: 16, 32, 48, 64, 96, 128, 192 … (2ⁿ and 3·2ⁿ), at most `most` rounded up to 16."""
    power = 1 << (count - 1).bit_length()
    between = 3 * power // 4
    rows = between if count <= between and between % 16 == 0 else max(power, 16)
    return min(rows, round_up(most))


def key_bucket(longest: int, most: int) -> int:
    """Key window of the pass whose longest row sees `longest` positions: 64, 128, 256 …, at most `most` rounded up to 16."""
    return min(max(SHORTEST_WINDOW, 1 << (longest - 1).bit_length()), round_up(most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What a graph is made for."""

    kind: Literal["decode", "prompt", "draw"]
    """Run and draw, run only, or draw only."""
    rows: int
    """Rows, a multiple of 16."""
    keys: int = 0
    """Length of the key windows; 0 where nothing is run."""
    truncates: bool = False
    """Whether rows may leave tokens out."""


class Graphs:
    """Captured work by bucket."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._replays: OrderedDict[Bucket, Work] = OrderedDict()
        self.captured = 0
        """Graphs captured so far."""

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Those with a graph, the one unused for longest first."""
        return tuple(self._replays)

    def run(self, bucket: Bucket, work: Work) -> None:
        """Do the bucket's work, captured at its first use. Its static inputs must be in place: capturing does the work too."""
        replay = self._replays.get(bucket)
        if replay is None:
            if len(self._replays) == MOST_GRAPHS:
                self._replays.popitem(last=False)
            replay = self._replays[bucket] = self._capture(work)
            self.captured += 1
        self._replays.move_to_end(bucket)
        replay()
