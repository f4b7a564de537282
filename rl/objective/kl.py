"""Per-token estimates of KL(π‖π_ref) from tokens that another policy sampled. Axes: M trained tokens of a packed batch.

All log-probabilities are of the sampled token under the sampling distribution, in nats; results are float32 or wider, unreduced.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from samepath.rl.objective.importance_ratio import at_least_float32, bounded_exp, importance_ratio
from samepath.rl.recipe.objective import KlEstimator, KlSettings


def beta_per_rollout(datasets: Sequence[str], settings: KlSettings) -> Tensor:
    """KL weight of each rollout, float32 `[B]`, from the name of the dataset that its prompt came from."""
    return torch.tensor([settings.beta_by_dataset.get(name, settings.beta) for name in datasets], dtype=torch.float32)


def unbiased_kl(logprobs_M: Tensor, sampler_logprobs_M: Tensor, reference_logprobs_M: Tensor) -> Tensor:
    """Per-token KL(π‖π_ref) estimate, ρ·(x − log x − 1) with ρ = π/π_sampler, x = π_ref/π (arXiv:2512.02556 eq. 7).

    ρ carries gradient: the gradient is ρ·log(π/π_ref)·∇log π, whose mean under π_sampler is exactly ∇KL(π‖π_ref).
    π_ref/π_sampler and ρ are bounded (`bounded_exp`): exact while both log-ratios lie within ±LOG_RATIO_BOUND nats.
    """
    logprobs_M = at_least_float32(logprobs_M)
    # ρ·x = π_ref/π_sampler holds no π, so it is taken out as a constant. Differentiated as written, −ρ·x and +ρ·x would have to
    # cancel, which loses every digit of the gradient once x is large.
    constant_M = importance_ratio(reference_logprobs_M, sampler_logprobs_M).detach()
    log_x_M = reference_logprobs_M.detach() - logprobs_M
    return constant_M - importance_ratio(logprobs_M, sampler_logprobs_M.detach()) * (log_x_M + 1)


def k1(logprobs_M: Tensor, reference_logprobs_M: Tensor) -> Tensor:
    """Per-token log(π/π_ref). Unbiased in value on-policy; as a loss its mean gradient ignores the reference (it is ∇log π)."""
    return at_least_float32(logprobs_M) - at_least_float32(reference_logprobs_M)


def k2(logprobs_M: Tensor, reference_logprobs_M: Tensor) -> Tensor:
    """Per-token ½·log²(π/π_ref). Its gradient is right on-policy, its value only to second order."""
    return 0.5 * k1(logprobs_M, reference_logprobs_M).square()


def k3(logprobs_M: Tensor, reference_logprobs_M: Tensor) -> Tensor:
    """Per-token x − log x − 1 with x = π_ref/π, never negative. Biased off-policy; its gradient weight 1 − x has no lower bound."""
    log_x_M = -k1(logprobs_M, reference_logprobs_M)
    return bounded_exp(log_x_M) - log_x_M - 1


def kl_estimate(
    estimator: KlEstimator, logprobs_M: Tensor, sampler_logprobs_M: Tensor, reference_logprobs_M: Tensor
) -> Tensor:
    """The named estimator's KL(π‖π_ref) of each token, `[M]` nats, with gradient to `logprobs_M`."""
    match estimator:
        case "unbiased":
            return unbiased_kl(logprobs_M, sampler_logprobs_M, reference_logprobs_M)
        case "k1":
            return k1(logprobs_M, reference_logprobs_M.detach())
        case "k2":
            return k2(logprobs_M, reference_logprobs_M.detach())
        case "k3":
            return k3(logprobs_M, reference_logprobs_M.detach())
