"""How GPU operations are timed, the published model's sizes, and the random inputs that every group of measurements draws from."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEADS, KEY_WIDTH, VALUE_WIDTH, SELECTED, SCALE = 128, 576, 512, 2048, 192**-0.5
INDEX_HEADS, INDEX_WIDTH = 64, 128
QUERIES = 4096
DENSE_HEADS, DENSE_KEY, DENSE_VALUE = 16, 192, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One timed operation.

    Example:
        Measurement(operation="selection", shape="2048 × 131072, C 2048", ms=0.5, rate=2.1, unit="TB/s")
    """

    operation: str
    """What ran."""
    shape: str
    """Its sizes and type."""
    ms: float
    """Median milliseconds."""
    rate: float
    """FLOP or bytes per second, in `unit`."""
    unit: str
    """TFLOPS, TB/s, GB (memory, then in `rate`), × (ratio, then in `rate`), or keys (a length, then in `rate`)."""


def milliseconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median time of `run` between two CUDA events, after two warm-up calls. The host launches ahead, as it does in a training step."""
    for _ in range(2):
        run()
    pairs = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(stop) for start, stop in pairs))


def in_turn(runs: dict[str, Callable[[], object]], repeats: int = 3) -> dict[str, float]:
    """Median milliseconds of long runs that take turns: the card's clock falls under load, and so it falls for all of them."""
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            stop.record()
            events[name].append((start, stop))
    torch.cuda.synchronize()
    # The first turn warms up.
    return {
        name: statistics.median(start.elapsed_time(stop) for start, stop in pairs[1:]) for name, pairs in events.items()
    }


def graph_milliseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one replay of `run` captured as a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return milliseconds(graph.replay, repeats)


def flops(operation: str, shape: str, count: float, run: Callable[[], object], repeats: int = 7) -> Measurement:
    """A measurement in TFLOPS."""
    ms = milliseconds(run, repeats)
    return Measurement(operation=operation, shape=shape, ms=ms, rate=count / ms / 1e9, unit="TFLOPS")


def forward_and_backward(ahead: Callable[[], Tensor], inputs: tuple[Tensor, ...], upstream: Tensor) -> object:
    """Gradients of `ahead` for its inputs."""
    return torch.autograd.grad(ahead(), inputs, upstream)


class RandomInputs:
    """All random numbers come from one seeded generator."""

    def __init__(self) -> None:
        self.random = torch.Generator(device="cuda").manual_seed(0)

    def normal(self, *sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*sizes, generator=self.random, device="cuda").to(dtype)
