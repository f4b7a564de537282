"""What is known of weights without looking at them again: each tensor's shape, type and digest, and one fingerprint of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

ROW = 512
"""Numbers of 64 bits that are added before their place counts."""
_PLACE = 0x1E3779B97F4A7C15
"""An odd number of 63 bits without a pattern."""


class WeightsError(RuntimeError):
    """What a worker holds is not what the learner published: it would sample from another policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One tensor.

    Example:
        Mark(shape=(64, 32), dtype="bfloat16", digest=-8123)
    """

    shape: tuple[int, ...]
    """Its sizes."""
    dtype: str
    """Name in torch."""
    digest: int
    """See `digest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All tensors of one version.

    Example:
        Header(version=3, marks={"model.norm.weight": Mark(shape=(32,), dtype="float32", digest=17)})
    """

    version: int
    """Of the weights."""
    marks: Mapping[str, Mark]
    """By published name."""
    base: str = ""
    """Fingerprint of the version that it is told as changes of; "" where it is told whole."""
    sent_bytes: int = 0
    """That it crosses with; 0 in the learner's own process."""

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that are equal for equal weights, whatever their version and order."""
        text = "\n".join(f"{name} {mark.dtype} {mark.shape} {mark.digest}" for name, mark in sorted(self.marks.items()))
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(torch.Size(mark.shape).numel() * getattr(torch, mark.dtype).itemsize for mark in self.marks.values())


def header(version: int, tensors: Mapping[str, Tensor]) -> Header:
    """What is known of these tensors, which are read once."""
    return Header(version=version, marks={name: mark(tensor) for name, tensor in tensors.items()})


def mark(tensor: Tensor) -> Mark:
    """What is known of this tensor, which is read once."""
    return Mark(
        shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."), digest=digest(tensor.detach())
    )


@torch.no_grad()
def digest(tensor: Tensor) -> int:
    """64 bits that change with any one bit of the tensor, and with the order of its pieces of 4 KiB; read at the memory's rate.

    Σᵢ cᵢ · Σⱼ bᵢⱼ mod 2⁶⁴ over rows i of 512 numbers b of 64 bits, with odd cᵢ; the tail is filled up with zeros. Meant for what is lost, torn, stale
    or misplaced, not for a forger.
    """
    bits = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = bits.numel() - bits.numel() % (8 * ROW)
    parts = []
    if whole:
        body = bits[:whole]
        if body.storage_offset() % 8:
            body = body.clone()
        parts.append(body.view(torch.int64).view(-1, ROW).sum(1))
    if bits.numel() > whole:
        tail = torch.zeros(8 * ROW, dtype=torch.uint8, device=bits.device)
        tail[: bits.numel() - whole] = bits[whole:]
        parts.append(tail.view(torch.int64).sum().reshape(1))
    if not parts:
        return 0
    sums = torch.cat(parts)
    places = torch.arange(sums.numel(), dtype=torch.int64, device=bits.device).mul_(2 * _PLACE).add_(1)
    return int((sums * places).sum())


def require_equal(expected: Header, held: Mapping[str, Tensor], who: str) -> None:
    """Raise WeightsError that names `who` and the tensors unless `held` has the digests of `expected`."""
    different = [name for name, wanted in expected.marks.items() if mark(held[name]) != wanted]
    if different:
        raise WeightsError(
            f"{who} must hold the weights of version {expected.version} (fingerprint {expected.fingerprint}) to the bit; {len(different)} of "
            f"{len(expected.marks)} tensors differ after they were put together, the first of them {different[0]}. Memory, object store or "
            "network of that machine gave other bytes than it took: `samepath resume` goes on from the last checkpoint, without it if need be."
        )
