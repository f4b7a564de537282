"""Multi-head latent attention in absorbed form, over the keys that the lightning indexer selects (arXiv:2512.02556 §2), or over all.

Axes: N rows, D width, H heads, K absorbed key width, R latent width, V value head width, I indexer heads, J indexer width,
C selected keys, Q half the rotary width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from samepath.kernels.backend import Backend
from samepath.kernels.dense_attention import dense_attend, dense_attend_with_lse
from samepath.kernels.dense_indexer import Teacher, dense_indexer_loss
from samepath.kernels.dense_rows import linear, rms_norm
from samepath.kernels.head_product import head_product
from samepath.kernels.index_logits import index_logits, indexer_loss, selected_index_logits
from samepath.kernels.selection import select, select_all, selection_fingerprint
from samepath.kernels.sparse_attention import DenseWindows, attend
from samepath.kernels.window import AttentionPlan, Window
from samepath.model.config import ModelConfig
from samepath.model.key_store import KeyStore
from samepath.model.rope import rotate_halves, rotate_interleaved
from samepath.model.trace import ForwardTrace

LATENT_NORM_EPS = 1e-6
"""The published code gives the norms of both latents this epsilon, whatever the config's."""


class Indexer(nn.Module):
    """Scores keys for each query; learns from its own loss alone, so its inputs are detached."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        heads, width = config.index_n_heads, config.index_head_dim
        self.query = nn.Parameter(torch.empty(heads * width, config.q_lora_rank))
        self.key = nn.Parameter(torch.empty(width, config.hidden_size))
        self.key_norm_weight = nn.Parameter(torch.ones(width))
        self.key_norm_bias = nn.Parameter(torch.zeros(width))
        self.head_weights = nn.Parameter(torch.empty(heads, config.hidden_size))

    def project(self, x_ND: Tensor, q_latent: Tensor, rope_N2Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(queries [N, I, J], keys [N, J], head weights [N, I]); RoPE on the first rotary channels, halves layout."""
        x_ND, q_latent = x_ND.detach(), q_latent.detach()
        heads, width, rope = self.config.index_n_heads, self.config.index_head_dim, self.config.qk_rope_head_dim
        cos_NQ, sin_NQ = rope_N2Q[:, 0], rope_N2Q[:, 1]
        q_NIJ = linear(q_latent, self.query, self.backend).view(-1, heads, width)
        k_NJ = layer_norm(
            linear(x_ND, self.key, self.backend), (width,), self.key_norm_weight, self.key_norm_bias, eps=1e-6
        )
        q_NIJ = torch.cat([rotate_halves(q_NIJ[..., :rope], cos_NQ[:, None], sin_NQ[:, None]), q_NIJ[..., rope:]], -1)
        k_NJ = torch.cat([rotate_halves(k_NJ[:, :rope], cos_NQ, sin_NQ), k_NJ[:, rope:]], -1)
        return q_NIJ, k_NJ, linear(x_ND, self.head_weights, self.backend) * (heads**-0.5 * width**-0.5)

    @torch.no_grad()
    def select(
        self, q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, plan: AttentionPlan, num_selected: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(key-store rows [N, C], in-sequence positions [N, C], count [N]) of each row's selected keys."""
        rows, positions, counts = [], [], []
        for window in plan.windows:
            local, count = self._select_window(q_NIJ, k_SJ, weights_NI, window, num_selected)
            width = window.rows_BT.shape[1]
            chosen = window.keys_BS.gather(1, local.clamp(min=0).long().view(-1, width * num_selected)).view(
                -1, num_selected
            )
            rows.append(chosen.to(torch.int32).masked_fill_(local < 0, -1))
            positions.append(local)
            counts.append(count)
        nothing = torch.full((1, num_selected), -1, dtype=torch.int32, device=q_NIJ.device)
        source_N = plan.source_N
        return (
            torch.cat([*rows, nothing])[source_N],
            torch.cat([*positions, nothing])[source_N],
            torch.cat([*counts, torch.zeros(1, dtype=torch.int32, device=q_NIJ.device)])[source_N],
        )

    def _select_window(
        self, q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, window: Window, num_selected: int
    ) -> tuple[Tensor, Tensor]:
        ends = window.ends_BT.flatten()
        if window.longest <= num_selected:
            return select_all(torch.zeros_like(ends), ends, num_selected)
        logits_BTS = index_logits(q_NIJ[window.rows_BT], k_SJ[window.keys_BS], weights_NI[window.rows_BT], self.backend)
        return select(logits_BTS.flatten(0, 1), torch.zeros_like(ends), ends, num_selected, self.backend)


class LatentAttention(nn.Module):
    """MLA of one layer, with its indexer where the family has one."""

    def __init__(self, config: ModelConfig, backend: Backend, layer: int) -> None:
        super().__init__()
        self.config, self.backend, self.layer = config, backend, layer
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
        q_latent, q_NHK, key_NK = self._project(x_ND, rope_N2Q)
        rows_GSK = store.update(self.layer, key_NK[None])
        if self.indexer is None:
            out_NHR = dense_attend(
                q_NHK,
                rows_GSK,
                plan,
                scale=self.config.softmax_scale,
                value_start=0,
                value_width=self.config.kv_lora_rank,
                backend=self.backend,
            )
        else:
            q_NIJ, index_key_NJ, weights_NI = self.indexer.project(x_ND, q_latent, rope_N2Q)
            index_keys_SJ = store.update_index(self.layer, index_key_NJ)
            index = (q_NIJ, index_keys_SJ, weights_NI)
            if self._learns_from_all_keys(plan, trace, num_selected):
                out_NHR = self._attend_all(q_NHK, rows_GSK, index, plan, trace)
            else:
                out_NHR = self._attend_selected(q_NHK, rows_GSK[0], index, plan, trace, num_selected)
        _, up_HRV = self._key_up()
        out_NHV = head_product(out_NHR, up_HRV, self.backend)
        return linear(out_NHV.flatten(1), self.output, self.backend)

    def _learns_from_all_keys(self, plan: AttentionPlan, trace: ForwardTrace, num_selected: int) -> bool:
        """True if nothing is left out of any row's selection, so that the indexer's loss needs no list of keys: same keys, same order, same bits."""
        wanted = self.backend == "triton" and trace.train_indexer and not trace.record_fingerprints
        return wanted and all(window.longest <= num_selected for window in plan.windows)

    def _attend_all(
        self,
        q_NHK: Tensor,
        rows_GSK: Tensor,
        index: tuple[Tensor, Tensor, Tensor],
        plan: AttentionPlan,
        trace: ForwardTrace,
    ) -> Tensor:
        """Attention `[N, H, R]` over all keys; reports the indexer's loss over all of them."""
        scale = self.config.softmax_scale
        out_NHR, lse_NH = dense_attend_with_lse(
            q_NHK, rows_GSK, plan, scale=scale, value_start=0, value_width=self.config.kv_lora_rank
        )
        teacher = Teacher(q_NHK=q_NHK.detach(), kv_SK=rows_GSK[0].detach(), lse_NH=lse_NH, scale=scale)
        trace.record_indexer_loss(self.layer, dense_indexer_loss(*index, teacher, plan, "triton"))
        return out_NHR

    def _attend_selected(
        self,
        q_NHK: Tensor,
        rows_SK: Tensor,
        index: tuple[Tensor, Tensor, Tensor],
        plan: AttentionPlan,
        trace: ForwardTrace,
        num_selected: int,
    ) -> Tensor:
        """Attention `[N, H, R]` over the indexer's selection; reports what `trace` asks for."""
        assert self.indexer is not None
        q_NIJ, index_keys_SJ, weights_NI = index
        rows_NC, positions_NC, count_N = self.indexer.select(q_NIJ, index_keys_SJ, weights_NI, plan, num_selected)
        if trace.record_fingerprints:
            trace.record_fingerprint(self.layer, selection_fingerprint(positions_NC, count_N))
        out_NHR, _, mass_NC = attend(
            q_NHK,
            rows_SK,
            rows_NC,
            count_N,
            scale=self.config.softmax_scale,
            value_width=self.config.kv_lora_rank,
            backend=self.backend,
            dense=DenseWindows(plan=plan, positions_NC=positions_NC),
            with_mass=trace.train_indexer,
        )
        if trace.train_indexer:
            selected_NC = selected_index_logits(q_NIJ, index_keys_SJ, weights_NI, rows_NC, self.backend)
            trace.record_indexer_loss(self.layer, indexer_loss(selected_NC, mass_NC, count_N))
        return out_NHR

    def _project(self, x_ND: Tensor, rope_N2Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(query latent, absorbed queries [N, H, K], key rows [N, K])."""
        config = self.config
        cos_NQ, sin_NQ = rope_N2Q[:, 0], rope_N2Q[:, 1]
        q_latent = x_ND
        if config.q_lora_rank:
            q_latent = linear(x_ND, self.query_down, self.backend)
            q_latent = rms_norm(q_latent, self.query_norm, LATENT_NORM_EPS, self.backend)
        q_N_H_ = linear(q_latent, self.query_up, self.backend).view(x_ND.shape[0], config.num_attention_heads, -1)
        q_nope, q_rope = torch.split(q_N_H_, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        absorb_HKR, _ = self._key_up()
        q_NHR = head_product(q_nope, absorb_HKR, self.backend)
        q_NHK = torch.cat([q_NHR, rotate_interleaved(q_rope, cos_NQ[:, None], sin_NQ[:, None])], -1)
        latent, k_rope = torch.split(
            linear(x_ND, self.key_down, self.backend), [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
        )
        latent = rms_norm(latent, self.key_norm, LATENT_NORM_EPS, self.backend)
        return q_latent, q_NHK, torch.cat([latent, rotate_interleaved(k_rope, cos_NQ, sin_NQ)], -1)

    def _key_up(self) -> tuple[Tensor, Tensor]:
        """(W_UK [H, nope, R] that is absorbed into the query, W_UVᵀ [H, R, V] that is applied to the output)."""
        config = self.config
        up = self.key_up.view(
            config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank
        )
        return up[:, : config.qk_nope_head_dim], up[:, config.qk_nope_head_dim :].transpose(1, 2)
