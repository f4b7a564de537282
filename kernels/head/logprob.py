"""Log-probability head: log π(target) and entropy of each row without holding `[N, V]` for the whole batch.

Probabilities are those of the *sampling* distribution: logits divided by the temperature, renormalised over the row's recorded
support where there is one. Entropy is over the full vocabulary. Axes: N rows, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from samepath.kernels.backend import Backend, backends_that, round_up
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.row_product import row_product, widened

CHUNK_ELEMENTS = 1 << 23
"""Logits held at once by the `torch` backend (32 MiB in float32)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportRows:
    """Candidate tokens of each row, compressed; a row with count 0 has the full vocabulary as its support."""

    counts_N: Tensor
    """[N] int64 candidates of each row."""
    ids: Tensor
    """[Σ counts] int64 token ids."""

    def select(self, rows_U: Tensor) -> "SupportRows":
        """The given rows, in their order."""
        counts_U = self.counts_N[rows_U]
        starts_U = (self.counts_N.cumsum(0) - self.counts_N)[rows_U]
        # Consecutive numbers that begin anew at each row's start.
        within = torch.arange(int(counts_U.sum()), device=counts_U.device)
        shift_U = starts_U - (counts_U.cumsum(0) - counts_U)
        return SupportRows(counts_N=counts_U, ids=self.ids[within + shift_U.repeat_interleave(counts_U)])

    def excluded(self, start: int, stop: int, vocab_size: int) -> Tensor:
        """[stop − start, V] bool, True where a token is outside the row's support."""
        counts = self.counts_N[start:stop]
        first = int(self.counts_N[:start].sum())
        ids = self.ids[first : first + int(counts.sum())]
        excluded = torch.ones(stop - start, vocab_size, dtype=torch.bool, device=counts.device)
        excluded[torch.arange(stop - start, device=counts.device).repeat_interleave(counts), ids] = False
        return excluded & (counts > 0)[:, None]


def scaled_logits(logits_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """Logits over the temperature of their row."""
    # A division by 1 changes nothing and costs a pass over the vocabulary; on a GPU asking would cost a wait.
    divides = temperature_N.device.type != "cpu" or not bool((temperature_N == 1).all())
    return logits_NV / temperature_N[:, None] if divides else logits_NV


def sampling_logprobs(logits_NV: Tensor, temperature_N: Tensor, excluded_NV: Tensor | None) -> Tensor:
    """Log-probabilities of the sampling distribution, float32 or wider `[N, V]`; the one definition both sides use."""
    scaled_NV = scaled_logits(logits_NV, temperature_N)
    if excluded_NV is not None:
        scaled_NV = scaled_NV.masked_fill(excluded_NV, -torch.inf)
    return scaled_NV.log_softmax(-1)


def head_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor,
    support: SupportRows | None,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprobs_N with gradient, entropy_N and kept_mass_N without) of the target tokens, in nats.

    `kept_mass_N` is the full-vocabulary probability of the row's support (1 without one). Raises ValueError if a target is outside its support.
    """
    if backend == "reference":
        logits_NV = row_product(hidden_ND, weight_VD)
        excluded_NV = None if support is None else support.excluded(0, len(targets_N), weight_VD.shape[0])
        logprobs_NV = sampling_logprobs(logits_NV, temperature_N, excluded_NV)
        full_NV = sampling_logprobs(logits_NV.detach(), temperature_N, None)
        logprobs_N = logprobs_NV.gather(1, targets_N[:, None]).squeeze(1)
        _refuse_outside_support(logprobs_N)
        mass_N = _kept_mass(full_NV, excluded_NV)
        return logprobs_N, -(full_NV.exp() * full_NV).sum(-1), mass_N
    fused = fused_kernels(backend, "head_logprobs", hidden_ND, weight_VD, targets_N, temperature_N)
    if fused is not None:
        logprobs_N, entropy_N, mass_N = fused.head_logprobs(hidden_ND, weight_VD, targets_N, temperature_N, support)
        _refuse_outside_support(logprobs_N)
        return logprobs_N, entropy_N, mass_N
    logprobs_N, entropy_N, mass_N = _HeadLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature_N, support)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N, mass_N


def fused_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor,
    words_NW: Tensor | None,
    backend: Backend,
) -> Tensor:
    """[N] nats of the target tokens, the bits of `head_logprobs` with a fused backend, without gradient and without its check.

    Nothing waits for the host, so this may stand in a CUDA graph. `words_NW` are the `kept_words` of the rows' supports, 0 for none.
    Raises ValueError if the backend is not a fused one.
    """
    fused = fused_kernels(backend, "fused_logprobs", hidden_ND, weight_VD, targets_N, temperature_N)
    if fused is None:
        raise ValueError(f"fused_logprobs needs backend {backends_that('fused')}; got {backend}")
    bitmap = None if words_NW is None else words_NW.masked_fill((words_NW == 0).all(1, keepdim=True), -1)
    return fused.row_logprobs(hidden_ND, weight_VD, targets_N, temperature_N, bitmap)


def kept_words(kept_NV: Tensor) -> Tensor:
    """int32 [N, ⌈V / 32⌉]: bit v % 32 of word v // 32 is set where token v is kept."""
    bits_NW_ = pad(kept_NV, (0, -kept_NV.shape[1] % 32)).view(kept_NV.shape[0], -1, 32).int()
    # Bit 31 is the sign; the bits of a word are distinct, so adding them sets them.
    return (bits_NW_ << torch.arange(32, dtype=torch.int32, device=kept_NV.device)).sum(-1, dtype=torch.int32)


