"""The causal language model that sampler and learner both run.

Axes: N rows (a multiple of 16), D width, V vocabulary, X experts chosen, Q half the rotary width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm

from samepath.kernels.backend import ROW_MULTIPLE, Backend
from samepath.kernels.window import AttentionPlan
from samepath.model.attention import LatentAttention
from samepath.model.config import ModelConfig
from samepath.model.key_store import KeyStore
from samepath.model.moe import FeedForward, MixtureOfExperts
from samepath.model.rope import rope_table
from samepath.model.trace import ForwardTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One batch of token rows, from any number of sequences."""

    token_ids_N: Tensor
    """int64 [N], padding rows hold any id. N is a multiple of 16 so that every row's bits stand alone."""
    positions_N: Tensor
    """int64 [N], position in its own sequence."""
    plan: AttentionPlan
    """Which keys each row may see."""
    replay_LNX: Tensor | None = None
    """int64 [L_moe, N, X] routes to follow, −1 rows are routed live; None: all live."""

    def to(self, device: torch.device) -> "ModelInput":
        """The same batch with its tensors on `device`."""
        return ModelInput(
            token_ids_N=self.token_ids_N.to(device),
            positions_N=self.positions_N.to(device),
            plan=self.plan.to(device),
            replay_LNX=None if self.replay_LNX is None else self.replay_LNX.to(device),
        )


class DecoderLayer(nn.Module):
    """Attention and feed-forward with pre-norm residuals."""

    def __init__(self, config: ModelConfig, backend: Backend, layer: int) -> None:
        super().__init__()
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.attention = LatentAttention(config, backend, layer)
        self.feed_forward_norm = nn.Parameter(torch.ones(config.hidden_size))
        sparse = layer in config.moe_layers
        self.feed_forward: MixtureOfExperts | FeedForward = (
            MixtureOfExperts(config, backend) if sparse else FeedForward(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self, x_ND: Tensor, rope_N2Q: Tensor, batch: ModelInput, store: KeyStore, trace: ForwardTrace, num_selected: int
    ) -> Tensor:
        """`[N, D]` to `[N, D]`."""
        normed_ND = rms_norm(x_ND, (self.width,), self.attention_norm, self.eps)
        x_ND = x_ND + self.attention(normed_ND, rope_N2Q, batch.plan, store, trace, num_selected)
        normed_ND = rms_norm(x_ND, (self.width,), self.feed_forward_norm, self.eps)
        if isinstance(self.feed_forward, FeedForward):
            dense_ND: Tensor = self.feed_forward(normed_ND)
            return x_ND + dense_ND
        replayed_NX = None if batch.replay_LNX is None else batch.replay_LNX[len(trace.routes)]
        routed_ND: Tensor = self.feed_forward(normed_ND, trace, replayed_NX)
        return x_ND + routed_ND


class CausalLM(nn.Module):
    """DeepSeek-V3.2 network of any size; the head is applied by the caller to the rows it needs."""

    def __init__(self, config: ModelConfig, backend: Backend = "torch") -> None:
        super().__init__()
        self.config, self.backend = config, backend
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config, backend, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.head = (
            self.embedding
            if config.tie_word_embeddings
            else nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        )
        self.register_buffer("rope", rope_table(config), persistent=False)
        self.rope: Tensor

    def forward(
        self, batch: ModelInput, store: KeyStore, trace: ForwardTrace, *, num_selected: int | None = None
    ) -> Tensor:
        """Final normed hidden states `[N, D]`.

        `num_selected` overrides the configured top-k (dense warm-up selects every key). Raises ValueError if N is not a
        multiple of 16, a position exceeds the model, or the replay has the wrong shape.
        """
        num_rows = batch.token_ids_N.shape[0]
        if num_rows % ROW_MULTIPLE:
            raise ValueError(f"a batch must have a multiple of {ROW_MULTIPLE} rows; got {num_rows}. Pad it.")
        expected = (len(self.config.moe_layers), num_rows, self.config.num_experts_per_tok)
        if batch.replay_LNX is not None and tuple(batch.replay_LNX.shape) != expected:
            raise ValueError(
                f"replayed routes must have shape [L_moe, N, X] = {expected}; got {tuple(batch.replay_LNX.shape)}"
            )
        x_ND = embedding(batch.token_ids_N, self.embedding)
        rope_N2Q = self.rope[batch.positions_N].to(x_ND.dtype)
        for layer in self.layers:
            x_ND = layer(x_ND, rope_N2Q, batch, store, trace, num_selected or self.config.index_topk)
        return rms_norm(x_ND, (self.config.hidden_size,), self.norm, self.config.rms_norm_eps)

    def initialise(self, seed: int) -> None:
        """Fill all matrices from N(0, initializer_range²) with an own generator; norms are one, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)

    def selection_bias(self, layer: int) -> Tensor:
        """[E] bias of a mixture-of-experts layer (global number), to be changed in place."""
        return self.get_buffer(f"layers.{layer}.feed_forward.selection_bias")

    def indexer_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn from the indexer's loss alone."""
        return [parameter for name, parameter in self.named_parameters() if ".indexer." in name]
