"""Gradients of sparse attention for Hopper at the published widths from P and dS: two chains of plain products (Gluon), launched here.

Axes: N query rows, S key rows, H heads (padded), K key width, V value width, C selected keys (padded to tiles), P pairs of a row chunk.
"""

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from samepath.kernels.sparse_attention.hopper_pair_gradients import HEADS, pair_gradients
from samepath.kernels.sparse_attention.hopper_query_gradients import KEYS, query_gradients
from samepath.kernels.sparse_attention.hopper_ring import head_blocks
from samepath.kernels.sparse_attention.hopper_scores import attention_scores


def backward_rows(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    lse_NH: Tensor,
    scale: float,
    grad_out_NHV: Tensor,
    delta_NH: Tensor,
    grad_q_NHK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write `grad_q_NHK`; return (pairs [blocks · N · C, K] with renamed channels, mass of each block of heads [blocks, N, C])."""
    num_rows, num_heads, key_width = q_NHK.shape
    num_selected = indices_NC.shape[1]
    programs, blocks = head_blocks(num_heads)
    probs, grads = attention_scores(q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale, grad_out_NHV, delta_NH)
    mass = torch.zeros(programs, num_rows, num_selected, dtype=torch.float32, device=kv_SK.device)
    pairs = torch.empty(mass.numel(), key_width, dtype=kv_SK.dtype, device=kv_SK.device)
    sizes = (num_heads, num_selected, probs.shape[1])
    grid = (2, num_rows, programs)
    rows = blocks * HEADS.value
    query_gradients[grid](
        kv_SK,
        indices_NC,
        count_N,
        _tensor_map(grads, rows),
        grad_q_NHK,
        *sizes,
        ROWS=rows,
        STAGES=4,
        num_warps=4 * blocks,
    )
    maps = (_tensor_map(probs, HEADS.value), _tensor_map(grads, HEADS.value))
    pair_gradients[grid](q_NHK, grad_out_NHV, count_N, *maps, pairs, mass, *sizes, BLOCKS=blocks, num_warps=4)
    return pairs, mass


def _tensor_map(tensor: Tensor, rows: int) -> TensorDescriptor:
    """For copies of so many heads of one tile of P or dS."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor.from_tensor(tensor.view(-1, KEYS.value), [rows, KEYS.value], layout)
