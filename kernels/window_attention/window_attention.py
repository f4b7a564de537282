"""Attention over a window's grid, with a key and a value for each head: the expanded form of latent attention, for rows that may depend on
their batch.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width, C selected keys.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import FusedKernels, fused_kernels
from samepath.kernels.window import Window

CHUNK_ELEMENTS = 1 << 24
"""Scores held at once where the attention mass is computed without a kernel (64 MiB in float32)."""


def window_attend(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHV: Tensor,
    window: Window,
    positions_BTC: Tensor | None,
    *,
    scale: float,
    backend: Backend,
    with_mass: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(scale · q·k) · v over the selected keys of each query, with gradients for q, k and v.

    Args:
        window: which keys each query may see. positions_BTC: int32 positions of the selected ones, −1 behind the last; None selects all.
        with_mass: return the head-summed probability of each selected key (needs positions), without gradient.

    Returns:
        (out_BTHV, mass_BTC if asked for). Queries of the padding give anything finite. Raises ValueError on shapes that do not fit.
    """
    if (
        q_BTHK.shape[:2] != window.rows_BT.shape
        or k_BSHK.shape[:3] != v_BSHV.shape[:3]
        or q_BTHK.shape[2:] != k_BSHK.shape[2:]
    ):
        raise ValueError(
            f"window_attend needs q [B,T,H,K], k [B,S,H,K], v [B,S,H,V] and a window of B × T queries; got {tuple(q_BTHK.shape)}, "
            f"{tuple(k_BSHK.shape)}, {tuple(v_BSHV.shape)}, {tuple(window.rows_BT.shape)}"
        )
    if with_mass and positions_BTC is None:
        raise ValueError("window_attend gives the mass of selected keys: it needs their positions, got None")
    every_key = positions_BTC is None or window.longest <= positions_BTC.shape[2]
    selected_BTC = None if every_key else positions_BTC
    fused = fused_kernels(backend, "window_attend", q_BTHK, k_BSHK, v_BSHV, window.ends_BT)
    attend = _torch_attend if fused is None else partial(_fused_attend, fused)
    out_BTHV, mass_BTS = attend(q_BTHK, k_BSHK, v_BSHV, window, selected_BTC, scale, with_mass)
    if mass_BTS is None or positions_BTC is None:
        return out_BTHV, None
    return out_BTHV, mass_BTS.gather(2, positions_BTC.clamp(min=0).long()) * (positions_BTC >= 0)


def _torch_attend(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHV: Tensor,
    window: Window,
    selected_BTC: Tensor | None,
    scale: float,
    with_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    """(out_BTHV, mass [B, T, S] if asked for), by the library."""
    seen_BTS = seen_keys(window, selected_BTC, k_BSHK.shape[1])
    causal = window.whole and selected_BTC is None
    out_BTHV = _library_attend(q_BTHK, k_BSHK, v_BSHV, None if causal else seen_BTS, scale)
    return out_BTHV, _mass(q_BTHK, k_BSHK, seen_BTS, scale) if with_mass else None


def _fused_attend(
    kernels: FusedKernels,
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHV: Tensor,
    window: Window,
    selected_BTC: Tensor | None,
    scale: float,
    with_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    """The same by the library where whole sequences see all their keys, else by the kernel that knows ends and masks."""
    seen_BTS = None if selected_BTC is None else selected_keys(selected_BTC, k_BSHK.shape[1])
    operands = (q_BTHK, k_BSHK, v_BSHV)
    if not window.whole or seen_BTS is not None:
        out_BTHV, lse_BHT = kernels.window_attend(*operands, window.ends_BT, seen_BTS, scale)
    else:
        out_BTHV = _library_attend(*operands, None, scale)
        if with_mass:
            # The library keeps its LSE to itself.
            detached = (q_BTHK.detach(), k_BSHK.detach(), v_BSHV.detach())
            _, lse_BHT = kernels.window_attend(*detached, window.ends_BT, None, scale)
    if not with_mass:
        return out_BTHV, None
    return out_BTHV, kernels.window_mass(q_BTHK, k_BSHK, window.ends_BT, seen_BTS, lse_BHT, scale)


def seen_keys(window: Window, positions_BTC: Tensor | None, num_keys: int) -> Tensor:
    """bool [B, T, S], True for the keys that count; a query of the padding sees its first key: not every kernel takes a row without any."""
    places_S = torch.arange(num_keys, device=window.ends_BT.device)
    seen_BTS = places_S < window.ends_BT[..., None]
    if positions_BTC is not None:
        seen_BTS &= selected_keys(positions_BTC, num_keys)
    seen_BTS[..., 0] |= window.ends_BT == 0
    return seen_BTS


def selected_keys(positions_BTC: Tensor, num_keys: int) -> Tensor:
    """bool [B, T, S], True at each row's positions."""
    # Column 0 takes the −1 tail and is cut off again.
    kept = torch.zeros(*positions_BTC.shape[:2], num_keys + 1, dtype=torch.bool, device=positions_BTC.device)
    return kept.scatter_(2, positions_BTC.long() + 1, True)[..., 1:]


def _library_attend(q_BTHK: Tensor, k_BSHK: Tensor, v_BSHV: Tensor, seen_BTS: Tensor | None, scale: float) -> Tensor:
    """The library's kernel; without a mask query t sees the keys up to t."""
    out_BHTV = scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSHK.transpose(1, 2),
        v_BSHV.transpose(1, 2),
        attn_mask=None if seen_BTS is None else seen_BTS[:, None],
        is_causal=seen_BTS is None,
        scale=scale,
    )
    return out_BHTV.transpose(1, 2)


@torch.no_grad()
def _mass(q_BTHK: Tensor, k_BSHK: Tensor, seen_BTS: Tensor, scale: float) -> Tensor:
    """[B, T, S] probabilities summed over heads, some queries at a time."""
    mass_BTS = q_BTHK.new_empty(seen_BTS.shape)
    step = max(1, CHUNK_ELEMENTS // (q_BTHK.shape[0] * q_BTHK.shape[2] * k_BSHK.shape[1]))
    for start in range(0, q_BTHK.shape[1], step):
        part = slice(start, start + step)
        scores = torch.einsum("bthk,bshk->bths", q_BTHK[:, part], k_BSHK) * scale
        mass_BTS[:, part] = scores.masked_fill(~seen_BTS[:, part, None], -torch.inf).softmax(-1).sum(2)
    return mass_BTS
