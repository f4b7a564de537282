"""Methods that vLLM adds to its worker: taking new weights in place, and naming the routed layers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from samepath.rollout.vllm.network import RouteTap, SamepathForCausalLM


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
