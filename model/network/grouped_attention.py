"""Grouped-query attention over all keys or over those that the lightning indexer selects, with the options of the published families:
biases, norms of each head (Qwen3), and channels without position (GLM-4.5).

Axes: N rows, D width, H query heads, G key heads, X both, K head width, R rotated channels of it, W width of a key row.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.kernels.dense_attention.dense_attention import dense_attend
from samepath.kernels.indexer.grouped_indexer import GroupedTeacher, grouped_indexer_loss
from samepath.kernels.rows.dense_rows import linear
from samepath.kernels.rows.grouped_heads import HeadNorms, grouped_heads
from samepath.kernels.sparse_attention.grouped import grouped_attend, grouped_queries, grouped_rows
from samepath.kernels.sparse_attention.sparse_attention import DenseWindows
from samepath.kernels.window import AttentionPlan
from samepath.model.config import ModelConfig
from samepath.model.key_store import KeyStore
from samepath.model.network.indexer import Indexer
from samepath.model.network.kernel_module import KernelModule
from samepath.model.network.latent_rows import Attended, IndexRows
from samepath.model.trace import ForwardTrace


class GroupedAttention(KernelModule):
    """Attention of one layer; query, key and value matrices stand in one, in this order."""

    def __init__(self, config: ModelConfig, backend: Backend, layer: int) -> None:
        super().__init__(backend)
        self.config, self.layer = config, layer
        heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_width
        self.qkv = nn.Parameter(torch.empty((heads + 2 * groups) * width, config.hidden_size))
        self.output = nn.Parameter(torch.empty(config.hidden_size, heads * width))
        self.qkv_bias = nn.Parameter(torch.zeros(self.qkv.shape[0])) if config.query_bias else None
        self.output_bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.output_bias else None
        self.query_norm = nn.Parameter(torch.ones(width)) if config.head_norms else None
        self.key_norm = nn.Parameter(torch.ones(width)) if config.head_norms else None
        self.indexer = Indexer(config, backend) if config.index_topk else None

    def forward(
        self,
        x_ND: Tensor,
        rope_N2R: Tensor,
        plan: AttentionPlan,
        store: KeyStore,
        trace: ForwardTrace,
        num_selected: int,
    ) -> Tensor:
        """Attention output `[N, D]`; new keys and values go to `store`, selections and the indexer's loss to `trace`."""
        config = self.config
        width = config.head_width
        qkv_NXK = linear(x_ND, self.qkv, self.row_backend, self.qkv_bias).view(x_ND.shape[0], -1, width)
        norms = None
        if self.query_norm is not None and self.key_norm is not None:
            norms = HeadNorms(query_K=self.query_norm, key_K=self.key_norm, eps=config.rms_norm_eps)
        q_NHK, rows_GNW = grouped_heads(qkv_NXK, norms, rope_N2R, config.num_attention_heads, self.backend)
        if self.indexer is not None:
            rows_GSW = store.update(self.layer, grouped_rows(rows_GNW))
            index = self._index_rows(self.indexer, x_ND, rope_N2R, store)
            rows = GroupedRows(q_NHK=q_NHK, rows_GSW=rows_GSW, index=index)
            output_ND = self._selected_output(self.indexer, rows, plan, trace, num_selected)
            of_amount = partial(self._selected_output, self.indexer, rows, plan, ForwardTrace())
            trace.record_output_errors(self.layer, output_ND, of_amount)
            return output_ND
        rows_GSW = store.update(self.layer, rows_GNW)
        out_NHK = dense_attend(
            q_NHK,
            rows_GSW,
            plan,
            scale=config.softmax_scale,
            value_start=width,
            value_width=width,
            backend=self.backend,
        )
        return linear(out_NHK.flatten(1), self.output, self.row_backend, self.output_bias)

    def _index_rows(self, indexer: Indexer, x_ND: Tensor, rope_N2R: Tensor, store: KeyStore) -> IndexRows:
        """The indexer rotates fewer channels than a head has: it takes every so manieth of attention's frequencies."""
        half = rope_N2R.shape[-1] // 2
        step = self.config.rope_width // self.config.index_rope_width
        # A kernel wants them side by side.
        cos_NQ, sin_NQ = rope_N2R[:, 0, :half:step].contiguous(), rope_N2R[:, 1, half::step].contiguous()
        q_NIJ, key_NJ, weights_NI = indexer.project(x_ND, x_ND, cos_NQ, sin_NQ)
        return IndexRows(q_NIJ=q_NIJ, keys_SJ=store.update_index(self.layer, key_NJ), weights_NI=weights_NI)

    def _selected_output(
        self, indexer: Indexer, rows: "GroupedRows", plan: AttentionPlan, trace: ForwardTrace, num_selected: int
    ) -> Tensor:
        out_NHK = self._attend_selected(indexer, rows, plan, trace, num_selected)
        return linear(out_NHK.flatten(1), self.output, self.row_backend, self.output_bias)

    def _attend_selected(
        self,
        indexer: Indexer,
        rows: "GroupedRows",
        plan: AttentionPlan,
        trace: ForwardTrace,
        num_selected: int,
    ) -> Tensor:
        """Attention `[N, H, K]` over the selected keys, or over all where a caller asks for more than the model selects and no row has as many."""
        config, index = self.config, rows.index
        dense = num_selected > config.index_topk and all(window.longest <= num_selected for window in plan.windows)
        teacher = GroupedTeacher(
            q_NHK=rows.q_NHK.detach(),
            keys_GSK=rows.rows_GSW[..., config.head_width :].detach(),
            scale=config.softmax_scale,
        )
        indexer.report_captured(index, teacher, plan, trace, self.layer)
        if dense and not trace.record_fingerprints:
            if trace.train_indexer:
                loss_N = grouped_indexer_loss(index.q_NIJ, index.keys_SJ, index.weights_NI, teacher, plan)
                trace.record_indexer_loss(self.layer, loss_N)
            return dense_attend(
                grouped_queries(rows.q_NHK),
                rows.rows_GSW,
                plan,
                scale=config.softmax_scale,
                value_start=0,
                value_width=config.head_width,
                backend=self.backend,
            )
        selection = indexer.select(index, plan, num_selected)
        out_NHK, mass_NC = grouped_attend(
            rows.q_NHK,
            rows.rows_GSW,
            selection.rows_NC,
            selection.count_N,
            scale=config.softmax_scale,
            backend=self.backend,
            dense=DenseWindows(plan=plan, positions_NC=selection.positions_NC),
            with_mass=trace.train_indexer,
        )
        attended = Attended(out_NHV=out_NHK, mass_NC=mass_NC if trace.train_indexer else None, selection=selection)
        indexer.report(index, attended, trace, self.layer)
        return out_NHK


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedRows:
    """The queries of the batch and the key rows of the store, where an indexer selects."""

    q_NHK: Tensor
    """Queries."""
    rows_GSW: Tensor
    """Values and keys, as `grouped_rows` lays them."""
    index: IndexRows
    """The indexer's projections."""
