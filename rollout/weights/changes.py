"""What of a version of the weights differs from the one before, number by number and to the bit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.rollout.weights.bucket import Piece, piece

PLACE_BYTES = 4
"""Of the place of one number."""
MOST_NUMBERS = 1 << 31
"""A tensor of as many crosses whole: its places do not fit."""
WHOLE_AFTER = 0.5
"""Changes that add up to this share of the weights are followed by a whole version, so that who comes late has little to take."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The numbers of one tensor that changed.

    Example:
        Changes(places=torch.tensor([7, 9], dtype=torch.int32), values=torch.tensor([0.5, 0.25]))
    """

    places: Tensor
    """int32 [n], places in the tensor, row by row."""
    values: Tensor
    """[n] what stands there now."""

    def write(self, target: Tensor) -> None:
        """Write them into a tensor that lies row by row."""
        target.view(-1)[self.places.long().to(target.device)] = self.values.to(target.device)


def changes_of(one: Piece) -> Changes:
    """The changes that a piece holds."""
    assert one.places is not None
    numbers = Piece(name=one.name, dtype=one.dtype, shape=(len(one.places),), values=one.values).tensor()
    return Changes(places=torch.from_numpy(one.places.copy()), values=numbers)


class LastVersion:
    """The weights as they were handed out last, to which the next version's changes refer: one more copy of them in this process's memory."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._base = ""
        self._sent = 0.0
        self._partial = False

    @property
    def base(self) -> str:
        """Fingerprint of the version that the pieces handed out since `pieces` began refer to; "" where they are whole."""
        return self._base if self._partial else ""

    def pieces(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Piece]:
        """Of each tensor what changed, nothing where nothing did, or all of it where that is smaller."""
        whole, self._partial = not self._base or self._sent > WHOLE_AFTER, False
        sent = size = 0
        for name, tensor in tensors:
            size += tensor.nbytes
            one = self._piece(name, tensor.detach().cpu().contiguous(), whole)
            if one is not None:
                sent += one.size_bytes
                yield one
        self._sent = self._sent + sent / max(size, 1) if self._partial else 0.0

    def is_now(self, fingerprint: str) -> None:
        """Say which version was handed out."""
        self._base = fingerprint

    def _piece(self, name: str, after: Tensor, whole: bool) -> Piece | None:
        before = self._before.get(name)
        if before is None or (before.shape, before.dtype) != (after.shape, after.dtype):
            self._before[name] = after.clone()
            return piece(name, after)
        kind = _INTEGERS[after.element_size()]
        old, new = before.view(-1).view(kind), after.view(-1).view(kind)
        changed = old != new
        count = int(changed.sum())
        if whole or after.numel() >= MOST_NUMBERS or count * (PLACE_BYTES + after.element_size()) >= after.nbytes > 0:
            before.copy_(after)
            return piece(name, after)
        self._partial = True
        if not count:
            return None
        places = changed.nonzero().flatten()
        old[places] = new[places]
        return Piece(
            name=name,
            dtype=str(after.dtype).removeprefix("torch."),
            shape=tuple(after.shape),
            values=after.view(-1)[places].view(torch.uint8).numpy(),
            places=places.to(torch.int32).numpy().astype(np.int32, copy=False),
        )
