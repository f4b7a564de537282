"""Multi-head latent attention over the keys that the lightning indexer selects (arXiv:2512.02556 §2), or over all.

It runs in absorbed form, in which a row's bits do not depend on its batch, and where a plan is divided also in expanded form.
Axes: N rows, D width, H heads, E channels of a head's query, K absorbed key width, R latent width, V value head width, I indexer heads,
J indexer width, C selected keys, Q half the rotary width; M rows of a part; B, T, S of a window as in `window.py`.
"""

from functools import partial

import torch
from torch import Tensor, nn

from samepath.kernels.backend import CAPABILITIES, Backend
from samepath.kernels.dense_attention.dense_attention import dense_attend, dense_attend_with_lse
from samepath.kernels.indexer.dense_indexer import Teacher, dense_indexer_loss
from samepath.kernels.indexer.grouped_indexer import GroupedTeacher, grouped_indexer_loss
from samepath.kernels.rows.dense_rows import linear, rms_norm
from samepath.kernels.rows.head_product import head_product
from samepath.kernels.sparse_attention.sparse_attention import DenseWindows, attend
from samepath.kernels.window import AttentionPlan, Division, Window
from samepath.kernels.window_attention.window_attention import window_attend
from samepath.model.config import ModelConfig
from samepath.model.key_store import KeyStore
from samepath.model.network.indexer import Indexer
from samepath.model.network.kernel_module import KernelModule
from samepath.model.network.latent_rows import Attended, IndexRows, LatentRows, Selection, merged
from samepath.model.network.rope import rotate_interleaved
from samepath.model.trace import ForwardTrace

LATENT_NORM_EPS = 1e-6
"""The published code gives the norms of both latents this epsilon, whatever the config's."""


