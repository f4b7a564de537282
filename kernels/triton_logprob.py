"""Log-probability head on the Triton backend: one pass over tiles of the vocabulary, logits never leave the multiprocessor in the forward.

Every (row block, vocabulary tile) gives maximum, Σe, Σz·e and the target's logit; a second kernel joins a row's tiles in order. Rows with a
recorded support mark it in a bitmap, so kept and full sums come from the same logits. The backward forms (softmax − onehot) for some vocabulary
columns of all rows at a time and leaves the two products with it to the matrix library.

Axes: N rows, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.logprob import SupportRows
from samepath.kernels.triton_loading import interpreting
from samepath.kernels.triton_product import operand_type

ROWS_AT_ONCE = 8192
"""Rows whose tile sums and support bitmaps are held at once."""

COLUMNS_AT_ONCE = 4096
"""Vocabulary columns of one backward step."""

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed and rounding."""

    rows: int = 128
    """Rows a program."""
    columns: int = 256
    """Vocabulary columns a program."""
    inner: int = 64
    """Inner width of one step."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 3
    """Steps in flight."""


def default_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles that fit the multiprocessor for this type."""
    if interpreting():
        return Tiles(rows=16, columns=32, inner=16)
    if dtype == torch.float32:
        return Tiles(rows=32, columns=64, inner=32, num_warps=4, num_stages=2)
    return Tiles()


@triton.jit
def _logit_tile(
    hidden,
    weight,
    temperature,
    row,
    column,
    num_rows,
    vocab_size,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """hidden · weightᵀ / temperature of a tile; −inf beyond the vocabulary."""
    accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
    live = (row < num_rows)[:, None]
    known = (column < vocab_size)[:, None]
    for first in range(0, width, INNER):
        step = first + tl.arange(0, INNER)
        inside = (step < width)[None, :]
        a = tl.load(hidden + row.to(tl.int64)[:, None] * width + step[None, :], mask=live & inside, other=0.0)
        b = tl.load(weight + column.to(tl.int64)[:, None] * width + step[None, :], mask=known & inside, other=0.0)
        accumulator = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), accumulator, input_precision="ieee")
    scaled = accumulator / tl.load(temperature + row, mask=row < num_rows, other=1.0).to(tl.float32)[:, None]
    return tl.where((column < vocab_size)[None, :], scaled, float("-inf"))


