"""One version of the weights on its way from the learner to the engines: what pools are given, and what a worker is given of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samepath.rollout.weights.bucket import Bucket
from samepath.rollout.weights.changes import Changes, changes_of
from samepath.rollout.weights.mark import Header, header

DEFAULT_BUCKET_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A version of the weights, in this process or as references to what stands elsewhere: its bytes do not pass through who holds it.

    Example:
        Publication(version=3, header=ObjectRef(…), buckets=(ObjectRef(…), ObjectRef(…)), sent_bytes=538 << 20, seconds=0.2)
    """

    version: int
    """Counts rollout batches learned from."""
    header: Any
    """The `Header`, or a reference to it."""
    fingerprint: str = ""
    """Of all tensors (`Header.fingerprint`)."""
    base: str = ""
    """Fingerprint of the version that a worker must hold, because this one is told as changes of it; "" where it is whole."""
    tensors: Mapping[str, Tensor] | None = None
    """In the learner's own process the weights where they stand: whoever keeps them past the next update copies them."""
    policy: nn.Module | None = None
    """The learner's policy there, whose memory an engine of the same process may share."""
    buckets: tuple[Any, ...] = ()
    """Elsewhere, references to the `Bucket`s."""
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    """Bound on one, if the tensors cross to another process."""
    sent_bytes: int = 0
    """That have left the learner's process so far."""
    seconds: float = 0.0
    """In which the learner could do nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A version of the weights as a worker's process sees it.

    Example:
        Arrived(header=Header(…), tensors={"model.norm.weight": torch.zeros(32)}, stays=True)
    """

    header: Header
    """What the learner knows of them."""
    tensors: Mapping[str, Tensor]
    """By published name, to be read alone: those that came whole."""
    changes: Mapping[str, Changes] = field(default_factory=dict)
    """Of tensors that came as changes of `header.base`. One without either is as it was there."""
    stays: bool
    """Whether nobody changes them as long as they are held."""

    def kept(self) -> "Arrived":
        """The same to be kept: a copy, unless they stay."""
        if self.stays:
            return self
        copies = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return Arrived(header=self.header, tensors=copies, stays=True)


Weights = Publication | Mapping[str, NDArray[np.float32] | Tensor]
"""What a pool takes: a publication, or tensors of this process under their published names."""


def publication(weights: Weights, version: int) -> Publication:
    """The weights as a publication of `version`. Raises ValueError for one of another version."""
    if isinstance(weights, Publication):
        if weights.version != version:
            raise ValueError(f"weights of version {weights.version} were handed over as version {version}")
        return weights
    tensors = {
        name: array.detach() if isinstance(array, Tensor) else torch.from_numpy(array)
        for name, array in weights.items()
    }
    head = header(version, tensors)
    return Publication(version=version, header=head, fingerprint=head.fingerprint, tensors=tensors)


def arrived(head: Header, buckets: Iterable[Bucket], *, stays: bool) -> Arrived:
    """Weights from buckets; `stays`: nobody writes to these as long as they are held."""
    pieces = [one for bucket in buckets for one in bucket]
    return Arrived(
        header=head,
        tensors={one.name: one.tensor() for one in pieces if one.places is None},
        changes={one.name: changes_of(one) for one in pieces if one.places is not None},
        stays=stays,
    )


def here(published: Publication) -> Arrived:
    """A publication of this process as its worker sees it."""
    assert published.tensors is not None
    return Arrived(header=published.header, tensors=published.tensors, stays=False)
