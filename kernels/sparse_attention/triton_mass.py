"""Head-summed attention probability of each selected key from the forward's LSE (Triton), for the indexer's loss.

The backward gives the same mass without an extra product; this kernel serves callers that need it before.

Axes: N query rows, S key rows, H heads, K key width, C selected keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.row_parts import LOG2_E, score_rows, split_width
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_forward import Tiles, default_tiles, fits_hopper, row_launches
from samepath.kernels.sparse_attention.triton_softmax import load_heads


@triton.jit
def _attention_mass(
    q,
    kv,
    indices,
    counts,
    lse,
    mass,
    scale,
    num_heads,
    num_selected,
    KEY: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    live_head, q_rows, q_main, q_rest = load_heads(q, row, head, num_heads, KEY, OPERAND)
    lse_H = tl.load(lse + q_rows, mask=live_head, other=float("inf")) * LOG2_E
    count = tl.load(counts + row)
    rows_of = indices + row * num_selected
    key_rows = tl.load(rows_of + tl.arange(0, KEYS), mask=tl.arange(0, KEYS) < count, other=0)
    for first in range(0, count, KEYS):
        slots = first + tl.arange(0, KEYS)
        live = slots < count
        scores, _, _ = score_rows(q_main, q_rest, kv, key_rows.to(tl.int64), live, KEY.total, KEY, OPERAND, True)
        key_rows = tl.load(rows_of + slots + KEYS, mask=slots + KEYS < count, other=0)
        probs = tl.exp2(scores * (scale * LOG2_E) - lse_H[None, :])
        place = ((zero + tl.program_id(0)) * tl.num_programs(1) + row) * num_selected + slots
        tl.store(mass + place, tl.sum(probs, 1), mask=live)


def attention_mass(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    lse_NH: Tensor,
    scale: float,
    tiles: Tiles | None = None,
) -> Tensor:
    """float32 [N, C] probability of each selected key, summed over heads in a fixed order; 0 in the tail."""
    num_rows, num_heads, key_width = q_NHK.shape
    launches = row_launches(num_rows)
    if len(launches) > 1:
        return torch.cat(
            [
                attention_mass(q_NHK[part], kv_SK, indices_NC[part], count_N[part], lse_NH[part], scale, tiles)
                for part in launches
            ]
        )
    if tiles is None and num_rows and fits_hopper(q_NHK, 512):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.sparse_attention.hopper_mass import attention_mass as hopper_attention_mass

        result: Tensor = hopper_attention_mass(q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale)
        return result
    tiles = tiles or default_tiles(q_NHK)
    heads = max(16, min(tiles.heads, triton.next_power_of_2(num_heads)))
    blocks = triton.cdiv(num_heads, heads)
    mass = torch.zeros(blocks, num_rows, indices_NC.shape[1], dtype=torch.float32, device=q_NHK.device)
    if mass.numel():
        _attention_mass[(blocks, num_rows)](
            q_NHK,
            kv_SK,
            indices_NC,
            count_N,
            lse_NH,
            mass,
            scale,
            num_heads,
            indices_NC.shape[1],
            KEY=split_width(key_width),
            HEADS=heads,
            KEYS=tiles.keys,
            OPERAND=operand_type(q_NHK.dtype),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return mass.sum(0)