@triton.jit
def _kept_columns(bitmap, row, column, num_rows, num_words):
    """Which columns are in each row's support."""
    words = tl.load(
        bitmap + row.to(tl.int64)[:, None] * num_words + column[None, :] // 32,
        mask=(row < num_rows)[:, None] & (column // 32 < num_words)[None, :],
        other=0,
    )
    return ((words >> (column % 32)[None, :]) & 1) > 0


@triton.jit
def _tile_sums(
    hidden,
    weight,
    temperature,
    targets,
    bitmap,
    sums,
    target_logits,
    num_rows,
    vocab_size,
    width,
    num_words,
    RESTRICTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Per row and vocabulary tile: maximum, Σe, Σz·e, and maximum and Σe over the support."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    logits = _logit_tile(
        hidden, weight, temperature, row, column, num_rows, vocab_size, width, ROWS, COLUMNS, INNER, OPERAND
    )
    live = row < num_rows
    target = tl.load(targets + row, mask=live, other=-1)
    hit = column[None, :] == target[:, None]
    if RESTRICTED:
        kept = _kept_columns(bitmap, row, column, num_rows, num_words)
        hit = hit & kept
    found = tl.sum(tl.where(hit, logits, 0.0), 1)
    tl.store(target_logits + row, found, mask=live & (tl.sum(hit.to(tl.int32), 1) > 0))
    top = tl.max(logits, 1)
    exps = tl.exp2((logits - top[:, None]) * LOG2_E)
    place = sums + tl.program_id(1).to(tl.int64) * 5 * num_rows + row
    tl.store(place, top, mask=live)
    tl.store(place + num_rows, tl.sum(exps, 1), mask=live)
    # 0 · −inf beyond the vocabulary would be NaN.
    products = tl.where((column < vocab_size)[None, :], logits, 0.0) * exps
    tl.store(place + 2 * num_rows, tl.sum(products, 1), mask=live)
    if RESTRICTED:
        kept_top = tl.max(tl.where(kept, logits, float("-inf")), 1)
        base = tl.where(kept_top == float("-inf"), 0.0, kept_top)
        exps = tl.where(kept, tl.exp2((logits - base[:, None]) * LOG2_E), 0.0)
        tl.store(place + 3 * num_rows, kept_top, mask=live)
        tl.store(place + 4 * num_rows, tl.sum(exps, 1), mask=live)


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
        total = total * mine + other * theirs
        products = products * mine + tl.load(place + 2 * num_rows, mask=live, other=0.0) * theirs
        if RESTRICTED:
            other_top = tl.load(place + 3 * num_rows, mask=live, other=0.0)
            other = tl.load(place + 4 * num_rows, mask=live, other=1.0)
            kept_top, mine, theirs = _join_sums(kept_top, kept_total, other_top, other)
            kept_total = kept_total * mine + other * theirs
    normaliser = top + tl.log2(total) / LOG2_E
    kept = normaliser
    if RESTRICTED:
        kept = kept_top + tl.log2(kept_total) / LOG2_E
    tl.store(entropies + row, normaliser - products / total, mask=live)
    tl.store(masses + row, tl.exp2((kept - normaliser) * LOG2_E), mask=live)
    tl.store(normalisers + row, kept, mask=live)
    tl.store(logprobs + row, tl.load(target_logits + row, mask=live, other=0.0) - kept, mask=live)


@triton.jit
def _logit_gradients(
    hidden,
    weight,
    temperature,
    targets,
    bitmap,
    normalisers,
    upstream,
    gradients,
    first_column,
    num_rows,
    vocab_size,
    width,
    num_words,
    num_columns,
    RESTRICTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """(onehot − softmax) · upstream / temperature of some vocabulary columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    local = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column = first_column + local
    logits = _logit_tile(
        hidden, weight, temperature, row, column, num_rows, vocab_size, width, ROWS, COLUMNS, INNER, OPERAND
    )
    live = row < num_rows
    kept_sum = tl.load(normalisers + row, mask=live, other=0.0)
    probs = tl.exp2((logits - kept_sum[:, None]) * LOG2_E)
    if RESTRICTED:
        probs = tl.where(_kept_columns(bitmap, row, column, num_rows, num_words), probs, 0.0)
    target = tl.load(targets + row, mask=live, other=-1)
    factor = tl.load(upstream + row, mask=live, other=0.0) / tl.load(temperature + row, mask=live, other=1.0).to(
        tl.float32
    )
    values = (tl.where(column[None, :] == target[:, None], 1.0, 0.0) - probs) * factor[:, None]
    place = row.to(tl.int64)[:, None] * num_columns + local[None, :]
    keep = live[:, None] & (local < num_columns)[None, :]
    tl.store(gradients + place, values.to(gradients.dtype.element_ty), mask=keep)


def support_bitmap(support: SupportRows | None, start: int, stop: int, vocab_size: int) -> Tensor | None:
    """int32 [stop − start, ⌈V / 32⌉]: bit v % 32 of word v // 32 is set if token v may be drawn; None without any support."""
    if support is None:
        return None
    counts = support.counts_N[start:stop]
    first = int(support.counts_N[:start].sum())
    ids = support.ids[first : first + int(counts.sum())]
    num_words = triton.cdiv(vocab_size, 32)
    words = torch.zeros((stop - start) * num_words, dtype=torch.int32, device=ids.device)
    rows = torch.arange(stop - start, device=ids.device).repeat_interleave(counts)
    # Bit 31 is the sign of an int32. A row's candidates are distinct, so adding bits sets them.
    bits = torch.ones_like(ids) << (ids % 32)
    words.index_add_(0, rows * num_words + ids // 32, bits.to(torch.int32))
    bitmap = words.view(stop - start, num_words)
    return bitmap.masked_fill(counts[:, None] == 0, -1)


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


def head_sums(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor,
    bitmap: Tensor | None,
    tiles: Tiles | None = None,
) -> HeadSums:
    """The forward of some rows."""
    tiles = tiles or default_tiles(hidden_ND.dtype)
    num_rows, width = hidden_ND.shape
    vocab_size = weight_VD.shape[0]
    num_tiles = triton.cdiv(vocab_size, tiles.columns)
    device = hidden_ND.device
    logprobs_N, entropy_N, mass_N, normaliser_N = torch.empty(4, num_rows, dtype=torch.float32, device=device)
    sums = torch.empty(num_tiles, 5, num_rows, dtype=torch.float32, device=device)
    target_logits = torch.full((num_rows,), -torch.inf, dtype=torch.float32, device=device)
    result = HeadSums(logprobs_N=logprobs_N, entropy_N=entropy_N, mass_N=mass_N, normaliser_N=normaliser_N)
    if not num_rows:
        return result
    _tile_sums[(triton.cdiv(num_rows, tiles.rows), num_tiles)](
        hidden_ND,
        weight_VD,
        temperature_N,
        targets_N,
        sums if bitmap is None else bitmap,
        sums,
        target_logits,
        num_rows,
        vocab_size,
        width,
        triton.cdiv(vocab_size, 32),
        RESTRICTED=bitmap is not None,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        INNER=tiles.inner,
        OPERAND=operand_type(hidden_ND.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    rows = 32
    _join_tiles[(triton.cdiv(num_rows, rows),)](
        sums,
        target_logits,
        logprobs_N,
        entropy_N,
        mass_N,
        normaliser_N,
        num_rows,
        num_tiles,
        RESTRICTED=bitmap is not None,
        ROWS=rows,
        num_warps=1,
    )
    return result


def logit_gradients(
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    normaliser_N: Tensor,
    upstream_N: Tensor,
    bitmap: Tensor | None,
    columns: tuple[int, int],
) -> Tensor:
    """Gradient of the logits [N, stop − start] of vocabulary columns start … stop − 1, in the hidden states' type.

    `rows` is (hidden_ND, weight_VD, targets_N, temperature_N).
    """
    hidden_ND, weight_VD, targets_N, temperature_N = rows
    start, stop = columns
    tiles = default_tiles(hidden_ND.dtype)
    num_rows, width = hidden_ND.shape
    gradients = torch.empty(num_rows, stop - start, dtype=hidden_ND.dtype, device=hidden_ND.device)
    _logit_gradients[(triton.cdiv(num_rows, tiles.rows), triton.cdiv(stop - start, tiles.columns))](
        hidden_ND,
        weight_VD,
        temperature_N,
        targets_N,
        normaliser_N if bitmap is None else bitmap,
        normaliser_N,
        upstream_N,
        gradients,
        start,
        num_rows,
        weight_VD.shape[0],
        width,
        triton.cdiv(weight_VD.shape[0], 32),
        stop - start,
        RESTRICTED=bitmap is not None,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        INNER=tiles.inner,
        OPERAND=operand_type(hidden_ND.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return gradients


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
        hidden_ND, weight_VD = hidden_ND.contiguous(), weight_VD.contiguous()
        targets_N, temperature_N = targets_N.contiguous(), temperature_N.contiguous()
        parts = []
        for start in range(0, max(1, hidden_ND.shape[0]), ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, hidden_ND.shape[0])
            bitmap = support_bitmap(support, start, stop, weight_VD.shape[0])
            parts.append(
                head_sums(hidden_ND[start:stop], weight_VD, targets_N[start:stop], temperature_N[start:stop], bitmap)
            )
        normaliser_N = torch.cat([part.normaliser_N for part in parts])
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, temperature_N, normaliser_N)
        ctx.support = support
        entropy_N = torch.cat([part.entropy_N for part in parts])
        mass_N = torch.cat([part.mass_N for part in parts])
        ctx.mark_non_differentiable(entropy_N, mass_N)
        return torch.cat([part.logprobs_N for part in parts]), entropy_N, mass_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, temperature_N, normaliser_N = ctx.saved_tensors
        num_rows, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
        grad_hidden = torch.zeros(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device)
        grad_weight_VD = torch.empty_like(weight_VD)
        if not num_rows:
            return grad_hidden.to(hidden_ND.dtype), grad_weight_VD.zero_(), None, None, None
        bitmap = support_bitmap(ctx.support, 0, num_rows, vocab_size)
        rows = (hidden_ND, weight_VD, targets_N, temperature_N)
        for start in range(0, vocab_size, COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, vocab_size)
            part = logit_gradients(rows, normaliser_N, grads[0].contiguous(), bitmap, (start, stop))
            _add_product(grad_hidden, part, weight_VD[start:stop])
            torch.mm(part.T, hidden_ND, out=grad_weight_VD[start:stop])
        return grad_hidden.to(hidden_ND.dtype), grad_weight_VD, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right with a float32 sum."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
