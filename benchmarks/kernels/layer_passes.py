"""What layer.py times: one layer's attention, sparse with its indexer and in both forms of latent attention, and PyTorch's dense attention.

Axes: N query rows, S keys, H heads, C selected keys, I indexer heads; B, T, S of a window.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import samepath.kernels.indexer.triton_index_logits as index_kernels
import samepath.kernels.indexer.triton_selected_logits as selected_kernels
import samepath.kernels.selection.triton_selection as selection_kernels
import samepath.kernels.sparse_attention.triton_joined as attention_kernels
from benchmarks.kernels.measurement import (
    HEADS,
    SCALE,
    SELECTED,
    VALUE_WIDTH,
)
from samepath.kernels.indexer.index_logits import indexer_loss
from samepath.kernels.indexer.triton_fp8 import quantise
from samepath.kernels.rows.head_product import head_product
from samepath.kernels.window import Window
from samepath.kernels.window_attention.window_attention import window_attend

NOPE = 128
"""Channels of a head's key without position, and of its value."""


def quantised(keys_BSJ: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 codes and scales of index keys."""
    codes, scales = quantise(keys_BSJ.flatten(0, 1))
    return codes.view(keys_BSJ.shape), scales.view(keys_BSJ.shape[:2])


def selected_keys(q_BTIK: Tensor, weights_BTI: Tensor, index_keys: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Quantise, score and select for the last rows of each context: (rows of the store [N, C], count [N])."""
    codes_BSJ, scales_BS = index_keys
    (num_sequences, num_rows), num_keys = q_BTIK.shape[:2], codes_BSJ.shape[1]
    ends_T = torch.arange(num_keys - num_rows + 1, num_keys + 1, dtype=torch.int32, device="cuda")
    ends_BT = ends_T.expand(num_sequences, -1).contiguous()
    starts_BT = torch.zeros_like(ends_BT)
    codes, scales = quantise(q_BTIK.flatten(0, 2))
    logits_BTS = index_kernels.index_logits(
        codes.view(q_BTIK.shape),
        codes_BSJ,
        weights_BTI * scales.view(weights_BTI.shape),
        (starts_BT, ends_BT),
        scales_BS,
    )
    places_NC, count_N = selection_kernels.select(
        logits_BTS.flatten(0, 1), starts_BT.flatten(), ends_BT.flatten(), SELECTED
    )
    if num_sequences > 1:
        first_N1 = torch.arange(num_sequences, device="cuda").repeat_interleave(num_rows)[:, None] * num_keys
        places_NC = (places_NC + first_N1).to(torch.int32)
    return places_NC, count_N


def sparse_forward(
    queries: tuple[Tensor, Tensor, Tensor],
    kv_SK: Tensor,
    index_keys: tuple[Tensor, Tensor],
    batch_invariant: bool = True,
) -> Tensor:
    """The layer's forward; queries are (absorbed, indexer's, its head weights)."""
    q_NHK, q_BTIK, weights_BTI = queries
    places_NC, count_N = selected_keys(q_BTIK, weights_BTI, index_keys)
    return attention_kernels.attend(q_NHK, kv_SK, places_NC, count_N, SCALE, VALUE_WIDTH, False, batch_invariant)[0]


def sparse_training(inputs: Sequence[Tensor], upstream_NHV: Tensor) -> object:
    """Forward and backward; inputs are (absorbed queries, keys, indexer's queries, its keys, its head weights)."""
    q_NHK, kv_SK, q_NIK, index_SJ, weights_NI = inputs
    with torch.no_grad():
        places_NC, count_N = selected_keys(q_NIK[None], weights_NI[None], quantised(index_SJ[None]))
    out_NHV, _, mass_NC = attention_kernels.attend(q_NHK, kv_SK, places_NC, count_N, SCALE, VALUE_WIDTH, True, True)
    selected_NC = selected_kernels.selected_index_logits(q_NIK, index_SJ, weights_NI, places_NC)
    loss = indexer_loss(selected_NC, mass_NC, count_N).sum()
    return torch.autograd.grad((out_NHV, loss), inputs, (upstream_NHV, torch.ones_like(loss)))


def absorbed_form(
    q_nope_NHE: Tensor, q_rope_NHE: Tensor, kv_SK: Tensor, key_up_HER: Tensor, positions_NC: Tensor
) -> Tensor:
    """Output before the output matrix, by latents that all heads share."""
    q_NHK = torch.cat([head_product(q_nope_NHE, key_up_HER[:, :NOPE], "torch"), q_rope_NHE], -1)
    count_N = (positions_NC >= 0).sum(1, dtype=torch.int32)
    out_NHR = attention_kernels.attend(q_NHK, kv_SK, positions_NC, count_N, SCALE, VALUE_WIDTH, False, True)[0]
    return head_product(out_NHR, key_up_HER[:, NOPE:].transpose(1, 2), "torch")


def expanded_form(
    q_nope_NHE: Tensor, q_rope_NHE: Tensor, kv_SK: Tensor, key_up_HER: Tensor, positions_NC: Tensor
) -> Tensor:
    """The same with a key and a value for each head."""
    length = kv_SK.shape[0]
    up_SHE = (kv_SK[:, :VALUE_WIDTH] @ key_up_HER.flatten(0, 1).T).view(length, HEADS, 2 * NOPE)
    shared_SHE = kv_SK[:, None, VALUE_WIDTH:].expand(-1, HEADS, -1)
    places = torch.arange(length, device="cuda")[None]
    window = Window(rows_BT=places, ends_BT=places + 1, keys_BS=places, longest=length, whole=True)
    out_BTHV, _ = window_attend(
        torch.cat([q_nope_NHE, q_rope_NHE], -1)[None],
        torch.cat([up_SHE[..., :NOPE], shared_SHE], -1)[None],
        up_SHE[None, ..., NOPE:],
        window,
        positions_NC[None],
        scale=SCALE,
        backend="triton",
    )
    return out_BTHV[0]


def dense_pass(operands: tuple[Tensor, Tensor, Tensor], upstream: Tensor | None, causal: bool) -> object:
    """Dense multi-head attention, with its backward if there is an upstream gradient."""
    out = scaled_dot_product_attention(*operands, is_causal=causal, scale=SCALE)
    return out if upstream is None else torch.autograd.grad(out, operands, upstream)


def dense_decode(q_BH1K: Tensor, k_BHSK: Tensor, v_BHSV: Tensor) -> Tensor:
    """Dense multi-head attention of one query a sequence by the library's products: SDPA's kernels do not cut the keys of one query."""
    scores_BH1S = torch.matmul(q_BH1K, k_BHSK.transpose(2, 3)).float() * SCALE
    return torch.matmul(scores_BH1S.softmax(-1).to(v_BHSV.dtype), v_BHSV)


def latent_decode(q_BHK: Tensor, kv_BSK: Tensor) -> Tensor:
    """Absorbed attention of one query a sequence over all latents, by the library's products."""
    scores_BHS = torch.bmm(q_BHK, kv_BSK.transpose(1, 2)).float() * SCALE
    return torch.bmm(scores_BHS.softmax(-1).to(kv_BSK.dtype), kv_BSK[..., :VALUE_WIDTH])
