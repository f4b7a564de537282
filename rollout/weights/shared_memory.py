"""Buckets in memory that the processes of one machine share, for a worker that is a child of the learner's process (Linux).

The memory has no name that could be left behind: it goes with the last process that holds it, however that ends.
"""

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from samepath.rollout.weights.bucket import Bucket, Piece

ALIGN = 64
"""Where a tensor may begin, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A bucket as its bytes stand in shared memory, as another process is told of it.

    Example:
        Held(path="/proc/4711/fd/12", size_bytes=192, pieces=(("model.norm.weight", "float32", (32,), 0, 128),))
    """

    path: str
    """Where a process of the same user opens it, as long as its owner lives."""
    size_bytes: int
    """Of the memory."""
    pieces: tuple[tuple[str, str, tuple[int, ...], int, int], ...]
    """(name, type, shape, first byte, number of bytes) of each tensor."""

    def bucket(self) -> Bucket:
        """The tensors, on the shared memory."""
        with open(self.path, "rb") as file:
            memory = mmap.mmap(file.fileno(), self.size_bytes, prot=mmap.PROT_READ)
        whole = np.frombuffer(memory, np.uint8)
        return tuple(
            Piece(name=name, dtype=dtype, shape=shape, values=whole[first : first + count])
            for name, dtype, shape, first, count in self.pieces
        )


class SharedBuckets:
    """The buckets of the newest version. The memory of one version is written again by the next: whoever keeps weights copies them."""

    def __init__(self) -> None:
        self._memory: list[tuple[int, mmap.mmap]] = []
        self.held: list[Held] = []
        """What to tell the other process."""

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(count for one in self.held for *_, count in one.pieces)

    def write(self, buckets: Iterable[Bucket]) -> None:
        """Take a version, bucket by bucket."""
        self.held = []
        for number, bucket in enumerate(buckets):
            places, size = [], 0
            for one in bucket:
                places.append((one.name, one.dtype, one.shape, size, one.values.nbytes))
                size += -(-one.values.nbytes // ALIGN) * ALIGN
            descriptor, memory = self._of_size(number, max(size, ALIGN))
            whole = np.frombuffer(memory, np.uint8)
            for one, (*_, first, count) in zip(bucket, places, strict=True):
                whole[first : first + count] = one.values
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            self.held.append(Held(path=path, size_bytes=len(memory), pieces=tuple(places)))

    def close(self) -> None:
        """Let go of the memory; a process that has opened it keeps what it holds."""
        for descriptor, memory in self._memory:
            memory.close()
            os.close(descriptor)
        self._memory, self.held = [], []

    def _of_size(self, number: int, size: int) -> tuple[int, mmap.mmap]:
        """The memory of the bucket of this number, made anew where it was of another size: it is another model's."""
        if number < len(self._memory) and len(self._memory[number][1]) == size:
            return self._memory[number]
        descriptor = os.memfd_create("samepath-weights")
        os.ftruncate(descriptor, size)
        made = descriptor, mmap.mmap(descriptor, size)
        if number < len(self._memory):
            old, memory = self._memory[number]
            memory.close()
            os.close(old)
            self._memory[number] = made
        else:
            self._memory.append(made)
        return made
