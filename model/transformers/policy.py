"""Any causal language model of transformers as a policy: packed rows in, final hidden states out, routers on the sampler's path.

Axes: N rows (a multiple of 16), D width, V vocabulary, E experts, X experts chosen.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from samepath.kernels.backend import ROW_MULTIPLE, Backend
from samepath.model.key_store import KeyStore
from samepath.model.model_input import ModelInput
from samepath.model.plan import Span, plan_spans
from samepath.model.policy import Policy
from samepath.model.trace import ForwardTrace
from samepath.model.transformers.lora import merged, merged_state
from samepath.model.transformers.packed_attention import ATTENTION_NAME
from samepath.model.transformers.packed_pass import PackedPass, checkpoint_contexts, in_pass
from samepath.model.transformers.router_replay import find_routers, install_replay
from samepath.model.transformers.support import check_config, check_head, check_loading, check_logits, model_class

SIGMOID_ROUTING = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
"""What other loaders ask of a DeepSeek-V3 `config.json` and transformers does not write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersShape:
    """Sizes read from a transformers configuration (see `ModelShape`)."""

    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    moe_layers: tuple[int, ...]
    n_routed_experts: int
    num_experts_per_tok: int
    sparse_layers: tuple[int, ...]
    window_heads: int


class TransformersPolicy(Policy):
    """Wraps a loaded model. Its dropout never runs: sampler and learner would be different policies."""

    def __init__(self, model: PreTrainedModel, backend: Backend = "torch") -> None:
        super().__init__()
        config = model.config.get_text_config()
        check_config(config)
        check_head(model.get_output_embeddings(), config)
        self.model, self.backend = model.eval(), backend
        model.set_attn_implementation(ATTENTION_NAME)
        routers = {layer: router for layer, router in find_routers(model).items() if layer < config.num_hidden_layers}
        install_replay(routers)
        first = next(iter(routers.values()), None)
        self._shape = TransformersShape(
            vocab_size=config.vocab_size,
            num_hidden_layers=config.num_hidden_layers,
            max_position_embeddings=config.max_position_embeddings,
            moe_layers=tuple(routers),
            n_routed_experts=int(first.num_experts) if first else 0,  # type: ignore[arg-type]
            num_experts_per_tok=int(first.top_k) if first else 0,  # type: ignore[arg-type]
            sparse_layers=(),
            window_heads=config.num_attention_heads,
        )
        self._routers = routers
        self._probe()

    @property
    def shape(self) -> TransformersShape:
        """Sizes that replay and diagnostics need."""
        return self._shape

    @property
    def head_weight(self) -> Tensor:
        """[V, D] output matrix."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """The layers, in order."""
        return [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def forward(
        self, batch: ModelInput, store: KeyStore, trace: ForwardTrace, *, num_selected: int | None = None
    ) -> Tensor:
        """Final normed hidden states `[N, D]` on the model's device; `store` is not used, the batch's own rows are the keys.

        Raises ValueError for what only the own network can do, and PassError if a layer leaves the plan or the replay.
        """
        if num_selected is not None:
            raise ValueError("dense warm-up of an indexer needs a model with one: model.implementation: own")
        state = self._pass(batch)
        with in_pass(state):
            hidden_ND = self._hidden(batch)
        state.finish(trace, self._shape.num_hidden_layers, self._shape.moe_layers)
        return hidden_ND

    @property
    def has_selection_bias(self) -> bool:
        """True if its routers select by score + bias, as DeepSeek-V3's do."""
        return any(hasattr(router, "e_score_correction_bias") for router in self._routers.values())

    def train(self, mode: bool = True) -> "TransformersPolicy":
        """Stay in evaluation mode, so that no dropout or router noise parts the learner from the sampler."""
        return self

    @property
    def activation_checkpointing(self) -> bool:
        """Keep only each layer's input and compute the layer again in the backward pass, on the same experts."""
        return bool(self.model.is_gradient_checkpointing)

    @activation_checkpointing.setter
    def activation_checkpointing(self, wanted: bool) -> None:
        if wanted:
            self.model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
        else:
            self.model.gradient_checkpointing_disable()
        for layer in self.decoder_layers:
            # The layer alone looks at this flag; everything inside stays in evaluation mode.
            layer.training = wanted

    def selection_bias(self, layer: int) -> Tensor | None:
        """[E] bias of a sigmoid router, to be changed in place."""
        bias: Tensor | None = getattr(self._routers[layer], "e_score_correction_bias", None)
        return bias

    def _pass(self, batch: ModelInput) -> PackedPass:
        num_rows = batch.token_ids_N.shape[0]
        if num_rows % ROW_MULTIPLE:
            raise ValueError(f"a batch must have a multiple of {ROW_MULTIPLE} rows; got {num_rows}. Pad it.")
        expected = (len(self._shape.moe_layers), num_rows, self._shape.num_experts_per_tok)
        replay = {}
        if batch.replay_LNX is not None:
            if tuple(batch.replay_LNX.shape) != expected:
                raise ValueError(
                    f"replayed routes must have shape [L_moe, N, X] = {expected}; got {tuple(batch.replay_LNX.shape)}"
                )
            replay = dict(zip(self._shape.moe_layers, batch.replay_LNX.to(self.model.device)))
        return PackedPass(
            plan=batch.plan.to(self.model.device),
            replay=replay,
        )

    def _hidden(self, batch: ModelInput) -> Tensor:
        output = self.model.get_decoder()(
            input_ids=batch.token_ids_N.to(self.model.device)[None],
            position_ids=batch.positions_N.to(self.model.device)[None],
            use_cache=False,
        )
        hidden_ND: Tensor = output.last_hidden_state[0]
        return hidden_ND

    @torch.no_grad()
    def _probe(self) -> None:
        """Run sixteen tokens once: the head, every layer's attention and every router must be what this class takes them for."""
        span = Span(row=0, first=0, count=16, keys=torch.arange(16))
        batch = ModelInput(
            token_ids_N=torch.arange(16) % self._shape.vocab_size,
            positions_N=torch.arange(16),
            plan=plan_spans([span], 16, self._shape.window_heads),
        )
        state = self._pass(batch)
        state.check_gates = True
        with in_pass(state):
            hidden_ND = self._hidden(batch)
        state.finish(ForwardTrace(), self._shape.num_hidden_layers, self._shape.moe_layers)
        with in_pass(self._pass(batch)):
            output = self.model(
                input_ids=batch.token_ids_N.to(self.model.device)[None],
                position_ids=batch.positions_N.to(self.model.device)[None],
                use_cache=False,
            )
        check_logits(output.logits[0], hidden_ND, self.head_weight, self.model.config.get_text_config())


