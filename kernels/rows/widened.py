"""Where the `torch` backend meets numbers narrower than float32: in a sampler that computes in bfloat16 on a CPU, without gradients."""

import torch
from torch import Tensor


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each in float32 if its type is narrower: index logits, attention and head add, compare and take their softmax in float32 or wider."""
    return tuple(one.to(torch.promote_types(one.dtype, torch.float32)) for one in tensors)
