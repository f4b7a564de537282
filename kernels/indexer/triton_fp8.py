"""Index logits in FP8 (e4m3): rows are rotated, so that no channel stands out, and quantised with one power-of-two scale each (Triton).

Bound by the bytes of the rows, each read once and written at half its width.

Axes: B sequences of a window, T query rows of each, S keys of each, I indexer heads, K index head width, N rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.indexer.triton_index_logits import Tiles, index_logits

FP8_MAX = 448.0
"""Largest finite e4m3 value."""

FP8_GROUP = 128
"""Channels that share one power-of-two scale."""


@triton.jit
def _quantise_rows(x, quantised, scales, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, MAX: tl.constexpr):
    row = (tl.full((), 0, tl.int64) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    live = row < num_rows
    place = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    values = tl.load(x + place, mask=live[:, None], other=0.0).to(tl.float32)
    # One butterfly a bit of the channel number: after all of them each channel holds ± sums of all channels, the Walsh–Hadamard transform.
    HALF: tl.constexpr = WIDTH // 2
    span = 1
    while span < WIDTH:
        pairs = tl.reshape(values, (ROWS, HALF, 2))
        first, second = tl.split(pairs)
        # Sums in front, differences behind: the next bit moves to the end, so log2(WIDTH) rounds visit every bit once.
        values = tl.reshape(tl.trans(tl.join(first + second, first - second), (0, 2, 1)), (ROWS, WIDTH))
        span *= 2
    values = values * (WIDTH**-0.5)
    largest = tl.max(tl.abs(values), 1)
    # Smallest power of two with max/scale ≤ MAX: exponent of max/MAX rounded up, exact in the float's bits.
    ratio = tl.maximum(largest, 1e-30) / MAX
    bits = ratio.to(tl.int32, bitcast=True)
    exponent = (bits + 0x7FFFFF) & 0x7F800000
    scale = exponent.to(tl.float32, bitcast=True)
    tl.store(scales + row, scale, mask=live)
    tl.store(quantised + place, (values / scale[:, None]).to(quantised.dtype.element_ty), mask=live[:, None])


def quantise(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(float8_e4m3fn [N, K], float32 scale [N]): orthonormal Hadamard rotation of each row, then one power-of-two scale a row.

    Raises ValueError unless the width is a power of two of at most 128.
    """
    num_rows, width = x_NK.shape
    if width & (width - 1) or not 2 <= width <= FP8_GROUP:
        raise ValueError(f"FP8 quantisation needs a width that is a power of two up to {FP8_GROUP}; got {width}")
    # The interpreter truncates where the GPU rounds to nearest, so there the last step is left to torch.
    code = torch.float32 if interpreting() else torch.float8_e4m3fn
    quantised_NK = torch.empty(num_rows, width, dtype=code, device=x_NK.device)
    scales_N = torch.empty(num_rows, dtype=torch.float32, device=x_NK.device)
    rows = 16
    if num_rows:
        _quantise_rows[(triton.cdiv(num_rows, rows),)](
            x_NK.contiguous(), quantised_NK, scales_N, num_rows, WIDTH=width, ROWS=rows, MAX=FP8_MAX, num_warps=4
        )
    return quantised_NK.to(torch.float8_e4m3fn), scales_N


def index_logits_fp8(
    q_BTIK: Tensor,
    k_BSK: Tensor,
    weights_BTI: Tensor,
    bounds_BT: tuple[Tensor, Tensor] | None = None,
    tiles: Tiles | None = None,
    exact: bool = False,
) -> Tensor:
    """Index logits of rotated and quantised queries and keys; the queries' scales fold into the weights.

    Hopper's FP8 tensor cores add the products with about 14 bits; `exact` multiplies the same numbers in bfloat16, which holds them all.
    """
    q8, q_scales = quantise(q_BTIK.flatten(0, 2))
    k8, k_scales = quantise(k_BSK.flatten(0, 1))
    weights_BTI = weights_BTI.float() * q_scales.view(weights_BTI.shape)
    if exact:
        q8, k8 = q8.to(torch.bfloat16), k8.to(torch.bfloat16)
    return index_logits(
        q8.view(q_BTIK.shape),
        k8.view(k_BSK.shape),
        weights_BTI,
        bounds_BT,
        k_scales.view(k_BSK.shape[:2]),
        tiles,
    )
