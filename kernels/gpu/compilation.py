"""Says that kernels are being compiled, how many and how long: the first run on a machine waits for it, later ones find them on the disk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from samepath.kernels.backend import CAPABILITIES, Backend

SILENCE_S = 10.0
"""Seconds between two lines."""


@contextmanager
def compilations_said(backend: Backend, say: Callable[[str], None], silence_s: float = SILENCE_S) -> Iterator[None]:
    """Tell `say` that kernels are compiled in this process: at the first one, every `silence_s` seconds, and how many it were at the end.

    Kernels that the cache holds are not told of. Nothing is watched for a backend that compiles none.
    """
    if not CAPABILITIES[backend].fused:
        yield
        return
    # Late: an installation for CPUs has no Triton.
    from triton import knobs

    watch = _Watch(say, silence_s, knobs.compilation.listener)
    knobs.compilation.listener = watch
    try:
        yield
    finally:
        knobs.compilation.listener = watch.before
        if watch.count:
            say(
                f"compiled {watch.count} kernels in {watch.seconds:.0f} s; kept in {knobs.cache.dir} (TRITON_CACHE_DIR), where the next run "
                "finds them"
            )


class _Watch:
    """What Triton calls after each compilation, and after each kernel that was found."""

    def __init__(self, say: Callable[[str], None], silence_s: float, before: Callable[..., None] | None) -> None:
        self.before, self.count, self.seconds = before, 0, 0.0
        self._say, self._silence_s, self._said = say, silence_s, 0.0

    def __call__(self, *, times: Any, cache_hit: bool, **more: Any) -> None:
        """`times.total`: microseconds of this one."""
        if self.before is not None:
            self.before(times=times, cache_hit=cache_hit, **more)
        if cache_hit:
            return
        self.count += 1
        self.seconds += times.total / 1e6
        now = time.monotonic()
        if self.count == 1:
            self._say("compiling kernels for this GPU; a later run with the same shapes finds them on the disk")
        elif now - self._said >= self._silence_s:
            self._say(f"compiling kernels: {self.count} so far, {self.seconds:.0f} s")
        else:
            return
        self._said = now