class LatentAttention(KernelModule):
    """MLA of one layer, with its indexer where the family has one."""

    def __init__(self, config: ModelConfig, backend: Backend, layer: int) -> None:
        super().__init__(backend)
        self.config, self.layer = config, layer
        heads, nope, rope, value = (
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        if config.q_lora_rank:
            self.query_down = nn.Parameter(torch.empty(config.q_lora_rank, config.hidden_size))
            self.query_norm = nn.Parameter(torch.ones(config.q_lora_rank))
        self.query_up = nn.Parameter(torch.empty(heads * (nope + rope), config.q_lora_rank or config.hidden_size))
        self.key_down = nn.Parameter(torch.empty(config.key_width, config.hidden_size))
        self.key_norm = nn.Parameter(torch.ones(config.kv_lora_rank))
        self.key_up = nn.Parameter(torch.empty(heads * (nope + value), config.kv_lora_rank))
        self.output = nn.Parameter(torch.empty(config.hidden_size, heads * value))
        self.indexer = Indexer(config, backend) if config.index_topk else None

    def forward(
        self,
        x_ND: Tensor,
        rope_N2Q: Tensor,
        plan: AttentionPlan,
        store: KeyStore,
        trace: ForwardTrace,
        num_selected: int,
    ) -> Tensor:
        """Attention output `[N, D]`; new keys go to `store`, selections and the indexer's loss to `trace`."""
        rows = self._project(x_ND, rope_N2Q, store)
        with_mass = trace.train_indexer and rows.index is not None
        if trace.amounts and self.indexer is not None and rows.index is not None:
            q_NHK, _ = self._absorbed_queries(rows)
            teacher = GroupedTeacher(q_NHK=q_NHK, keys_GSK=rows.keys_SK[None], scale=self.config.softmax_scale)
            self.indexer.report_captured(rows.index, teacher, plan, trace, self.layer)
        if plan.division is None and self._learns_from_all_keys(rows, plan, trace, num_selected):
            attended = self._absorbed_with_loss(rows, plan, trace)
        elif plan.division is None:
            attended = self._absorbed(rows, plan, num_selected, with_mass)
        else:
            attended = self._divided(rows, plan.division, num_selected, trace)
        if self.indexer is not None and rows.index is not None:
            self.indexer.report(rows.index, attended, trace, self.layer)
        output_ND = linear(attended.out_NHV.flatten(1), self.output, self.row_backend)
        if self.indexer is not None:
            trace.record_output_errors(self.layer, output_ND, partial(self._selected_output, rows, plan))
        return output_ND

    def _selected_output(self, rows: LatentRows, plan: AttentionPlan, num_selected: int) -> Tensor:
        out_NHV = self._absorbed(rows, plan, num_selected, with_mass=False).out_NHV
        return linear(out_NHV.flatten(1), self.output, self.row_backend)

    def _project(self, x_ND: Tensor, rope_N2Q: Tensor, store: KeyStore) -> LatentRows:
        """Queries and the indexer's inputs of the rows, and the keys of all rows that the store has."""
        config = self.config
        cos_NQ, sin_NQ = rope_N2Q[:, 0], rope_N2Q[:, 1]
        q_latent = x_ND
        if config.q_lora_rank:
            q_latent = linear(x_ND, self.query_down, self.row_backend)
            q_latent = rms_norm(q_latent, self.query_norm, LATENT_NORM_EPS, self.backend)
        q_N_H_ = linear(q_latent, self.query_up, self.row_backend).view(x_ND.shape[0], config.num_attention_heads, -1)
        q_nope, q_rope = torch.split(q_N_H_, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        latent, k_rope = torch.split(
            linear(x_ND, self.key_down, self.row_backend), [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        latent = rms_norm(latent, self.key_norm, LATENT_NORM_EPS, self.backend)
        key_NK = torch.cat([latent, rotate_interleaved(k_rope, cos_NQ, sin_NQ, self.backend)], -1)
        index = None
        if self.indexer is not None:
            q_NIJ, index_key_NJ, weights_NI = self.indexer.project(x_ND, q_latent, cos_NQ, sin_NQ)
            index_keys_SJ = store.update_index(self.layer, index_key_NJ)
            index = IndexRows(q_NIJ=q_NIJ, keys_SJ=index_keys_SJ, weights_NI=weights_NI)
        return LatentRows(
            q_nope_NHE=q_nope,
            q_rope_NHE=rotate_interleaved(q_rope, cos_NQ[:, None], sin_NQ[:, None], self.backend),
            keys_SK=store.update(self.layer, key_NK[None])[0],
            index=index,
        )

    def _absorbed_queries(self, rows: LatentRows) -> tuple[Tensor, Tensor]:
        """(queries [N, H, K] that multiply latents, what turns a head's sum of latents into its values [H, R, V])."""
        absorb_HKR, up_HRV = self._key_up()
        return torch.cat([head_product(rows.q_nope_NHE, absorb_HKR, self.row_backend), rows.q_rope_NHE], -1), up_HRV

    def _absorbed(self, rows: LatentRows, plan: AttentionPlan, num_selected: int, with_mass: bool) -> Attended:
        """Attention over latents, which all heads share: over the selected ones, or over all."""
        q_NHK, up_HRV = self._absorbed_queries(rows)
        scale, value_width = self.config.softmax_scale, self.config.kv_lora_rank
        if self.indexer is None or rows.index is None:
            out_NHR = self._attend_all(q_NHK, rows, plan)
            return Attended(out_NHV=head_product(out_NHR, up_HRV, self.row_backend))
        selection = self.indexer.select(rows.index, plan, num_selected)
        out_NHR, _, mass_NC = attend(
            q_NHK,
            rows.keys_SK,
            selection.rows_NC,
            selection.count_N,
            scale=scale,
            value_width=value_width,
            backend=self.backend,
            dense=DenseWindows(plan=plan, positions_NC=selection.positions_NC),
            with_mass=with_mass,
            batch_invariant=self.batch_invariant,
        )
        out_NHV = head_product(out_NHR, up_HRV, self.row_backend)
        return Attended(out_NHV=out_NHV, mass_NC=mass_NC if with_mass else None, selection=selection)

    def _attend_all(self, q_NHK: Tensor, rows: LatentRows, plan: AttentionPlan) -> Tensor:
        """[N, H, R] sums of latents over all keys."""
        return dense_attend(
            q_NHK,
            rows.keys_SK[None],
            plan,
            scale=self.config.softmax_scale,
            value_start=0,
            value_width=self.config.kv_lora_rank,
            backend=self.backend,
        )

    def _learns_from_all_keys(
        self, rows: LatentRows, plan: AttentionPlan, trace: ForwardTrace, num_selected: int
    ) -> bool:
        """True if no row's selection leaves a key out, so that attention and the indexer's loss need no lists of keys.

        Fused kernels give the same bits. Others do not, so they take this form only where nothing but the indexer learns.
        """
        allowed = CAPABILITIES[self.backend].fused or not rows.keys_SK.requires_grad
        wanted = allowed and trace.train_indexer and not trace.record_fingerprints
        return wanted and self.indexer is not None and all(window.longest <= num_selected for window in plan.windows)

    def _absorbed_with_loss(self, rows: LatentRows, plan: AttentionPlan, trace: ForwardTrace) -> Attended:
        """Attention over all latents; reports the indexer's loss over all of them (the dense warm-up)."""
        assert rows.index is not None
        q_NHK, up_HRV = self._absorbed_queries(rows)
        scale, index = self.config.softmax_scale, rows.index
        if not CAPABILITIES[self.backend].fused:
            out_NHR = self._attend_all(q_NHK, rows, plan)
            constant = GroupedTeacher(q_NHK=q_NHK, keys_GSK=rows.keys_SK[None], scale=scale)
            losses_N = grouped_indexer_loss(index.q_NIJ, index.keys_SJ, index.weights_NI, constant, plan)
            trace.record_indexer_loss(self.layer, losses_N)
            return Attended(out_NHV=head_product(out_NHR, up_HRV, self.row_backend))
        out_NHR, lse_NH = dense_attend_with_lse(
            q_NHK,
            rows.keys_SK[None],
            plan,
            scale=scale,
            value_start=0,
            value_width=self.config.kv_lora_rank,
            backend=self.backend,
        )
        teacher = Teacher(q_NHK=q_NHK.detach(), kv_SK=rows.keys_SK.detach(), lse_NH=lse_NH, scale=scale)
        losses_N = dense_indexer_loss(index.q_NIJ, index.keys_SJ, index.weights_NI, teacher, plan, self.backend)
        trace.record_indexer_loss(self.layer, losses_N)
        return Attended(out_NHV=head_product(out_NHR, up_HRV, self.row_backend))

    def _divided(self, rows: LatentRows, division: Division, num_selected: int, trace: ForwardTrace) -> Attended:
        """Some rows in absorbed form, the others window by window in expanded form."""
        with_mass = trace.train_indexer and self.indexer is not None
        parts = []
        if len(division.rows_M):
            parts.append(self._absorbed(rows.part(division.rows_M), division.absorbed, num_selected, with_mass))
        for window in division.expanded:
            selection = None
            wanted = trace.record_fingerprints or with_mass or window.longest > num_selected
            if self.indexer is not None and rows.index is not None and wanted:
                selection = self.indexer.select_window(rows.index, window, num_selected)
            parts.append(self._expanded(rows, window, selection, with_mass))
        return merged(parts, division.source_N, num_selected)

    def _expanded(self, rows: LatentRows, window: Window, selection: Selection | None, with_mass: bool) -> Attended:
        """Attention of a window's queries, with a key and a value for each head; keys that are not selected are masked."""
        config, (num_sequences, num_queries) = self.config, window.rows_BT.shape
        # No key stands behind the longest sequence's end, only the padding to a multiple of 16.
        keys_BS = window.keys_BS[:, :num_queries] if window.whole else window.keys_BS
        latent_BSK = rows.keys_SK[keys_BS]
        latent, k_rope = torch.split(latent_BSK, [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        up_BSHE = linear(latent.flatten(0, 1), self.key_up, self.row_backend).view(
            *keys_BS.shape, config.num_attention_heads, -1
        )
        k_nope, v_BSHV = torch.split(up_BSHE, [config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        shared_BSHE = k_rope[:, :, None].expand(-1, -1, config.num_attention_heads, -1)
        positions_BTC = None
        if selection is not None and (with_mass or window.longest > selection.rows_NC.shape[1]):
            positions_BTC = selection.positions_NC.view(num_sequences, num_queries, -1)
        out_BTHV, mass_BTC = window_attend(
            torch.cat([rows.q_nope_NHE[window.rows_BT], rows.q_rope_NHE[window.rows_BT]], -1),
            torch.cat([k_nope, shared_BSHE], -1),
            v_BSHV,
            window,
            positions_BTC,
            scale=config.softmax_scale,
            backend=self.backend,
            with_mass=with_mass,
        )
        mass_NC = None if mass_BTC is None else mass_BTC.flatten(0, 1)
        return Attended(out_NHV=out_BTHV.flatten(0, 1), mass_NC=mass_NC, selection=selection)

    def _key_up(self) -> tuple[Tensor, Tensor]:
        """(W_UK [H, nope, R] that is absorbed into the query, W_UVᵀ [H, R, V] that is applied to the output)."""
        config = self.config
        up = self.key_up.view(
            config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank
        )
        return up[:, : config.qk_nope_head_dim], up[:, config.qk_nope_head_dim :].transpose(1, 2)
