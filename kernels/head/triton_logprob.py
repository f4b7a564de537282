"""Log-probability head on the Triton backend: one pass over tiles of the vocabulary, logits never leave the multiprocessor in the forward.

Every (row block, vocabulary tile) gives maximum, Σe, Σz·e and the target's logit; a second kernel joins a row's tiles in order. Rows with a
recorded support mark it in a bitmap, so kept and full sums come from the same logits. The backward forms (onehot − softmax) for some vocabulary
columns of all rows at a time and leaves the two products with it to the matrix library. Nothing waits for the host.

Axes: N rows, D width, V vocabulary.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

import samepath.kernels.head.triton_tiles as plain_tiles
from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import fits_hopper
from samepath.kernels.head.logprob import SupportRows
from samepath.kernels.head.triton_tiles import LOG2_E, HeadRows

ROWS_AT_ONCE = 8192
"""Rows whose tile sums and support bitmaps are held at once."""

GRADIENT_BYTES = 505_000_000
"""Size of the logits' gradients of one backward step, at most."""

STEP_COLUMNS = 256
"""Backward steps take a multiple of this many vocabulary columns."""


def _tiles(rows: HeadRows) -> ModuleType:
    """The tile kernels that serve these rows, whatever their number."""
    if fits_hopper(rows.hidden_ND, rows.weight_VD):
        # Gluon has no interpreter, and older Triton no Gluon.
        import samepath.kernels.head.hopper_logprob as hopper_tiles

        return hopper_tiles
    return plain_tiles


@triton.jit
def _join_sums(top, total, other_top, other_total):
    """Maximum and Σe of two parts; an empty part has maximum −inf and Σe 0."""
    joint = tl.maximum(top, other_top)
    base = tl.where(joint == float("-inf"), 0.0, joint)
    return joint, tl.exp2((top - base) * LOG2_E), tl.exp2((other_top - base) * LOG2_E)


