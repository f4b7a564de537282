"""Numbers of each (query, head) row that the backward for Hopper reads at every tile (Triton): where it stands, its LSE, Σ dO·O and its end.

Made once, so that the kernels of the gradients copy a line of numbers for each tile of rows instead of working out which rows exist.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width; B, T, S of a window as in `window.py`; M (query, head) rows of
one sequence and key head, padded to whole tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LINE_ROWS = 32
"""Rows of a program."""
NOWHERE = tl.constexpr(1 << 24)
"""End of a row that does not exist: as a float exact, and larger than that of any row."""


@triton.jit
def _row_lines(
    out,
    grad_out,
    lse,
    rows_BT,
    ends_BT,
    places,
    lines,
    num_queries,
    num_padded,
    num_heads,
    shared,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Place in [N·H], LSE in base 2, Σ dO·O and end of each (query, head) row; rows that do not exist have LSE +∞ and the place of row 0."""
    zero = tl.full((), 0, tl.int64)
    group, sequence = tl.program_id(1), zero + tl.program_id(2)
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query = local // shared
    inside = query < num_queries
    end = tl.load(ends_BT + sequence * num_queries + query, mask=inside, other=0).to(tl.int32)
    row = tl.load(rows_BT + sequence * num_queries + query, mask=inside, other=0).to(tl.int64)
    live = end > 0
    place = tl.where(live, row * num_heads + group * shared + local % shared, 0)
    channel = tl.arange(0, WIDTH)
    at = place[:, None] * WIDTH + channel[None, :]
    product = tl.load(out + at, mask=live[:, None], other=0.0).to(tl.float32)
    product *= tl.load(grad_out + at, mask=live[:, None], other=0.0).to(tl.float32)
    target = (sequence * tl.num_programs(1) + group) * num_padded + local
    count = tl.num_programs(2) * tl.num_programs(1) * (zero + num_padded)
    tl.store(places + target, place)
    base_2 = tl.load(lse + place, mask=live, other=float("inf")) * 1.4426950408889634
    tl.store(lines + target, base_2)
    tl.store(lines + count + target, tl.sum(product, 1))
    # A row that does not exist is hidden by its LSE; a large end keeps it from looking like the edge of a mask.
    tl.store(lines + 2 * count + target, tl.where(live, end, NOWHERE).to(tl.float32))


def row_lines(
    saved: tuple[Tensor, Tensor],
    grad_out_NHV: Tensor,
    rows_BT: Tensor,
    ends_BT: Tensor,
    num_groups: int,
    num_padded: int,
) -> tuple[Tensor, Tensor]:
    """(places int64, lines float32 [3, …]), both [B, G, num_padded]; `saved` is output and LSE."""
    (num_sequences, num_queries), num_heads = rows_BT.shape, grad_out_NHV.shape[1]
    shape = (num_sequences, num_groups, num_padded)
    places = torch.empty(shape, dtype=torch.int64, device=rows_BT.device)
    lines = torch.empty(3, *shape, dtype=torch.float32, device=rows_BT.device)
    _row_lines[(num_padded // LINE_ROWS, num_groups, num_sequences)](
        saved[0],
        grad_out_NHV,
        saved[1],
        rows_BT,
        ends_BT,
        places,
        lines,
        num_queries,
        num_padded,
        num_heads,
        num_heads // num_groups,
        WIDTH=grad_out_NHV.shape[2],
        ROWS=LINE_ROWS,
    )
    return places, lines
