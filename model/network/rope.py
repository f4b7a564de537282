"""Rotary position embedding tables and the two layouts the model uses.

Axes: N rows, Q half the rotary width, K rotary width.
"""

import math

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels
from samepath.model.config import ModelConfig
from samepath.model.rope_parameters import RopeParameters


def inverse_frequencies(width: int, rope: RopeParameters) -> Tensor:
    """θ^(−2i/width), float64 [width/2], interpolated by the factor where `rope_type` says so."""
    exponents_Q = torch.arange(0, width, 2, dtype=torch.float64) / width
    kept_Q = rope.rope_theta**-exponents_Q
    match rope.rope_type:
        case "default":
            return kept_Q
        case "linear":
            return kept_Q / rope.factor
        case "llama3":
            return _llama3_frequencies(kept_Q, rope)
        case "yarn":
            return _yarn_frequencies(kept_Q, rope)


def _llama3_frequencies(kept_Q: Tensor, rope: RopeParameters) -> Tensor:
    """Slow rotations are divided by the factor, fast ones kept, with a linear change between the two bounds (Llama 3.1)."""
    rotations_Q = rope.original_max_position_embeddings * kept_Q / (2 * math.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept_share_Q = ((rotations_Q - low) / (high - low)).clamp(0, 1)
    return kept_Q / rope.factor * (1 - kept_share_Q) + kept_Q * kept_share_Q


def _yarn_frequencies(kept_Q: Tensor, rope: RopeParameters) -> Tensor:
    """Slow rotations are divided by the factor, with a ramp over the channels between the two bounds (arXiv:2309.00071 §3.2)."""
    width = 2 * kept_Q.shape[0]

    def dimension_of(rotations: float) -> float:
        return (
            width
            * math.log(rope.original_max_position_embeddings / (rotations * 2 * math.pi))
            / (2 * math.log(rope.rope_theta))
        )

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # One channel wide at least, so to speak: equal bounds would divide by 0.
    span = high - low or 1e-3
    ramp_Q = ((torch.arange(width // 2, dtype=torch.float64) - low) / span).clamp(0, 1)
    return kept_Q / rope.factor * ramp_Q + kept_Q * (1 - ramp_Q)


def rope_table(config: ModelConfig) -> Tensor:
    """cos and sin of every position, float32 `[max_position, 2, Q]`, with the YaRN temperature in them.

    For grouped-query attention both are as wide as what is rotated, `[max_position, 2, 2Q]`, as `grouped_heads` takes them.
    """
    frequencies_Q = inverse_frequencies(config.rope_width, config.rope_parameters)
    angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * frequencies_Q
    cos, sin = angles.cos(), angles.sin()
    if not config.latent_attention:
        cos, sin = torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
    return torch.stack([cos, sin], 1).mul(config.rope_parameters.amplitude).float()


def rotate_interleaved(x_NK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, backend: Backend = "torch") -> Tensor:
    """Rotate pairs (2i, 2i+1) of the first 2Q channels, the others stay: MLA's layout. `x` may have head axes between N and K if cos and sin broadcast.

    A fused backend takes one kernel, with the bits of these operations, and for the gradient the same turning back.
    """
    rotated = _rotate_fused(x_NK, cos_NQ, sin_NQ, backend, interleaved=True)
    if rotated is not None:
        return rotated
    end = 2 * cos_NQ.shape[-1]
    even, odd = x_NK[..., 0:end:2], x_NK[..., 1:end:2]
    rotated = torch.stack([even * cos_NQ - odd * sin_NQ, odd * cos_NQ + even * sin_NQ], -1).flatten(-2)
    return rotated if end == x_NK.shape[-1] else torch.cat([rotated, x_NK[..., end:]], -1)


def rotate_halves(x_NK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, backend: Backend = "torch") -> Tensor:
    """Rotate pairs (i, i + Q) of the first 2Q channels, the others stay: the indexer's layout, otherwise as above."""
    rotated = _rotate_fused(x_NK, cos_NQ, sin_NQ, backend, interleaved=False)
    if rotated is not None:
        return rotated
    half = cos_NQ.shape[-1]
    first, second, rest = x_NK[..., :half], x_NK[..., half : 2 * half], x_NK[..., 2 * half :]
    return torch.cat([first * cos_NQ - second * sin_NQ, second * cos_NQ + first * sin_NQ, rest], -1)


def _rotate_fused(
    x_NK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, backend: Backend, *, interleaved: bool
) -> Tensor | None:
    """`[N, K]` with `[N, Q]`, or `[N, H, K]` with `[N, 1, Q]`; None where the backend has no kernel for it."""
    fused = fused_kernels(backend, "rotate", x_NK, cos_NQ, sin_NQ)
    if fused is None:
        return None
    rotated = fused.rotate(
        x_NK[:, None] if x_NK.ndim == 2 else x_NK,
        cos_NQ if cos_NQ.ndim == 2 else cos_NQ[:, 0],
        sin_NQ if sin_NQ.ndim == 2 else sin_NQ[:, 0],
        interleaved,
    )
    return rotated.view(x_NK.shape)
