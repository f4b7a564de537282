"""New weights for a running vLLM engine: checked against the checkpoint it was started from, then loaded in place."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from samepath.rollout.vllm_network import RouteTap, SamepathForCausalLM

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
HEAD = "lm_head.weight"


class WeightExtension:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`), reached by `collective_rpc`."""

    model_runner: Any

    def samepath_load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load published tensors in place.

        In version 0.32 a reload on CPU skips the packing of the experts' weights where a kernel already exists, and goes on with
        unpacked ones: wrong results without an error. Without the kernel it packs again.
        """
        model = self.model_runner.get_model()
        if isinstance(model, SamepathForCausalLM):
            model.load_weights(tensors.items())
            return
        for module in model.modules():
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None
        self.model_runner.reload_weights(weights_iterator=iter(tensors.items()))
        for module in model.modules():
            if isinstance(module, ParallelLMHead):
                # A head tied to the embedding is loaded by no name of its own, so that the copy packed for it on CPU stays the old one.
                module.quant_method.process_weights_after_loading(module)

    def samepath_moe_layers(self) -> list[tuple[str, int, int, int]]:
        """(module name, layer of the recorder's buffer, experts, experts chosen) of every routed layer of the loaded model."""
        found = []
        for name, module in self.model_runner.get_model().named_modules():
            if isinstance(module, MoERunner):
                sizes = module.moe_config
                found.append((name, int(module.layer_id), sizes.num_logical_experts, sizes.experts_per_token))
            elif isinstance(module, RouteTap):
                found.append((name, module.layer_id, module.num_experts, module.num_chosen))
        return found


class PublishedWeights:
    """Names and shapes that new weights must have: those of the checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of the folder's safetensors files. Raises FileNotFoundError if there are none."""
        config = json.loads((folder / "config.json").read_text())
        self._num_layers = int(config.get("text_config", config)["num_hidden_layers"])
        self._tied = bool(config.get("tie_word_embeddings", False))
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"an engine starts from safetensors files; none in {folder}")
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (not a mapping)
                    if self._is_policy(name):
                        self._shapes[name] = tuple(reader.get_slice(name).get_shape())

    def checked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The policy's own tensors. Raises ValueError naming what is missing, unknown, misshapen or of a wrong type."""
        policy = {name: tensor for name, tensor in tensors.items() if self._is_policy(name)}
        wanted = dict(self._shapes)
        if self._tied:
            # With one matrix for embedding and head, writers differ in whether they store it twice.
            wanted.pop(HEAD, None)
            policy.pop(HEAD, None)
        missing, unknown = sorted(set(wanted) - set(policy)), sorted(set(policy) - set(wanted))
        if missing or unknown:
            raise ValueError(
                f"new weights must have the names of the engine's checkpoint; missing {missing[:5]} ({len(missing)}), "
                f"unknown {unknown[:5]} ({len(unknown)})"
            )
        for name, tensor in policy.items():
            if tuple(tensor.shape) != wanted[name]:
                raise ValueError(f"{name} must have shape {wanted[name]}; got {tuple(tensor.shape)}")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} must be a floating-point tensor; got {tensor.dtype}")
        return policy

    def _is_policy(self, name: str) -> bool:
        """False for a multi-token-prediction layer, which stands behind the last layer in published checkpoints."""
        found = _LAYER.search(name)
        return found is None or int(found[1]) < self._num_layers
