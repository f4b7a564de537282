"""The causal language model that sampler and learner both run.

Axes: N rows (a multiple of 16), D width, V vocabulary, X experts chosen, Q half the rotary width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from samepath.kernels.backend import CAPABILITIES, ROW_MULTIPLE, Backend
from samepath.kernels.rows.dense_rows import add_norm, rms_norm
from samepath.model.config import ModelConfig
from samepath.model.key_store import KeyStore
from samepath.model.model_input import ModelInput
from samepath.model.network.attention import LatentAttention
from samepath.model.network.dispatch import divide
from samepath.model.network.grouped_attention import GroupedAttention
from samepath.model.network.kernel_module import KernelModule
from samepath.model.network.moe import FeedForward, MixtureOfExperts
from samepath.model.network.rope import rope_table
from samepath.model.policy import Policy
from samepath.model.trace import ForwardTrace


class DecoderLayer(KernelModule):
    """Attention and feed-forward with pre-norm residuals."""

    def __init__(self, config: ModelConfig, backend: Backend, layer: int) -> None:
        super().__init__(backend)
        self.eps = config.rms_norm_eps
        self.attention_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.attention: LatentAttention | GroupedAttention = (
            LatentAttention(config, backend, layer)
            if config.latent_attention
            else GroupedAttention(config, backend, layer)
        )
        self.feed_forward_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.feed_forward: MixtureOfExperts | FeedForward = (
            MixtureOfExperts(config, backend, config.moe_layers.index(layer))
            if layer in config.moe_layers
            else FeedForward(config.hidden_size, config.intermediate_size, backend)
        )

    def forward(
        self, x_ND: Tensor, rope_N2Q: Tensor, batch: ModelInput, store: KeyStore, trace: ForwardTrace, num_selected: int
    ) -> Tensor:
        """`[N, D]` to `[N, D]`."""
        x_ND, normed_ND = add_norm(x_ND, None, self.attention_norm, self.eps, self.backend)
        attended_ND = self.attention(normed_ND, rope_N2Q, batch.plan, store, trace, num_selected)
        x_ND, normed_ND = add_norm(x_ND, attended_ND, self.feed_forward_norm, self.eps, self.backend)
        if isinstance(self.feed_forward, FeedForward):
            dense_ND: Tensor = self.feed_forward(normed_ND)
            return x_ND + dense_ND
        # By the layer's own place, so a layer that is recomputed finds its own routes again.
        replayed_NX = None if batch.replay_LNX is None else batch.replay_LNX[self.feed_forward.place]
        routed_ND: Tensor = self.feed_forward(normed_ND, trace, replayed_NX)
        return x_ND + routed_ND


class _FusedShape(ModelConfig):
    """Sizes of a network whose kernels keep no head's scores."""

    @property
    def window_heads(self) -> int:
        """One index logit a query and key is held, added over heads as it goes; without an indexer nothing."""
        return min(self.index_topk, 1)


class CausalLM(Policy):
    """A network of any family and size; the head is applied by the caller to the rows it needs."""

    def __init__(self, config: ModelConfig, backend: Backend = "torch") -> None:
        super().__init__()
        self.config, self.backend, self.batch_invariant = config, backend, True
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

    @property
    def shape(self) -> ModelConfig:
        """The configuration itself, or what fused kernels make of it."""
        if CAPABILITIES[self.backend].fused:
            return _FusedShape.model_construct(**dict(self.config))
        return self.config

    @property
    def head_weight(self) -> Tensor:
        """[V, D] output matrix."""
        return self.head

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """The layers, in order."""
        return list(self.layers)

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
        if not self.batch_invariant and self.config.latent_attention:
            plan = divide(batch.plan, num_selected or self.config.index_topk)
            batch = replace(batch, plan=plan)
        batch = batch.to(self.embedding.device)
        x_ND = embedding(batch.token_ids_N, self.embedding)
        rope_N2Q = self.rope[batch.positions_N].to(x_ND.dtype)
        for layer in self.layers:
            arguments = (x_ND, rope_N2Q, batch, store, trace, num_selected or self.config.index_topk)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_ND = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x_ND = layer(*arguments)
        return rms_norm(x_ND, self.norm, self.config.rms_norm_eps, self.backend)

    def let_rows_depend_on_their_batch(self) -> None:
        """From now on use what is fastest: the library's products, and latent attention in expanded form where that costs less."""
        self.batch_invariant = False
        for module in self.modules():
            if isinstance(module, KernelModule):
                module.batch_invariant = False

    def initialise(self, seed: int) -> None:
        """Fill all matrices from N(0, initializer_range²) with an own generator; norms are one, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)

    def selection_bias(self, layer: int) -> Tensor | None:
        """[E] bias of a mixture-of-experts layer (global number), to be changed in place; None with a softmax router."""
        experts = self.get_submodule(f"layers.{layer}.feed_forward")
        assert isinstance(experts, MixtureOfExperts)
        return experts.selection_bias

    def indexer_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn from the indexer's loss alone."""
        return [parameter for name, parameter in self.named_parameters() if ".indexer." in name]
