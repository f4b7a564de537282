"""Exact, deterministic selection of the C best keys of each query row.

Contract of every backend, bit for bit on equal logits: `[N, C]` int32 ascending by position with a −1 tail, and `count[N]`; ties go
to the lower index; −0.0 equals +0.0; NaN counts as −inf; valid keys of row n are `starts[n] ≤ s < ends[n]`, and a valid key
is kept even at −inf when fewer than C remain.

Axes: N query rows, S key positions, C selected keys.
"""

import numpy as np
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels


def select(
    logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Select the `num_selected` largest valid logits of each row.

    Args:
        logits_NS: float32 or float64 index logits.
        starts_N, ends_N: integer bounds of each row's valid keys, 0 ≤ start ≤ end ≤ S.
        num_selected: C, at least 1.

    Returns:
        (indices_NC int32, count_N int32). Raises ValueError on shapes or types that do not fit.
    """
    if logits_NS.ndim != 2 or starts_N.shape != logits_NS.shape[:1] or ends_N.shape != logits_NS.shape[:1]:
        raise ValueError(
            f"select needs logits [N, S] and bounds [N]; got {tuple(logits_NS.shape)}, {tuple(starts_N.shape)}, {tuple(ends_N.shape)}"
        )
    if logits_NS.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"index logits must be float32 or float64 (lower precision ties at the threshold); got {logits_NS.dtype}"
        )
    if num_selected < 1:
        raise ValueError(f"num_selected must be at least 1; got {num_selected}")
    if backend == "reference":
        return _select_by_lexsort(logits_NS, starts_N, ends_N, num_selected)
    fused = fused_kernels(backend, "selection", logits_NS, starts_N, ends_N)
    if fused is not None:
        return fused.select(logits_NS, starts_N, ends_N, num_selected)
    if logits_NS.dtype == torch.float32:
        return _select_by_keys(logits_NS, starts_N, ends_N, num_selected)
    return _select_by_threshold(logits_NS, starts_N, ends_N, num_selected)


def select_all(starts_N: Tensor, ends_N: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """The selection of rows with at most C valid keys: all of them, no logits needed. Same form as `select`."""
    offsets_C = torch.arange(num_selected, device=starts_N.device)
    positions_NC = starts_N[:, None] + offsets_C
    count_N = (ends_N - starts_N).clamp(min=0)
    return positions_NC.masked_fill(offsets_C >= count_N[:, None], -1).to(torch.int32), count_N.to(torch.int32)


def _select_by_lexsort(logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """The definition: sort each row's valid keys by (−logit, index)."""
    num_rows = logits_NS.shape[0]
    indices_NC = np.full((num_rows, num_selected), -1, dtype=np.int32)
    count_N = np.zeros(num_rows, dtype=np.int32)
    values_NS = logits_NS.detach().cpu().double().numpy() + 0.0
    for row in range(num_rows):
        keys = np.arange(int(starts_N[row]), int(ends_N[row]))
        values = values_NS[row, keys]
        values = np.where(np.isnan(values), -np.inf, values)
        kept = np.sort(keys[np.lexsort((keys, -values))[:num_selected]])
        indices_NC[row, : len(kept)] = kept
        count_N[row] = len(kept)
    return torch.from_numpy(indices_NC).to(logits_NS.device), torch.from_numpy(count_N).to(logits_NS.device)


def _select_by_threshold(
    logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int
) -> tuple[Tensor, Tensor]:
    """Keep all above the C-th largest value, fill with the lowest-index equals, emit ascending."""
    num_keys = logits_NS.shape[1]
    positions_S = torch.arange(num_keys, device=logits_NS.device)
    valid_NS = (positions_S >= starts_N[:, None]) & (positions_S < ends_N[:, None])
    if num_keys > num_selected:
        values_NS = logits_NS.detach()
        # An invalid key stands at −inf beside valid ones that are −inf or NaN; `equal_NS` keeps them apart.
        values_NS = values_NS.masked_fill(~valid_NS | values_NS.isnan(), -torch.inf)
        threshold_N1 = values_NS.topk(num_selected, dim=1).values[:, -1:]
        above_NS = values_NS > threshold_N1
        equal_NS = (values_NS == threshold_N1) & valid_NS
        room_N1 = num_selected - above_NS.sum(1, keepdim=True)
        kept_NS = above_NS | (equal_NS & (equal_NS.cumsum(1) <= room_N1))
    else:
        kept_NS = valid_NS
    count_N = kept_NS.sum(1)
    # A stable sort by "dropped" brings the kept positions to the front in ascending order.
    width = min(num_keys, num_selected)
    order_NS = torch.where(kept_NS, positions_S, num_keys).sort(dim=1).values[:, :width]
    indices_NC = logits_NS.new_full((logits_NS.shape[0], num_selected), -1, dtype=torch.int32)
    indices_NC[:, :width] = order_NS.masked_fill(order_NS == num_keys, -1).to(torch.int32)
    return indices_NC, count_N.to(torch.int32)


def _select_by_keys(logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """One top-k over distinct 64-bit keys: the float's bits in an order-keeping form above, minus the position below.

    No two keys of a row are equal, so there are no ties to break; only the C chosen positions are sorted.
    """
    num_keys = logits_NS.shape[1]
    width = min(num_keys, num_selected)
    positions_S = torch.arange(num_keys, device=logits_NS.device)
    # Adding 0 turns −0.0 into +0.0.
    values_NS = logits_NS.detach() + 0.0
    bits_NS = values_NS.masked_fill_(values_NS.isnan(), -torch.inf).view(torch.int32)
    # Negative floats order backwards by their bits.
    ordered_NS = torch.where(bits_NS < 0, bits_NS ^ 0x7FFFFFFF, bits_NS).long()
    keys_NS = (ordered_NS << 32).sub_(positions_S)
    lowest = torch.iinfo(torch.int64).min
    keys_NS.masked_fill_((positions_S < starts_N[:, None]) | (positions_S >= ends_N[:, None]), lowest)
    best_NC = keys_NS.topk(width, dim=1, sorted=False).values
    chosen_NC = ((-best_NC) & 0xFFFFFFFF).masked_fill_(best_NC == lowest, num_keys).to(torch.int32).sort(dim=1).values
    indices_NC = torch.full((logits_NS.shape[0], num_selected), -1, dtype=torch.int32, device=logits_NS.device)
    indices_NC[:, :width] = chosen_NC.masked_fill_(chosen_NC == num_keys, -1)
    return indices_NC, (ends_N - starts_N).clamp(0, num_selected).to(torch.int32)


def key_rows(keys_BS: Tensor, positions_NC: Tensor, backend: Backend) -> Tensor:
    """int32 [N, C]: key-store row of each selected position, −1 where there is none.

    Args:
        keys_BS: key-store row of each position of B sequences. positions_NC: in-sequence positions of N = B·T queries, sequence by sequence.
    """
    fused = fused_kernels(backend, "key_rows", keys_BS, positions_NC)
    if fused is not None:
        return fused.key_rows(keys_BS, positions_NC)
    chosen = keys_BS.gather(1, positions_NC.clamp(min=0).long().view(keys_BS.shape[0], -1)).view(positions_NC.shape)
    return chosen.to(torch.int32).masked_fill_(positions_NC < 0, -1)


def splitmix64(values: Tensor) -> Tensor:
    """SplitMix64 finaliser on int64 (two's complement wrap-around), Steele et al., OOPSLA 2014."""
    mixed = values * -7046029254386353131 + -7046029254386353131
    mixed = (mixed ^ ((mixed >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    mixed = (mixed ^ ((mixed >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return mixed ^ ((mixed >> 31) & 0x1FFFFFFFF)


def selection_fingerprint(positions_NC: Tensor, count_N: Tensor, backend: Backend = "torch") -> Tensor:
    """Order-free 64-bit fingerprint of each row's set of in-sequence positions: the wrapped sum of their hashes, int64 [N].

    Integers, so every backend gives the same bits; a fused one takes one kernel.
    """
    fused = fused_kernels(backend, "selection_fingerprint", positions_NC, count_N)
    if fused is not None:
        return fused.selection_fingerprint(positions_NC, count_N)
    valid_NC = torch.arange(positions_NC.shape[1], device=positions_NC.device) < count_N[:, None]
    return (_hashes(positions_NC) * valid_NC).sum(1)


KNOWN_POSITIONS = 1 << 14
"""Positions whose hashes stand in a table: a look-up in place of a dozen operations, which cost more than a small batch's numbers."""
HASHES = splitmix64(torch.arange(KNOWN_POSITIONS))


def _hashes(positions_NC: Tensor) -> Tensor:
    """Hash of each position; of negative ones, which nobody counts, anything."""
    known = positions_NC.device.type == "cpu" and positions_NC.numel() > 0
    if not known or int(positions_NC.amax()) >= KNOWN_POSITIONS:
        return splitmix64(positions_NC.long())
    return HASHES.index_select(0, positions_NC.clamp(min=0).flatten()).view(positions_NC.shape)