def load_transformers(folder: Path, backend: Backend) -> TransformersPolicy:
    """Load a checkpoint folder in float32. Raises ValueError or FileNotFoundError that name what does not fit."""
    logging.disable_progress_bar()
    model, info = model_class(folder).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    check_loading(info, folder, model.config.get_text_config().num_hidden_layers)
    return TransformersPolicy(model, backend)


def new_transformers(folder: Path) -> TransformersPolicy:
    """The model of a folder's `config.json`, in float32, with random weights."""
    kind = model_class(folder)
    return TransformersPolicy(kind(kind.config_class.from_pretrained(folder)).float())


def checkpoint_tensors(policy: TransformersPolicy) -> dict[str, Tensor]:
    """The weights under the names of their published checkpoints, one tensor an expert; adapters merged, tied copies left out."""
    return _published(policy, merged_state(policy.model))


def checkpoint_part(policy: TransformersPolicy, layer: nn.Module | None) -> dict[str, Tensor]:
    """What of `checkpoint_tensors` stands in a layer, or outside all of them."""
    inside = {inner for one in policy.decoder_layers for inner in one.modules()}
    chosen = set(layer.modules()) if layer is not None else set(policy.model.modules()) - inside
    modules = [(name, module) for name, module in policy.model.named_modules() if module in chosen]
    state = {
        f"{name}.{own}" if name else own: tensor.detach()
        for name, module in modules
        for own, tensor in (*module.named_parameters(recurse=False), *_saved_buffers(module))
    }
    return _published(policy, merged(state, modules))


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that a checkpoint holds."""
    without = module._non_persistent_buffers_set
    return ((name, buffer) for name, buffer in module.named_buffers(recurse=False) if name not in without)


def _published(policy: TransformersPolicy, state: dict[str, Tensor]) -> dict[str, Tensor]:
    tied = set(getattr(policy.model, "all_tied_weights_keys", None) or ())
    own = {name: tensor for name, tensor in state.items() if name not in tied}
    return dict(revert_weight_conversion(policy.model, own))


def save_transformers(policy: TransformersPolicy, folder: Path) -> None:
    """Write `config.json` and safetensors as transformers does, adapters merged, with the routing keys that other loaders need."""
    write_transformers(policy, merged_state(policy.model), folder)


def write_transformers(policy: TransformersPolicy, state: Mapping[str, Tensor], folder: Path) -> None:
    """See `save_transformers`; `state` is the model's `merged_state`, or a copy of it. Of the policy only settings are read."""
    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.save_pretrained(folder, state_dict=dict(state))
    _add_routing(policy, folder)


def write_transformers_config(policy: TransformersPolicy, folder: Path) -> None:
    """What `save_transformers` writes beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.config.save_pretrained(folder)
    if policy.model.can_generate() and policy.model.generation_config is not None:
        policy.model.generation_config.save_pretrained(folder)
    _add_routing(policy, folder)


def _add_routing(policy: TransformersPolicy, folder: Path) -> None:
    if policy.has_selection_bias:
        path = folder / "config.json"
        config: dict[str, Any] = json.loads(path.read_text())
        path.write_text(json.dumps({**config, **SIGMOID_ROUTING}, indent=2) + "\n")
