"""Weights cut into pieces of bounded size, each of which crosses to other processes by itself."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.rollout.weights.mark import Header, Mark, mark


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
    bucket: list[Piece] = []
    size = 0
    for name, tensor in tensors:
        one = piece(name, tensor)
        if bucket and size + one.values.nbytes > bucket_bytes:
            yield tuple(bucket)
            bucket, size = [], 0
        bucket.append(one)
        size += one.values.nbytes
    if bucket:
        yield tuple(bucket)


class Outgoing:
    """The same (see `buckets`), of which everything that a header says is known once they have been through."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> None:
        self._tensors, self._bucket_bytes = tensors, bucket_bytes
        self._marks: dict[str, Mark] = {}

    def __iter__(self) -> Iterator[Bucket]:
        return buckets(self._marked(), self._bucket_bytes)

    def _marked(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors:
            self._marks[name] = mark(tensor)
            yield name, tensor

    def header(self, version: int) -> Header:
        """What is known of the tensors, all of which have gone."""
        return Header(version=version, marks=self._marks)
