"""Which transformers models this package can train, checked before any work.

Axes: N rows, D width, V vocabulary.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from samepath.model.transformers.router_replay import layer_of

ATTENTION_TYPES = {"full_attention", "sliding_attention"}
LENGTH_BOUND_ROPE = {"dynamic", "longrope"}
"""Rotary types whose frequencies depend on the longest sequence of a batch: packing would change every other one."""
HEAD_SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def model_class(folder: Path) -> type[PreTrainedModel]:
    """The class that `config.json` names; quantised weights are refused. Not AutoModel: importing vLLM gives some model types another configuration there."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint needs config.json; none in {folder}")
    data = json.loads(path.read_text())
    if data.get("quantization_config"):
        raise ValueError(
            f"{path}: quantization_config must not be there: quantised weights train with model.implementation=own alone. Make a plain copy first "
            "(`samepath convert FOLDER OUT`, if they are FP8 with a scale for each block)."
        )
    architecture = (data.get("architectures") or ["none"])[0]
    found = getattr(transformers, architecture, None) if architecture.endswith("ForCausalLM") else None
    if found is None:
        raise ValueError(
            f"{path}: architectures must name a causal language model of transformers {transformers.__version__}; got {architecture}"
        )
    model: type[PreTrainedModel] = found
    return model


def blank_model(folder: Path) -> PreTrainedModel:
    """The model of a checkpoint folder without weights or memory, checked like a loaded one. Raises as `check_config` and `check_head`."""
    kind = model_class(folder)
    config = kind.config_class.from_pretrained(folder)
    check_config(config.get_text_config())
    with torch.device("meta"):
        model = kind(config)
    check_head(model.get_output_embeddings(), config)
    return model


def check_config(config: PreTrainedConfig) -> None:
    """Raise ValueError, with a reason, for a model that packed attention or the chunked head would compute wrongly."""
    problems = []
    types = set(getattr(config, "layer_types", None) or ()) - ATTENTION_TYPES
    if hasattr(config, "index_topk"):
        problems.append(
            "its indexer breaks ties between keys by torch.topk, whose order depends on the layout of the batch; DeepSeek-V3.2 "
            "checkpoints run with model.implementation: own, where ties go to the earlier key"
        )
    elif types:
        problems.append(
            f"its attention types {sorted(types)} mix positions in ways that packed sequences cannot keep apart"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type in LENGTH_BOUND_ROPE:
        problems.append(f"its rotary embedding ({rope_type}) depends on the longest sequence of a batch")
    for name in HEAD_SCALES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            problems.append(
                f"its head applies {name}={getattr(config, name)}, which the chunked log-probability head does not"
            )
    if getattr(config, "is_encoder_decoder", False):
        problems.append("it is an encoder-decoder")
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        problems.append("its configuration has no max_position_embeddings")
    if problems:
        raise ValueError(f"implementation: transformers cannot train {config.model_type}: {'; '.join(problems)}")


def check_head(head: nn.Module | None, config: PreTrainedConfig) -> None:
    """Raise ValueError unless the head is one matrix."""
    if not isinstance(head, nn.Linear) or head.bias is not None:
        kind = "no linear head" if not isinstance(head, nn.Linear) else "a bias"
        raise ValueError(f"implementation: transformers needs a head of one matrix; {config.model_type} has {kind}")


def check_logits(logits_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor, config: PreTrainedConfig) -> None:
    """Raise ValueError unless the model's own logits are hidden · weightᵀ: catches every scale and cap whatever its name."""
    own_NV = hidden_ND @ weight_VD.T
    if not torch.allclose(own_NV, logits_NV, rtol=1e-3, atol=1e-4 * float(logits_NV.abs().max()) + 1e-6):
        raise ValueError(
            f"{config.model_type}: logits must equal hidden · headᵀ; they differ by {float((own_NV - logits_NV).abs().max()):.3g}. "
            "Its head does something that the chunked log-probability head does not apply."
        )


def check_loading(info: dict[str, Any], folder: Path, num_layers: int) -> None:
    """Raise ValueError if a weight was left at random or a tensor of the checkpoint has no place.

    Layers behind the last one predict further tokens; they are no part of the policy.
    """
    missing = sorted(info["missing_keys"])
    unexpected = sorted(name for name in info["unexpected_keys"] if (layer_of(name) or 0) < num_layers)
    if missing or unexpected or info["mismatched_keys"]:
        raise ValueError(
            f"{folder}: checkpoint tensors must match the config; missing {missing[:5]} ({len(missing)}), "
            f"unknown {unexpected[:5]} ({len(unexpected)})"
        )
