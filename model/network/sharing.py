"""Two networks of one process on the same weights, so that what one learns the other has at once."""

from collections.abc import Iterator

from torch import Tensor, nn

from samepath.model.network.network import CausalLM


def share_tensors(model: CausalLM, other: nn.Module) -> bool:
    """Put `model` on the tensors of `other`; False, with nothing changed, unless both are one network, on one device and in one type."""
    if not isinstance(other, CausalLM) or other.config != model.config:
        return False
    pairs = list(zip(_weights(model), _weights(other), strict=True))
    if any((own.dtype, own.device, own.shape) != (theirs.dtype, theirs.device, theirs.shape) for own, theirs in pairs):
        return False
    for own, theirs in pairs:
        own.data = theirs.data
    return True


def part_tensors(model: CausalLM) -> None:
    """Give `model` tensors of its own again, with the same numbers."""
    for own in _weights(model):
        own.data = own.data.clone()


def _weights(model: CausalLM) -> Iterator[Tensor]:
    """Parameters, and the buffers that a checkpoint holds; one that stands under two names comes once."""
    seen: set[int] = set()
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
