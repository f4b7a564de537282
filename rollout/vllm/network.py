"""This package's own network as a vLLM model: vLLM schedules, pages and samples; kernels, selection and experts are the learner's.

Both sides select keys by `kernels/selection/selection.py`, choose experts by one rule and add in one order, so routes and log-probabilities are those
of the built-in engine. vLLM's own classes for models with an indexer run on GPUs only and break ties as `torch.topk` happens to.

Axes: N rows of a step, G key heads, W width of a key row, S cache slots, J indexer key width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.config import get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder, MultipleOf
from vllm.v1.kv_cache_interface import KVCacheLayout, MLAAttentionSpec

from samepath.kernels.backend import round_up
from samepath.kernels.head.logprob import padded_logits
from samepath.model.config import ModelConfig
from samepath.model.files.checkpoint import load_published
from samepath.model.files.config_file import read_config
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import Span, plan_spans
from samepath.model.trace import ForwardTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPages:
    """Where the requests of one step stand: in the batch's rows, and in the pages of the cache."""

    starts: Tensor
    """[requests + 1] first row of each request, and the end."""
    lengths: Tensor
    """[requests] tokens of each with this step's."""
    pages: Tensor
    """[requests, pages] page numbers of each."""
    slots: Tensor
    """[rows] cache slot of each row's token."""


class PageMetadata(AttentionMetadataBuilder[StepPages]):
    """Keeps the part of vLLM's metadata that the network needs."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> StepPages:
        """One step's pages."""
        meta = common_attn_metadata
        return StepPages(
            starts=meta.query_start_loc, lengths=meta.seq_lens, pages=meta.block_table_tensor, slots=meta.slot_mapping
        )


class PageBackend(AttentionBackend):
    """Names the builder above; attention itself is the network's."""

    @staticmethod
    def get_name() -> str:
        """Name in vLLM's logs."""
        return "SAMEPATH"

    @staticmethod
    def get_impl_cls() -> Any:
        """Never made: no attention layer of vLLM runs."""
        return AttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PageMetadata]:
        """The builder."""
        return PageMetadata

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Any page size."""
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """One row per token."""
        return (KVCacheLayout.LBHNC,)


class LayerCache(nn.Module, AttentionLayerBase):
    """Pages of one layer, one row per token: the keys and values of all heads (or the latent), then the indexer's key."""

    def __init__(self, width: int, prefix: str) -> None:
        super().__init__()
        config = get_current_vllm_config()
        self.width, self.dtype = width, config.model_config.dtype
        self.block_size = config.cache_config.block_size
        self.kv_cache = torch.tensor([])
        config.compilation_config.static_forward_context[prefix] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        """The backend of all layers."""
        return PageBackend

    def get_kv_cache_spec(self, vllm_config: Any) -> MLAAttentionSpec:
        """One shared row for all heads."""
        return MLAAttentionSpec(block_size=self.block_size, num_kv_heads=1, head_size=self.width, dtype=self.dtype)

    def rows(self) -> Tensor:
        """All slots of the layer, `[slots, width]`, in page order."""
        return self.kv_cache.view(-1, self.width)


class RouteTap(nn.Module):
    """What vLLM's recorder binds to: a layer number and a function that takes the step's routes."""

    def __init__(self, layer: int, config: ModelConfig) -> None:
        super().__init__()
        self.layer_id = layer
        self.capture_fn: Callable[[Tensor], None] | None = None
        self.num_experts, self.num_chosen = config.n_routed_experts, config.num_experts_per_tok


class PagedKeys:
    """The network's key store over the pages of all layers; padding rows are written nowhere."""

    def __init__(self, caches: list[LayerCache], slots: Tensor, config: ModelConfig) -> None:
        self._caches, self._slots = caches, slots
        self._heads, self._width = config.key_heads, config.key_heads * config.key_row_width

    def update(self, layer: int, rows_GNW: Tensor) -> Tensor:
        """Write the step's rows, then return the layer's, `[G, S, W]`."""
        cache = self._caches[layer].rows()
        cache[self._slots, : self._width] = rows_GNW[:, : len(self._slots)].transpose(0, 1).flatten(1)
        return cache[:, : self._width].view(len(cache), self._heads, -1).transpose(0, 1)

    def update_index(self, layer: int, index_keys_NJ: Tensor) -> Tensor:
        """Write the step's indexer keys, then return the layer's, `[S, J]`."""
        cache = self._caches[layer].rows()
        cache[self._slots, self._width :] = index_keys_NJ[: len(self._slots)]
        return cache[:, self._width :]


class SamepathForCausalLM(nn.Module):
    """The network under the interface that vLLM calls."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = read_config(Path(vllm_config.model_config.model) / "config.json")
        self.config = config
        self.network = CausalLM(config)
        self.page_size = int(vllm_config.cache_config.block_size)
        width = config.key_heads * config.key_row_width + (config.index_head_dim if config.sparse_layers else 0)
        self.caches = nn.ModuleList(
            LayerCache(width, f"layers.{layer}.keys") for layer in range(config.num_hidden_layers)
        )
        taps = {str(layer): RouteTap(layer, config) for layer in config.moe_layers}
        self.layers = nn.ModuleDict({name: nn.ModuleDict({"routes": tap}) for name, tap in taps.items()})

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token embeddings; part of vLLM's interface."""
        return self.network.embedding[input_ids]

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Final normed hidden states `[N, D]` of the step's rows."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:
            # A dry run to measure memory: nothing is cached and nobody reads the result.
            return torch.zeros(len(input_ids), self.config.hidden_size)
        step: StepPages = metadata["layers.0.keys"]
        starts, lengths = step.starts.tolist(), step.lengths.tolist()
        num_rows = starts[-1]
        padded = round_up(num_rows)
        batch = ModelInput(
            token_ids_N=pad(input_ids[:num_rows].long(), (0, padded - num_rows)),
            positions_N=pad(positions[:num_rows], (0, padded - num_rows)),
            plan=plan_spans(self._spans(step, starts, lengths), padded, self.config.window_heads),
        )
        trace = ForwardTrace()
        store = PagedKeys(list(self.caches), step.slots[:num_rows], self.config)  # type: ignore[arg-type]
        hidden_ND = self.network(batch, store, trace)[:num_rows]
        for layer, routes_NX in zip(self.layers.values(), trace.routes, strict=True):
            capture = layer["routes"].capture_fn  # type: ignore[index]
            if capture is not None:
                capture(routes_NX[:num_rows])
        return pad(hidden_ND, (0, 0, 0, len(input_ids) - num_rows))

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """`[rows, V]`."""
        return padded_logits(hidden_states, self.network.head)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill the network from published tensors, in place; returns the names of everything filled."""
        with torch.no_grad():
            load_published(self.network, dict(weights))
        return {name for name, _ in self.named_parameters()}

    def _spans(self, step: StepPages, starts: list[int], lengths: list[int]) -> list[Span]:
        """The step's rows of each request, with the slot of every position it may look back to."""
        size = self.page_size
        spans = []
        for index, (first_row, end_row) in enumerate(pairwise(starts)):
            length, count = lengths[index], end_row - first_row
            if count == 0:
                continue
            pages = step.pages[index, : -(-length // size)].long()
            keys = (pages[:, None] * size + torch.arange(size)).flatten()[:length]
            spans.append(Span(row=first_row, first=length - count, count=count, keys=keys))
        return spans
