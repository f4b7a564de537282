"""The lightning indexer: which keys each query attends to, and the loss that it learns from (arXiv:2512.02556 §2).

Latent attention gives it the query latent, grouped-query attention the layer's input; what it selects is shared by all heads.
Axes: N rows, D width, I indexer heads, J indexer width, C selected keys, Q half the rotary width; B, T, S of a window as in `window.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from samepath.kernels.backend import Backend
from samepath.kernels.indexer.grouped_indexer import GroupedTeacher, captured_mass
from samepath.kernels.indexer.index_logits import cached_index_logits, indexer_loss, selected_index_logits
from samepath.kernels.rows.dense_rows import linear
from samepath.kernels.selection.selection import key_rows, select, select_all, selection_fingerprint
from samepath.kernels.window import AttentionPlan, Window
from samepath.model.config import ModelConfig
from samepath.model.network.kernel_module import KernelModule
from samepath.model.network.latent_rows import Attended, IndexRows, Selection, merged_selection
from samepath.model.network.rope import rotate_halves
from samepath.model.trace import ForwardTrace


class Indexer(KernelModule):
    """Scores keys for each query; learns from its own loss alone, so its inputs are detached."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__(backend)
        self.config = config
        heads, width = config.index_n_heads, config.index_head_dim
        self.query = nn.Parameter(torch.empty(heads * width, config.index_query_width))
        self.key = nn.Parameter(torch.empty(width, config.hidden_size))
        self.key_norm_weight = nn.Parameter(torch.ones(width))
        self.key_norm_bias = nn.Parameter(torch.zeros(width))
        self.head_weights = nn.Parameter(torch.empty(heads, config.hidden_size))

    def project(
        self, x_ND: Tensor, query_input: Tensor, cos_NQ: Tensor, sin_NQ: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(queries [N, I, J], keys [N, J], head weights [N, I]); RoPE on the first rotary channels, halves layout."""
        x_ND, query_input = x_ND.detach(), query_input.detach()
        heads, width = self.config.index_n_heads, self.config.index_head_dim
        q_NIJ = linear(query_input, self.query, self.row_backend).view(-1, heads, width)
        k_NJ = layer_norm(
            linear(x_ND, self.key, self.row_backend), (width,), self.key_norm_weight, self.key_norm_bias, eps=1e-6
        )
        q_NIJ = rotate_halves(q_NIJ, cos_NQ[:, None], sin_NQ[:, None], self.backend)
        k_NJ = rotate_halves(k_NJ, cos_NQ, sin_NQ, self.backend)
        return q_NIJ, k_NJ, linear(x_ND, self.head_weights, self.row_backend) * (heads**-0.5 * width**-0.5)

    @torch.no_grad()
    def select(self, index: IndexRows, plan: AttentionPlan, num_selected: int) -> Selection:
        """Each row's selected keys."""
        parts = [self.select_window(index, window, num_selected) for window in plan.windows]
        if plan.row_by_row:
            return parts[0]
        return merged_selection(parts, plan.source_N, num_selected)

    @torch.no_grad()
    def select_window(self, index: IndexRows, window: Window, num_selected: int) -> Selection:
        """The selected keys of a window's queries, one after the other."""
        ends = window.ends_BT.flatten()
        if window.longest <= num_selected:
            positions, count = select_all(torch.zeros_like(ends), ends, num_selected)
        else:
            in_order = window.in_order and len(index.q_NIJ) == len(ends)
            # A decoding batch's rows are its queries, in order.
            q_BTIJ, weights_BTI = (
                values[:, None] if in_order else values[window.rows_BT] for values in (index.q_NIJ, index.weights_NI)
            )
            logits_BTS = cached_index_logits(
                q_BTIJ, index.keys_SJ, window.keys_BS, weights_BTI, window.ends_BT, self.backend
            )
            positions, count = select(
                logits_BTS.flatten(0, 1), torch.zeros_like(ends), ends, num_selected, self.backend
            )
        rows_NC = key_rows(window.keys_BS, positions, self.backend)
        return Selection(rows_NC=rows_NC, positions_NC=positions, count_N=count)

    def report(self, index: IndexRows, attended: Attended, trace: ForwardTrace, layer: int) -> None:
        """Give `trace` what it asks for of a selection and of the attention over it: its fingerprint, the loss over the selected keys."""
        selection = attended.selection
        if selection is None:
            return
        if trace.record_fingerprints:
            fingerprint_N = selection_fingerprint(selection.positions_NC, selection.count_N, self.backend)
            trace.record_fingerprint(layer, fingerprint_N)
        if attended.mass_NC is not None:
            selected_NC = selected_index_logits(
                index.q_NIJ, index.keys_SJ, index.weights_NI, selection.rows_NC, self.backend
            )
            trace.record_indexer_loss(layer, indexer_loss(selected_NC, attended.mass_NC, selection.count_N))

    def report_captured(
        self, index: IndexRows, teacher: GroupedTeacher, plan: AttentionPlan, trace: ForwardTrace, layer: int
    ) -> None:
        """Give `trace` what share of attention over all keys its best keys hold, and the best that there are, if it asks."""
        if trace.amounts:
            share_NA, best_NA = captured_mass(
                index.q_NIJ, index.keys_SJ, index.weights_NI, teacher, plan, trace.amounts
            )
            trace.record_captured(layer, share_NA, best_NA)