@triton.jit
def _join_tiles(
    sums,
    target_logits,
    logprobs,
    entropies,
    masses,
    normalisers,
    num_rows,
    num_tiles,
    RESTRICTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Join a row's tiles, first to last: log-probability, entropy, kept mass, and the logarithm of the kept Σe."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < num_rows
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    products = tl.zeros((ROWS,), tl.float32)
    kept_top = tl.full((ROWS,), float("-inf"), tl.float32)
    kept_total = tl.zeros((ROWS,), tl.float32)
    for tile in range(num_tiles):
        place = sums + (tl.full((), 0, tl.int64) + tile) * 5 * num_rows + row
        other_top = tl.load(place, mask=live, other=0.0)
        other = tl.load(place + num_rows, mask=live, other=1.0)
        top, mine, theirs = _join_sums(top, total, other_top, other)
        # Spelled out, so that the sums of all columns and of the kept ones round alike.
        total = tl.fma(total, mine, other * theirs)
        products = tl.fma(products, mine, tl.load(place + 2 * num_rows, mask=live, other=0.0) * theirs)
        if RESTRICTED:
            other_top = tl.load(place + 3 * num_rows, mask=live, other=0.0)
            other = tl.load(place + 4 * num_rows, mask=live, other=1.0)
            kept_top, mine, theirs = _join_sums(kept_top, kept_total, other_top, other)
            kept_total = tl.fma(kept_total, mine, other * theirs)
    normaliser = top + tl.log2(total) / LOG2_E
    kept = normaliser
    if RESTRICTED:
        kept = kept_top + tl.log2(kept_total) / LOG2_E
    tl.store(entropies + row, normaliser - products / total, mask=live)
    tl.store(masses + row, tl.exp2((kept - normaliser) * LOG2_E), mask=live)
    tl.store(normalisers + row, kept, mask=live)
    tl.store(logprobs + row, tl.load(target_logits + row, mask=live, other=0.0) - kept, mask=live)


@triton.jit
def _mark_support(ids, counts, ends, bitmap, first_column, num_words, IDS: tl.constexpr):
    """One row: set the bits of its candidates, or all bits where it has none."""
    row = tl.full((), 0, tl.int64) + tl.program_id(0)
    count = tl.load(counts + row)
    line = bitmap + row * num_words
    if count == 0:
        for first in range(0, num_words, IDS):
            word = first + tl.arange(0, IDS)
            tl.store(line + word, tl.full((IDS,), -1, tl.int32), mask=word < num_words)
    start = tl.load(ends + row) - count
    for first in range(0, count, IDS):
        slot = first + tl.arange(0, IDS)
        bit = tl.load(ids + start + slot, mask=slot < count, other=0).to(tl.int32) - first_column
        inside = (slot < count) & (bit >= 0) & (bit < num_words * 32)
        bit = tl.where(inside, bit, 0)
        # The order of integer operations does not show in their result.
        tl.atomic_or(line + bit // 32, tl.full((IDS,), 1, tl.int32) << (bit % 32), mask=inside)


def support_bitmap(support: SupportRows | None, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor | None:
    """int32 [rows, ⌈columns / 32⌉]: bit c % 32 of word c // 32 is set if token columns[0] + c may be drawn; None without any support.

    Waits for nothing and has no size that depends on the counts.
    """
    if support is None:
        return None
    (start, stop), (first, last) = rows, columns
    num_words = triton.cdiv(last - first, 32)
    bitmap = torch.zeros(stop - start, num_words, dtype=torch.int32, device=support.ids.device)
    if stop > start:
        counts_N = support.counts_N.contiguous()
        ends_N = counts_N.cumsum(0)
        _mark_support[(stop - start,)](
            support.ids.contiguous(),
            counts_N[start:stop],
            ends_N[start:stop],
            bitmap,
            first,
            num_words,
            IDS=32 if interpreting() else 256,
            num_warps=2,
        )
    return bitmap


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSums:
    """What the forward computes of each row, float32 [N]."""

    logprobs_N: Tensor
    """Log-probability of the target, −inf outside its support."""
    entropy_N: Tensor
    """Entropy over the full vocabulary."""
    mass_N: Tensor
    """Full-vocabulary probability of the support."""
    normaliser_N: Tensor
    """Logarithm of Σe over the support."""


def head_sums(rows: HeadRows, bitmap: Tensor | None) -> HeadSums:
    """The forward of some rows."""
    tiles = _tiles(rows)
    num_rows = rows.hidden_ND.shape[0]
    num_tiles = triton.cdiv(rows.weight_VD.shape[0], tiles.columns_a_tile(rows.hidden_ND.dtype))
    device = rows.hidden_ND.device
    logprobs_N, entropy_N, mass_N, normaliser_N = torch.empty(4, num_rows, dtype=torch.float32, device=device)
    result = HeadSums(logprobs_N=logprobs_N, entropy_N=entropy_N, mass_N=mass_N, normaliser_N=normaliser_N)
    if not num_rows:
        return result
    sums = torch.empty(num_tiles, 5, num_rows, dtype=torch.float32, device=device)
    target_logits = torch.full((num_rows,), -torch.inf, dtype=torch.float32, device=device)
    restricted = tiles.tile_sums(rows, bitmap, sums, target_logits)
    block = 32
    _join_tiles[(triton.cdiv(num_rows, block),)](
        sums,
        target_logits,
        logprobs_N,
        entropy_N,
        mass_N,
        normaliser_N,
        num_rows,
        num_tiles,
        RESTRICTED=restricted,
        ROWS=block,
        num_warps=1,
    )
    return result


def row_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature_N: Tensor, bitmap: Tensor | None
) -> Tensor:
    """logprobs_N alone, without gradients, the supports as a bitmap of all columns."""
    return head_sums(_contiguous(hidden_ND, weight_VD, targets_N, temperature_N), bitmap).logprobs_N


def _contiguous(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature_N: Tensor) -> HeadRows:
    return HeadRows(
        hidden_ND=hidden_ND.contiguous(),
        weight_VD=weight_VD.contiguous(),
        targets_N=targets_N.contiguous(),
        temperature_N=temperature_N.contiguous(),
    )


def head_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature_N: Tensor, support: SupportRows | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprobs_N, entropy_N, kept_mass_N), float32, as `logprob.head_logprobs` describes, without the check of the targets."""
    logprobs_N, entropy_N, mass_N = _HeadLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature_N, support)
    return logprobs_N, entropy_N, mass_N


class _HeadLogprobs(torch.autograd.Function):
    """Keeps the inputs and one normaliser a row."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature_N: Tensor,
        support: SupportRows | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _contiguous(hidden_ND, weight_VD, targets_N, temperature_N)
        parts = []
        for start in range(0, max(1, hidden_ND.shape[0]), ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, hidden_ND.shape[0])
            bitmap = support_bitmap(support, (start, stop), (0, weight_VD.shape[0]))
            parts.append(head_sums(rows.part(start, stop), bitmap))
        normaliser_N = torch.cat([part.normaliser_N for part in parts])
        ctx.save_for_backward(rows.hidden_ND, rows.weight_VD, rows.targets_N, rows.temperature_N, normaliser_N)
        ctx.support = support
        entropy_N = torch.cat([part.entropy_N for part in parts])
        mass_N = torch.cat([part.mass_N for part in parts])
        mass_N = torch.ones_like(mass_N) if support is None else mass_N.masked_fill(support.counts_N == 0, 1.0)
        ctx.mark_non_differentiable(entropy_N, mass_N)
        return torch.cat([part.logprobs_N for part in parts]), entropy_N, mass_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, temperature_N, normaliser_N = ctx.saved_tensors
        rows = HeadRows(hidden_ND=hidden_ND, weight_VD=weight_VD, targets_N=targets_N, temperature_N=temperature_N)
        if not hidden_ND.shape[0]:
            return torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD), None, None, None
        grad_hidden_ND, grad_weight_VD = _head_gradients(rows, normaliser_N, grads[0].contiguous(), ctx.support)
        return grad_hidden_ND, grad_weight_VD, None, None, None


