"""Head-summed attention probability of every key of a window with a key for each head (Triton), from the forward's LSE.

Bound by the products, a second time those of the forward. A program keeps one tile of (query, key) pairs and goes through the heads, so that memory
holds [T, S] and never [T, S, H].

Axes: B sequences, T query rows of each, S keys of each, H heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.row_parts import LOG2_E
from samepath.kernels.window_attention.triton_bits import mask_bits
from samepath.kernels.window_attention.triton_grid import (
    Grid,
    WindowTiles,
    form,
    head_main,
    head_rest,
    key_sources,
    sizes,
    small_tiles,
    window_rows,
)


@triton.jit
def _window_mass(
    q,
    q_rest,
    k,
    k_rest,
    ends,
    words,
    lse,
    mass,
    scale,
    sizes,
    FORM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Probabilities of one tile of pairs, head after head."""
    num_queries, num_keys, num_heads, num_words = sizes
    KEY: tl.constexpr = FORM.keys
    sequence = tl.program_id(2)
    zero = tl.full((), 0, tl.int64)
    rows = window_rows(sequence, tl.program_id(0) * QUERIES, num_queries, QUERIES)
    place, live, row, _ = rows
    end = tl.load(ends + row, mask=live, other=0)
    first = tl.program_id(1) * KEYS
    key_rows = window_rows(sequence, first, num_keys, KEYS)
    key, inside, _, _ = key_rows
    stride = num_heads * KEY.total
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    factor = scale * LOG2_E
    for head in range(tl.where(tl.max(end, 0) > first, num_heads, 0)):
        q_main = head_main(q, head, rows, stride, KEY.total, KEY, FORM)
        k_main = head_main(k, head, key_rows, stride, KEY.total, KEY, FORM)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if KEY.rest:
            q_last = head_rest(q_rest, head, rows, stride, KEY.total, KEY, FORM)
            k_last = head_rest(k_rest, head, key_rows, stride, KEY.total, KEY, FORM)
            scores = tl.dot(q_last, tl.trans(k_last), scores, input_precision="ieee")
        logs = tl.load(lse + (zero + sequence * num_heads + head) * num_queries + place, mask=live, other=float("inf"))
        total += tl.exp2(scores * factor - logs[:, None])
    keep = key[None, :] < end[:, None]
    if FORM.masked:
        keep = keep & mask_bits(words, row, num_words, live, first, KEYS)
    target = mass + row[:, None] * num_keys + key[None, :]
    tl.store(target, tl.where(keep, total, 0.0), mask=live[:, None] & inside[None, :])


def window_mass(grid: Grid, lse_BHT: Tensor, tiles: WindowTiles | None = None) -> Tensor:
    """float32 [B, T, S] probabilities summed over heads, 0 for keys that do not count."""
    num_queries, num_keys, num_heads, *_, num_words = sizes(grid, grid.words_BTW)
    num_sequences = grid.q_BTHK.shape[0]
    tiles = tiles or small_tiles(grid) or WindowTiles(num_stages=3)
    mass_BTS = torch.empty(num_sequences, num_queries, num_keys, dtype=torch.float32, device=lse_BHT.device)
    _window_mass[(triton.cdiv(num_queries, tiles.queries), triton.cdiv(num_keys, tiles.keys), num_sequences)](
        *key_sources(grid, tiles),
        grid.ends_BT,
        grid.words_BTW,
        lse_BHT,
        mass_BTS,
        grid.scale,
        (num_queries, num_keys, num_heads, num_words),
        FORM=form(grid),
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return mass_BTS
