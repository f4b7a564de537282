"""RMS norm with its gradients, alone or together with the residual sum that it normalises (Triton).

A row is read once forward and once backward; the backward adds the residual's gradient where it writes its own. Weight gradients are sums over the
batch: each program adds its rows in order, and the programs' sums are added in order. Axes: N rows, D width, P programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting

MAX_PROGRAMS = 528
"""Of a backward pass: four a multiprocessor of an H200, each with rows that follow each other."""


@triton.jit
def _rms_norm(x, added, weight, total_rows, out, roots, x_row, width, eps, ADDED: tl.constexpr, WIDTH: tl.constexpr):
    """One row: s = x + added if there is something to add, y = s·r·w with r = (mean s² + eps)^-½; s and r are kept."""
    number = tl.full((), 0, tl.int64) + tl.program_id(0)
    row = number * width
    x += number * x_row
    total = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, width, WIDTH):
        channel = first + tl.arange(0, WIDTH)
        value = tl.load(x + channel, mask=channel < width, other=0.0).to(tl.float32)
        if ADDED:
            value += tl.load(added + row + channel, mask=channel < width, other=0.0).to(tl.float32)
            value = value.to(out.dtype.element_ty).to(tl.float32)
        total += value * value
    root = 1.0 / tl.sqrt(tl.sum(total, 0) / width + eps)
    tl.store(roots + tl.program_id(0), root)
    for first in range(0, width, WIDTH):
        channel = first + tl.arange(0, WIDTH)
        value = tl.load(x + channel, mask=channel < width, other=0.0).to(tl.float32)
        if ADDED:
            value += tl.load(added + row + channel, mask=channel < width, other=0.0).to(tl.float32)
            value = value.to(out.dtype.element_ty).to(tl.float32)
            tl.store(total_rows + row + channel, value.to(out.dtype.element_ty), mask=channel < width)
        scaled = value * root * tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
        tl.store(out + row + channel, scaled.to(out.dtype.element_ty), mask=channel < width)


@triton.jit(do_not_specialize=["num_rows", "rows_each"])
def _rms_norm_backward(
    x,
    weight,
    roots,
    grad_out,
    grad_total,
    grad_x,
    grad_weights,
    num_rows,
    rows_each,
    x_row,
    width,
    HAS_TOTAL: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """dx of some rows, and their part of the weight's gradient: d(x·r) = r·(s − n·mean(s·n)) with n = x·r and s = dy·w."""
    channel = tl.arange(0, WIDTH)[None, :]
    scale = tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
    parts = tl.zeros((ROWS, WIDTH), tl.float32)
    start = tl.program_id(0) * rows_each
    for first in range(start, tl.minimum(start + rows_each, num_rows), ROWS):
        row = (first + tl.arange(0, ROWS))[:, None]
        keep = (row < num_rows) & (channel < width)
        place = row.to(tl.int64) * width + channel
        root = tl.load(roots + row, mask=row < num_rows, other=0.0)
        value = tl.load(x + row.to(tl.int64) * x_row + channel, mask=keep, other=0.0).to(tl.float32)
        upstream = tl.load(grad_out + place, mask=keep, other=0.0).to(tl.float32)
        normed = value * root
        parts += upstream * normed
        scaled = upstream * scale
        share = tl.sum(scaled * normed, 1)[:, None] / width
        result = root * (scaled - normed * share)
        if HAS_TOTAL:
            result += tl.load(grad_total + place, mask=keep, other=0.0).to(tl.float32)
        tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask=keep)
    column = tl.arange(0, WIDTH)
    tl.store(grad_weights + tl.program_id(0) * width + column, tl.sum(parts, 0), mask=column < width)


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight, with gradients."""
    out_ND: Tensor = _RmsNorm.apply(x_ND, weight_D, eps)
    return out_ND


def add_norm(x_ND: Tensor, added_ND: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(s = x + added, or x itself, and its norm), with gradients; what flows back through both is added in the norm's backward."""
    total_ND, out_ND = _AddNorm.apply(x_ND, added_ND, weight_D, eps)
    return total_ND, out_ND