def _head_gradients(
    rows: HeadRows, normaliser_N: Tensor, upstream_N: Tensor, support: SupportRows | None
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden states and head: whole rows of the head's at once, those of the hidden states summed over the steps in float32."""
    hidden_ND, weight_VD = rows.hidden_ND, rows.weight_VD
    num_rows, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
    columns = _step_columns(num_rows, vocab_size, hidden_ND.element_size())
    grad_hidden_ND = torch.empty(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device)
    grad_weight_VD = torch.empty_like(weight_VD)
    gradients = torch.empty(num_rows * columns, dtype=hidden_ND.dtype, device=hidden_ND.device)
    for start in range(0, vocab_size, columns):
        stop = min(start + columns, vocab_size)
        step = gradients[: num_rows * (stop - start)].view(num_rows, stop - start)
        bitmap = support_bitmap(support, (0, num_rows), (start, stop))
        _tiles(rows).logit_gradients(rows, normaliser_N, upstream_N, bitmap, start, step)
        _add_product(grad_hidden_ND, step, weight_VD[start:stop], first=start == 0)
        torch.mm(step.T, hidden_ND, out=grad_weight_VD[start:stop])
    del gradients, step
    return grad_hidden_ND.to(hidden_ND.dtype), grad_weight_VD


def _step_columns(num_rows: int, vocab_size: int, size_bytes: int) -> int:
    """Vocabulary columns of one backward step: as many as fit, the steps of one size, for each reads and writes the hidden states' sums."""
    most = max(GRADIENT_BYTES // (size_bytes * num_rows) // STEP_COLUMNS, 1)
    blocks = triton.cdiv(vocab_size, STEP_COLUMNS)
    return min(triton.cdiv(blocks, triton.cdiv(blocks, most)) * STEP_COLUMNS, vocab_size)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total = left · right, added to what is there unless `first`, with a float32 sum."""
    if left.dtype == torch.float32:
        total.addmm_(left, right, beta=0 if first else 1)
    elif first:
        torch.mm(left, right, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
