"""Several forward and backward passes at the same time, one CPU thread each.

On CPU two passes side by side use two cores better than two threads inside every small operation. Results come back in
order and gradients are added in that order, so the sum does not depend on which pass ended first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class PassPool:
    """A fixed number of worker threads; with one, everything runs in the caller's thread."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        torch.set_num_threads(1)
        self._executor = (
            ThreadPoolExecutor(threads, "pass", initializer=torch.set_num_threads, initargs=(1,))
            if threads > 1
            else None
        )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`function` of every item, in order; the first exception is raised. Gradient mode must be set inside the function."""
        return list(self.stream(function, items))

    def stream(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `map`, one result after the other. No more than `threads` are computed ahead of the one taken last.

        So the gradients of many passes never stand in memory together.
        """
        torch.set_num_threads(1)
        if self._executor is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._executor.submit(function, item))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def gradients_of(loss: Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[Tensor | None]:
    """Gradient of each parameter, None where the loss does not depend on it; touches no `.grad`, so passes cannot collide."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def add_gradients(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add one pass's gradients to `.grad` in the parameter's type; the first pass's become it, without a copy if it has that type."""
    for parameter, gradient in zip(parameters, gradients):
        if gradient is not None:
            grad = parameter.grad
            parameter.grad = gradient.to(parameter.dtype) if grad is None else grad.add_(gradient)