def padded_logits(hidden_ND: Tensor, weight_VD: Tensor, backend: Backend = "torch") -> Tensor:
    """`hidden · weightᵀ` with the row count padded to a multiple of 16, so that a row's bits stand alone; float32 or wider."""
    fused = fused_kernels(backend, "padded_logits", hidden_ND, weight_VD)
    if fused is not None:
        return fused.linear(hidden_ND, weight_VD, torch.float32)
    hidden_ND, weight_VD = widened(hidden_ND), widened(weight_VD)
    num_rows = hidden_ND.shape[0]
    if num_rows % 16:
        hidden_ND = pad(hidden_ND, (0, 0, 0, round_up(num_rows) - num_rows))
    return row_product(hidden_ND, weight_VD)[:num_rows]


def _kept_mass(full_NV: Tensor, excluded_NV: Tensor | None) -> Tensor:
    if excluded_NV is None:
        return full_NV.new_ones(full_NV.shape[0])
    return full_NV.exp().masked_fill(excluded_NV, 0.0).sum(-1)


def _refuse_outside_support(logprobs_N: Tensor) -> None:
    outside = (logprobs_N == -torch.inf).nonzero().flatten()
    if len(outside):
        raise ValueError(
            f"every target must lie in its recorded support; {len(outside)} of {len(logprobs_N)} do not (first: row {int(outside[0])}). "
            "The supports and tokens of this batch do not belong together."
        )


class _HeadLogprobs(torch.autograd.Function):
    """Row chunks of logits forward; softmax − onehot chunk by chunk backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature_N: Tensor,
        support: SupportRows | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_rows, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
        logprobs_N, entropy_N, mass_N = (hidden_ND.new_empty(num_rows) for _ in range(3))
        step = max(16, CHUNK_ELEMENTS // vocab_size // 16 * 16)
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            logits_NV = padded_logits(hidden_ND[start:stop], weight_VD)
            excluded_NV = None if support is None else support.excluded(start, stop, vocab_size)
            full_NV = sampling_logprobs(logits_NV, temperature_N[start:stop], None)
            kept_NV = (
                full_NV if excluded_NV is None else sampling_logprobs(logits_NV, temperature_N[start:stop], excluded_NV)
            )
            logprobs_N[start:stop] = kept_NV.gather(1, targets_N[start:stop, None]).squeeze(1)
            entropy_N[start:stop] = -(full_NV.exp() * full_NV).sum(-1)
            mass_N[start:stop] = _kept_mass(full_NV, excluded_NV)
        _refuse_outside_support(logprobs_N)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, temperature_N)
        ctx.support, ctx.step = support, step
        ctx.mark_non_differentiable(entropy_N, mass_N)
        return logprobs_N, entropy_N, mass_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, temperature_N = ctx.saved_tensors
        grad_N = grads[0] / temperature_N
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD)
        for start in range(0, hidden_ND.shape[0], ctx.step):
            stop = min(start + ctx.step, hidden_ND.shape[0])
            logits_NV = padded_logits(hidden_ND[start:stop], weight_VD)
            excluded_NV = None if ctx.support is None else ctx.support.excluded(start, stop, weight_VD.shape[0])
            grad_logits_NV = (
                sampling_logprobs(logits_NV, temperature_N[start:stop], excluded_NV)
                .exp_()
                .mul_(-grad_N[start:stop, None])
            )
            grad_logits_NV.scatter_add_(1, targets_N[start:stop, None], grad_N[start:stop, None])
            grad_hidden_ND[start:stop] = row_product(grad_logits_NV, weight_VD.T)
            grad_weight_VD += row_product(grad_logits_NV.T, hidden_ND[start:stop].T)
        return grad_hidden_ND, grad_weight_VD, None, None, None
