"""The operations of the `triton` backend. The operation of the same name checks shapes and devices before it calls one of these.

This file imports Triton; `kernels/gpu/loading.py` imports it late, and no other file does.
"""

import samepath.kernels.dense_attention.triton_joined as dense_attention
import samepath.kernels.experts.triton_choice as triton_choice
import samepath.kernels.experts.triton_gates as triton_gates
import samepath.kernels.experts.triton_product as triton_product
import samepath.kernels.experts.triton_rows as triton_rows
import samepath.kernels.head.triton_candidates as triton_candidates
import samepath.kernels.head.triton_logprob as triton_logprob
import samepath.kernels.indexer.triton_dense_indexer as triton_dense_indexer
import samepath.kernels.indexer.triton_index_logits as triton_index_logits
import samepath.kernels.indexer.triton_selected_logits as triton_selected_logits
import samepath.kernels.rows.triton_dense_rows as triton_dense_rows
import samepath.kernels.rows.triton_gated_unit as triton_gated_unit
import samepath.kernels.rows.triton_grouped_heads as triton_grouped_heads
import samepath.kernels.rows.triton_head_product as triton_head_product
import samepath.kernels.rows.triton_rms_norm as triton_rms_norm
import samepath.kernels.rows.triton_rotary as triton_rotary
import samepath.kernels.selection.triton_selected_keys as triton_selected_keys
import samepath.kernels.selection.triton_selection as triton_selection
import samepath.kernels.sparse_attention.triton_joined as sparse_attention
import samepath.kernels.window_attention.triton_joined as window_attention


class TritonKernels:
    """A table: another backend with kernels of its own has the same names and the same arguments."""

    select = staticmethod(triton_selection.select)
    key_rows = staticmethod(triton_selected_keys.key_rows)
    selection_fingerprint = staticmethod(triton_selected_keys.selection_fingerprint)

    index_logits = staticmethod(triton_index_logits.index_logits)
    cached_index_logits = staticmethod(triton_index_logits.cached_index_logits)
    selected_index_logits = staticmethod(triton_selected_logits.selected_index_logits)
    dense_indexer_loss = staticmethod(triton_dense_indexer.dense_indexer_loss)

    attend = staticmethod(sparse_attention.attend)
    dense_attend = staticmethod(dense_attention.attend)
    window_attend = staticmethod(window_attention.window_attend)
    window_mass = staticmethod(window_attention.head_mass)

    choose_experts = staticmethod(triton_choice.choose)
    choose_with_gates = staticmethod(triton_gates.choose_with_gates)
    gate_weights = staticmethod(triton_gates.gate_weights)
    expert_product = staticmethod(triton_product.expert_product)
    gated_sum = staticmethod(triton_rows.gated_sum)

    head_logprobs = staticmethod(triton_logprob.head_logprobs)
    row_logprobs = staticmethod(triton_logprob.row_logprobs)
    truncate = staticmethod(triton_candidates.truncate)

    linear = staticmethod(triton_dense_rows.linear)
    rms_norm = staticmethod(triton_rms_norm.rms_norm)
    add_norm = staticmethod(triton_rms_norm.add_norm)
    swiglu = staticmethod(triton_gated_unit.swiglu)
    grouped_heads = staticmethod(triton_grouped_heads.grouped_heads)
    head_product = staticmethod(triton_head_product.head_product)
    rotate = staticmethod(triton_rotary.rotate)
