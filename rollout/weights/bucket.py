"""Weights cut into pieces of bounded size, each of which crosses to other processes by itself."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One tensor as bytes, which need no type that NumPy lacks.

    Example:
        Piece(name="model.norm.weight", dtype="bfloat16", shape=(32,), values=np.zeros(64, np.uint8))
    """

    name: str
    """Published name."""
    dtype: str
    """Of the numbers, by its name in torch."""
    shape: tuple[int, ...]
    """Of the tensor."""
    values: NDArray[np.uint8]
    """Its bytes, row by row; where it stands on a CPU, no copy."""
    places: NDArray[np.int32] | None = None
    """None, or places in the tensor of those of its numbers that `values` has: the others are as before."""

    @property
    def size_bytes(self) -> int:
        """That cross."""
        return self.values.nbytes + (0 if self.places is None else self.places.nbytes)

    def tensor(self) -> Tensor:
        """The tensor, on the same memory, to be read alone."""
        with warnings.catch_warnings():
            # What stands in an object store is read-only; whoever takes weights copies them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(self.values).view(getattr(torch, self.dtype)).view(self.shape)


Bucket = tuple[Piece, ...]
"""What crosses at one time."""


def piece(name: str, tensor: Tensor) -> Piece:
    """The tensor in this machine's memory, copied there from a GPU alone."""
    host = tensor.detach().cpu().contiguous()
    return Piece(
        name=name,
        dtype=str(host.dtype).removeprefix("torch."),
        shape=tuple(host.shape),
        values=host.reshape(-1).view(torch.uint8).numpy(),
    )


def buckets(tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[Bucket]:
    """Named tensors as buckets of at most `bucket_bytes`, in their order; a tensor that is larger has one of its own.

    They are taken one after the other, so that no more than a bucket of them need exist at any time.
    """
    return bucketed((piece(name, tensor) for name, tensor in tensors), bucket_bytes)


def bucketed(pieces: Iterable[Piece], bucket_bytes: int) -> Iterator[Bucket]:
    """See `buckets`."""
    bucket: list[Piece] = []
    size = 0
    for one in pieces:
        if bucket and size + one.size_bytes > bucket_bytes:
            yield tuple(bucket)
            bucket, size = [], 0
        bucket.append(one)
        size += one.size_bytes
    if bucket:
        yield tuple(bucket)
