"""Ratios of two policies at the sampled tokens, and the weights that correct π_old/π_sampler. Axes: M trained tokens of a packed batch."""

import torch
from torch import Tensor

from samepath.rl.recipe.objective import ImportanceSettings

LOG_RATIO_BOUND = 20.0
"""Nats. Log-ratios are held within ± this before exp; within it nothing changes, beyond it float32 would soon overflow."""


def at_least_float32(values: Tensor) -> Tensor:
    """The tensor in float32, or as it is in float64 (gradient checks); a half-precision log-ratio would be mostly rounding."""
    return values if values.dtype == torch.float64 else values.float()


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp of the log-ratio held within ±LOG_RATIO_BOUND nats; finite for every finite input.

    The derivative beyond the bound is the bounded value itself, not 0: a token far outside still feels the pull back.
    """
    log_ratio = at_least_float32(log_ratio)
    # Within the bound the detached difference is exactly 0, so value and derivative are those of exp.
    excess = (log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND) - log_ratio).detach()
    return (log_ratio + excess).exp()


def importance_ratio(logprobs_M: Tensor, behaviour_logprobs_M: Tensor) -> Tensor:
    """Per-token π/π_behaviour of the sampled token, float32 or wider `[M]`, with gradient; log-ratio bounded (`bounded_exp`)."""
    return bounded_exp(at_least_float32(logprobs_M) - at_least_float32(behaviour_logprobs_M))


def importance_weight(old_logprobs_M: Tensor, sampler_logprobs_M: Tensor, settings: ImportanceSettings) -> Tensor:
    """Weight on each token's surrogate for π_old ≠ π_sampler, `[M]`, no gradient.

    truncated: min(k, cap), the truncated importance sampling of Yao et al. 2025 (fengyao.notion.site/off-policy-rl).
    banded: k where band_low ≤ k ≤ band_high, else 0, the IcePop of arXiv:2510.18855. k = π_old/π_sampler.
    """
    ratio_M = importance_ratio(old_logprobs_M.detach(), sampler_logprobs_M.detach())
    match settings.mode:
        case "none":
            return torch.ones_like(ratio_M)
        case "truncated":
            return ratio_M.clamp(max=settings.cap)
        case "banded":
            inside_M = (ratio_M >= settings.band_low) & (ratio_M <= settings.band_high)
            return torch.where(inside_M, ratio_M, 0.0)
