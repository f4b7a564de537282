"""A surrogate of your own: a soft gate in place of the clip (SAPO, arXiv:2511.20347).

Rows of `inputs` are tokens that were sampled; `inputs.rollout_M` says whose.
"""

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import importance_ratio
from samepath.rl.objective.loss_inputs import LossInputs


def soft_gate(
    logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float, *, tau: float, tau_negative: float
) -> Tensor:
    """A·(4/τ)·σ(τ·(r − 1)) of each token, r = π/π_old: its gradient at r = 1 is that of r·A, and fades on both sides, sooner with larger τ."""
    ratio_M = importance_ratio(logprobs_M, inputs.old_logprobs_M)
    advantages_M = inputs.advantages_B[inputs.rollout_M]
    tau_M = torch.where(advantages_M > 0, tau, tau_negative)
    return advantages_M * 4 / tau_M * torch.sigmoid(tau_M * (ratio_M - 1))
