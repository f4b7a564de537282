"""Attention of foreign models over packed sequences, registered once with transformers' AttentionInterface.

Axes: N rows, B sequences of a window, T query rows, S keys, H query heads, G key heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from samepath.kernels.window import Window
from samepath.model.transformers.packed_pass import PassError, current_pass

ATTENTION_NAME = "samepath_packed"
_NOT_APPLIED = ("softcap", "s_aux", "position_bias", "head_mask", "alibi", "indices")
"""Arguments of other models' attention that change its result and are not computed here."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`[1, H, N, K]` queries over the rows that the current pass's plan allows; returns `[1, N, H, V]`.

    Raises PassError outside of a pass, or for a model whose attention does more than scaled dot products under a mask.
    """
    state = current_pass()
    if state is None:
        raise PassError("packed attention runs only inside TransformersPolicy.forward")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    changes = [name for name in _NOT_APPLIED if kwargs.get(name) is not None]
    if changes or kwargs.get("is_causal") is False:
        raise PassError(
            f"{type(module).__name__} needs {', '.join(changes) or 'bidirectional attention'}, which packed attention lacks"
        )
    sliding = kwargs.get("sliding_window")
    if sliding is None and _slides(module, layer):
        raise PassError(
            f"{type(module).__name__} of layer {layer} slides by its mask alone, which packed attention never sees"
        )
    state.attended.add(layer)
    q_NHK, k_NGK, v_NGV = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    outputs = [
        _attend_window(q_NHK, k_NGK, v_NGV, window, scaling, sliding).flatten(0, 1) for window in state.plan.windows
    ]
    nothing = v_NGV.new_zeros(1, query.shape[1], value.shape[-1])
    return torch.cat([*outputs, nothing])[state.plan.source_N][None], None


def _slides(module: nn.Module, layer: int) -> bool:
    config = module.config
    types = getattr(config, "layer_types", None)
    return bool(types[layer] == "sliding_attention" if types else getattr(config, "sliding_window", None))


def _attend_window(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGV: Tensor,
    window: Window,
    scaling: float | None,
    sliding: int | None,
) -> Tensor:
    """`[B, T, H, V]`. A padding query sees its first key: not every kernel takes a row without any."""
    places_S = torch.arange(window.keys_BS.shape[1], device=q_NHK.device)
    ends_BT1 = window.ends_BT[..., None]
    seen_BTS = places_S < ends_BT1
    if sliding is not None:
        seen_BTS &= places_S >= ends_BT1 - sliding
    seen_BTS[..., 0] |= window.ends_BT == 0
    out_BHTV = scaled_dot_product_attention(
        q_NHK[window.rows_BT].transpose(1, 2),
        k_NGK[window.keys_BS].transpose(1, 2),
        v_NGV[window.keys_BS].transpose(1, 2),
        attn_mask=seen_BTS[:, None],
        scale=scaling,
        enable_gqa=q_NHK.shape[1] != k_NGK.shape[1],
    )
    return out_BHTV.transpose(1, 2)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
