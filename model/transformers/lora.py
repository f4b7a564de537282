"""Low-rank adapters (arXiv:2106.09685) on foreign models, through peft: trained alone, merged wherever weights leave the learner."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from samepath.model.transformers.lora_settings import LoraSettings

ADAPTER = "default"


def check_targets(model: nn.Module, settings: LoraSettings) -> None:
    """Raise ValueError for a target that is not a linear layer of the model, or is its head."""
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    wrong = sorted(set(settings.target_modules) - (linear - {"lm_head"}))
    if wrong:
        raise ValueError(
            f"learner.lora.target_modules must name linear layers of {type(model).__name__} other than its head: "
            f"{sorted(linear - {'lm_head'})}; got {wrong}"
        )


def add_adapters(model: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Put fresh adapters (B = 0: the policy is unchanged) into the model and freeze the rest.

    Raises ModuleNotFoundError without peft, ValueError for a target that is not there or is the head.
    """
    try:
        # Late: peft is an extra that only adapters need.
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("learner.lora needs the package peft: `pip install samepath[lora]`") from error
    check_targets(model, settings)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=list(settings.target_modules)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, by parameter name; empty without any."""
    return {name: tensor for name, tensor in model.state_dict().items() if _is_adapter(name)}


def load_adapters(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fill the adapters in place. Raises ValueError unless names and shapes match."""
    own = adapter_tensors(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError(
            "the checkpoint's adapters must have the names and shapes of learner.lora; rank or target_modules have changed since"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def share_weights(reader: nn.Module, owner: nn.Module) -> None:
    """Let `reader` hold the tensors of `owner`, whose frozen weights are equal: one copy in memory instead of two."""
    tensors = dict(owner.named_parameters())
    for name, parameter in reader.named_parameters():
        parameter.data = tensors[name].data


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with W + alpha/rank · B·A in place of W, under the names it had before; the model is not changed."""
    return merged(dict(model.state_dict()), model.named_modules())


@torch.no_grad()
def merged(state: dict[str, Tensor], modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """The same of a part of a model: of these tensors, which these modules hold."""
    if not any(_is_adapter(name) for name in state):
        return state
    whole = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not _is_adapter(name)}
    for name, module in modules:
        if hasattr(module, "lora_A"):
            adapted: Any = module
            whole[f"{name}.weight"] = adapted.base_layer.weight + adapted.get_delta_weight(ADAPTER)
    return whole


def _is_adapter(name: str) -> bool:
    return re.search(r"\.lora_[AB]\.", name) is not None
