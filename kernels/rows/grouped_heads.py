"""From the joint product of grouped-query attention to queries and key rows: norms of each head, rotation by position, and the rows' layout.

Axes: N rows, X heads of the product (H query heads, then G key heads, then G value heads), K head width, R rotated channels of it, W = 2K.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm as torch_rms_norm

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorms:
    """RMS norms of each head's channels alone, as Qwen3 has them."""

    query_K: Tensor
    """Weight of all query heads."""
    key_K: Tensor
    """Weight of all key heads."""
    eps: float
    """Added to the mean square."""


def grouped_heads(
    qkv_NXK: Tensor, norms: HeadNorms | None, rope_N2R: Tensor, num_heads: int, backend: Backend
) -> tuple[Tensor, Tensor]:
    """(queries [N, H, K], key rows [G, N, W] of key and value), normed if so asked, and rotated by position; with gradients.

    Args:
        rope_N2R: cosines repeated, and sines (−sin, sin), of the first R channels of a head; the others have no position.

    A fused backend takes one kernel, and one for the gradients; up to heads of 256 channels it has the bits of the separate operations on a GPU.
    """
    num_groups = (qkv_NXK.shape[1] - num_heads) // 2
    if qkv_NXK.ndim != 3 or num_groups < 1 or num_heads + 2 * num_groups != qkv_NXK.shape[1]:
        raise ValueError(
            f"grouped_heads needs {num_heads} query heads and as many key as value heads; got {tuple(qkv_NXK.shape)}"
        )
    fused = fused_kernels(backend, "grouped_heads", qkv_NXK, rope_N2R)
    if fused is not None:
        return fused.grouped_heads(qkv_NXK, norms, rope_N2R, num_heads)
    qk_NXK, v_NGK = qkv_NXK[:, : num_heads + num_groups], qkv_NXK[:, num_heads + num_groups :]
    if norms is not None:
        weights = norms.query_K.expand(num_heads, -1), norms.key_K.expand(num_groups, -1)
        qk_NXK = torch_rms_norm(qk_NXK, (qk_NXK.shape[2],), None, norms.eps) * torch.cat(weights)
    rotated = rotate_whole(qk_NXK[..., : rope_N2R.shape[2]], rope_N2R[:, :1], rope_N2R[:, 1:])
    if rope_N2R.shape[2] < qk_NXK.shape[2]:
        rotated = torch.cat([rotated, qk_NXK[..., rope_N2R.shape[2] :]], -1)
    q_NHK, k_NGK = rotated[:, :num_heads], rotated[:, num_heads:]
    return q_NHK, torch.cat([k_NGK.transpose(0, 1), v_NGK.transpose(0, 1)], -1)


def rotate_whole(x_NXR: Tensor, cos_N1R: Tensor, sin_N1R: Tensor) -> Tensor:
    """Rotate pairs (i, i + R/2), with cosines repeated and sines (−sin, sin) over the whole width: the bits of halves in fewer operations."""
    return x_NXR * cos_N1R + x_NXR.roll(x_NXR.shape[-1] // 2, -1) * sin_N1R
