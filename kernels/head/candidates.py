"""Which tokens may be drawn: top-k, top-p and min-p over each row of the vocabulary.

Contract of every backend, on equal logits: temperature, then min-p and top-k (tokens as likely as the k-th stay), then top-p over what these
left, renormalised: the fewest tokens, best first and equal ones by their ids, whose probability reaches p. Probabilities are float32, their sums at
least as exact as float64's. A row whose candidates are more than its cap keeps the whole vocabulary.

Axes: B rows, V vocabulary, W words of 32 tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.head.logprob import kept_words, sampling_logprobs, scaled_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What of each row may be drawn."""

    scaled_BV: Tensor
    """Logits over the temperature; −inf for a token that is left out."""
    words_BW: Tensor
    """int32 `kept_words` of the candidates, all 0 for the full vocabulary."""
    over_cap_B: Tensor
    """bool, True where the candidates exceeded their cap, so that the full vocabulary may be drawn."""


def truncate(logits_BV: Tensor, temperature_B: Tensor, settings_5B: Tensor, backend: Backend) -> Candidates:
    """The candidates of each row; nothing waits for the host where a backend is fused.

    Args:
        temperature_B: positive, in the logits' type.
        settings_5B: float64 temperature (not read), top-k (0: all), top-p (1: all), min-p (0: all) and cap of each row.
    """
    if settings_5B.shape != (5, len(logits_BV)):
        raise ValueError(f"truncate needs settings [5, B] of logits [B, V]; got {tuple(settings_5B.shape)}")
    fused = fused_kernels(backend, "truncate", logits_BV, temperature_B, settings_5B)
    if fused is not None:
        scaled_BV, words_BW, over_cap_B = fused.truncate(scaled_logits(logits_BV, temperature_B), settings_5B)
        return Candidates(scaled_BV=scaled_BV, words_BW=words_BW, over_cap_B=over_cap_B)
    kept_BV, over_cap_B = candidates(logits_BV, temperature_B, settings_5B)
    excluded_BV = ~kept_BV & kept_BV.any(1, keepdim=True)
    scaled_BV = scaled_logits(logits_BV, temperature_B).masked_fill(excluded_BV, -torch.inf)
    return Candidates(scaled_BV=scaled_BV, words_BW=kept_words(kept_BV), over_cap_B=over_cap_B)


def candidates(logits_BV: Tensor, temperature_B: Tensor, settings_5B: Tensor) -> tuple[Tensor, Tensor]:
    """(kept_BV, over_cap_B) by a sort, the definition. A row that keeps everything, or more than its cap, is all False."""
    values_sorted_BV, ids_sorted_BV = descending(scaled_logits(logits_BV, temperature_B))
    _, top_k_B, top_p_B, min_p_B, cap_B = settings_5B
    truncates_B = (top_k_B > 0) | (top_p_B < 1) | (min_p_B > 0)
    place_B1 = (top_k_B.long() - 1).clamp(0, logits_BV.shape[1] - 1)[:, None]
    best_B1, kth_B1 = values_sorted_BV[:, :1], values_sorted_BV.gather(1, place_B1)
    left_sorted_BV = (values_sorted_BV - best_B1).exp() >= min_p_B.to(values_sorted_BV.dtype)[:, None]
    left_sorted_BV &= (values_sorted_BV >= kth_B1) | (top_k_B == 0)[:, None]
    left_BV = torch.zeros_like(left_sorted_BV).scatter_(1, ids_sorted_BV, left_sorted_BV)
    probs_sorted_BV = sampling_logprobs(logits_BV, temperature_B, ~left_BV).exp().gather(1, ids_sorted_BV)
    # In float64: how a library groups the additions of a row may follow the number of rows, and must not decide.
    before_BV = probs_sorted_BV.cumsum(-1, dtype=torch.float64) - probs_sorted_BV
    kept_sorted_BV = left_sorted_BV & ((before_BV < top_p_B[:, None]) | (top_p_B >= 1)[:, None])
    kept_BV = torch.zeros_like(kept_sorted_BV).scatter_(1, ids_sorted_BV, kept_sorted_BV)
    over_cap_B = (kept_BV.sum(1) > cap_B) & truncates_B
    # A token of probability 0 in float32 is never a candidate of an untruncated row either, so "keeps all" is by settings.
    return kept_BV & (truncates_B & ~over_cap_B)[:, None], over_cap_B


def descending(values_BV: Tensor) -> tuple[Tensor, Tensor]:
    """(values, ids) of each row, best first; equal values in the order of their ids, as a stable sort gives them."""
    if values_BV.device.type != "cpu" or values_BV.dtype != torch.float32:
        order = values_BV.sort(dim=-1, descending=True, stable=True)
        return order.values, order.indices
    # Distinct integers, which NumPy sorts with vector instructions: a row of 274 takes an eighth of the time. Adding 0 turns −0.0 into +0.0.
    bits_BV = (values_BV + 0.0).view(torch.int32).numpy()
    # Flipped, the bits of a negative float fall with it; what is left is turned round for the largest to come first.
    rising_BV = bits_BV ^ ((bits_BV >> 31) & 0x7FFFFFFF)
    keys_BV = (~rising_BV).astype(np.int64) << 32 | np.arange(values_BV.shape[1])
    keys_BV.sort(axis=-1)
    ids_BV = torch.from_numpy(keys_BV & 0xFFFFFFFF)
    return values_BV.gather(1, ids_BV), ids_BV
