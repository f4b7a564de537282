"""Grouped-query attention over all keys, with the options of the published families: biases, norms of each head (Qwen3), and channels
without position (GLM-4.5).

Axes: N rows, D width, H query heads, G key heads, X both, K head width, R rotated channels of it, W width of a key row.
"""

import torch
from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.kernels.dense_attention.dense_attention import dense_attend
from samepath.kernels.rows.dense_rows import linear
from samepath.kernels.rows.grouped_heads import HeadNorms, grouped_heads
from samepath.kernels.window import AttentionPlan
from samepath.model.config import ModelConfig
from samepath.model.key_store import KeyStore
from samepath.model.network.kernel_module import KernelModule
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

    def forward(
        self,
        x_ND: Tensor,
        rope_N2R: Tensor,
        plan: AttentionPlan,
        store: KeyStore,
        trace: ForwardTrace,
        num_selected: int,
    ) -> Tensor:
        """Attention output `[N, D]`; new keys and values go to `store`. Nothing is selected, so `trace` gets nothing."""
        config = self.config
        width = config.head_width
        qkv_NXK = linear(x_ND, self.qkv, self.row_backend, self.qkv_bias).view(x_ND.shape[0], -1, width)
        norms = None
        if self.query_norm is not None and self.key_norm is not None:
            norms = HeadNorms(query_K=self.query_norm, key_K=self.key_norm, eps=config.rms_norm_eps)
        q_NHK, rows_GNW = grouped_heads(qkv_NXK, norms, rope_N2R, config.num_attention_heads, self.backend)
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