class _RmsNorm(torch.autograd.Function):
    """Keeps x and one root a row."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_ND, _, out_ND, root_N = _normed(x_ND, None, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, root_N)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx.saved_tensors, grads[0], None), None


class _AddNorm(torch.autograd.Function):
    """Keeps the sum and one root a row."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, added_ND: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.adds = added_ND is not None
        kept_ND, total_ND, out_ND, root_N = _normed(x_ND, added_ND, weight_D, eps)
        ctx.save_for_backward(kept_ND if total_ND is None else total_ND, weight_D, root_N)
        return x_ND if total_ND is None else total_ND, out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_total_ND, grad_out_ND = grads
        if grad_out_ND is None:
            return grad_total_ND, grad_total_ND if ctx.adds else None, None, None
        grad_ND, grad_weight_D = _gradients(ctx.saved_tensors, grad_out_ND, grad_total_ND)
        return grad_ND, grad_ND if ctx.adds else None, grad_weight_D, None


def _normed(
    x_ND: Tensor, added_ND: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(x with dense rows, x + added if there is something to add, the norm, the root of each row float32 [N])."""
    num_rows, width = x_ND.shape
    aligned = x_ND.stride(0) % 16 == 0 and width % 16 == 0 and x_ND.data_ptr() % 16 == 0
    if x_ND.stride(1) != 1 or not aligned:
        # The compiler chooses the order of a row's sum by what it knows of alignment, so a part of wider rows is read in place only where
        # that is what it would know of a copy.
        x_ND = x_ND.contiguous()
    out_ND = torch.empty(num_rows, width, dtype=x_ND.dtype, device=x_ND.device)
    root_N = torch.empty(num_rows, dtype=torch.float32, device=x_ND.device)
    total_ND = None if added_ND is None else torch.empty_like(out_ND)
    if num_rows:
        _rms_norm[(num_rows,)](
            x_ND,
            x_ND if added_ND is None else added_ND.contiguous(),
            weight_D.contiguous(),
            out_ND if total_ND is None else total_ND,
            out_ND,
            root_N,
            x_ND.stride(0),
            width,
            eps,
            ADDED=added_ND is not None,
            WIDTH=min(4096, triton.next_power_of_2(width)),
        )
    return x_ND, total_ND, out_ND, root_N


def _gradients(
    saved: tuple[Tensor, Tensor, Tensor], grad_out_ND: Tensor, grad_total_ND: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(gradient of the rows, with what flows past the norm in it, gradient of the weight)."""
    x_ND, weight_D, root_N = saved
    num_rows, width = x_ND.shape
    grad_x_ND = torch.empty(num_rows, width, dtype=x_ND.dtype, device=x_ND.device)
    block = triton.next_power_of_2(width)
    # By the width alone, so that a row's bits do not depend on its batch.
    rows = 1 if interpreting() else max(1, 2048 // block)
    rows_each = triton.cdiv(triton.cdiv(num_rows, MAX_PROGRAMS), rows) * rows
    programs = triton.cdiv(num_rows, rows_each) if num_rows else 0
    part_PD = torch.empty(programs, width, dtype=torch.float32, device=x_ND.device)
    if programs:
        _rms_norm_backward[(programs,)](
            x_ND,
            weight_D.contiguous(),
            root_N,
            grad_out_ND.contiguous(),
            grad_out_ND if grad_total_ND is None else grad_total_ND.contiguous(),
            grad_x_ND,
            part_PD,
            num_rows,
            rows_each,
            x_ND.stride(0),
            width,
            HAS_TOTAL=grad_total_ND is not None,
            ROWS=rows,
            WIDTH=block,
            num_warps=max(4, min(16, block // 512)),
        )
    return grad_x_ND, part_PD.sum(0).to(weight_D.dtype)
