"""KL divergence of two policies over the full vocabulary, row by row, from their final hidden states.

Axes: N rows, D width (each policy may have its own), V vocabulary.
"""

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.head.logprob import CHUNK_ELEMENTS, padded_logits, sampling_logprobs


@torch.no_grad()
def vocabulary_kl(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    reference_ND: Tensor,
    reference_weight_VD: Tensor,
    temperature_N: Tensor,
    backend: Backend,
) -> Tensor:
    """Σ_v π(v)·(log π(v) − log π_ref(v)) of each row, `[N]` nats, float32, no gradient: both over all tokens, at the row's temperature.

    Exactly 0 where the two have equal logits. No more than `CHUNK_ELEMENTS` logits of each policy stand at once. Raises ValueError if
    the vocabularies differ.
    """
    if weight_VD.shape[0] != reference_weight_VD.shape[0]:
        raise ValueError(
            f"both policies must have one vocabulary; got {weight_VD.shape[0]} and {reference_weight_VD.shape[0]} tokens"
        )
    num_rows = hidden_ND.shape[0]
    kl_N = torch.empty(num_rows, dtype=torch.float32, device=hidden_ND.device)
    step = max(16, CHUNK_ELEMENTS // weight_VD.shape[0] // 16 * 16)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        logprobs_NV, reference_NV = (
            sampling_logprobs(padded_logits(states_ND[rows], head_VD, backend).float(), temperature_N[rows], None)
            for states_ND, head_VD in ((hidden_ND, weight_VD), (reference_ND, reference_weight_VD))
        )
        # In place: three matrices of a chunk's size stand at once, and no fourth.
        kl_N[rows] = reference_NV.sub_(logprobs_NV).neg_().mul_(logprobs_NV.exp_()).sum(-1)
    return kl_N
