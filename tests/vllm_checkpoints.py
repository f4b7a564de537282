"""Tiny random checkpoints of published families, written with transformers, and what transformers says about vLLM's samples."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rollout.types import Segment

ALPHABET = "".join(chr(code) for code in range(33, 127))
VOCAB_SIZE = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture and how its routers choose."""

    name: str
    config: Callable[[], Any]
    moe_layers: tuple[int, ...] = ()
    num_experts: int = 0
    num_chosen: int = 0


def _qwen3_moe() -> Any:
    return transformers.Qwen3MoeConfig(
        **COMMON,
        head_dim=32,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    )


def _olmoe() -> Any:
    return transformers.OlmoeConfig(
        **{**COMMON, "num_attention_heads": 2}, intermediate_size=32, num_experts=8, num_experts_per_tok=3
    )


def _mixtral() -> Any:
    return transformers.MixtralConfig(
        **COMMON, head_dim=32, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    )


def _deepseek_v3() -> Any:
    config = transformers.DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": 4},
        intermediate_size=96,
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    # transformers leaves them out; without them vLLM knows no selection bias.
    config.topk_method, config.scoring_func = "noaux_tc", "sigmoid"
    return config


def _llama() -> Any:
    return transformers.LlamaConfig(**COMMON, head_dim=32, intermediate_size=96)


FAMILIES = (
    Family(name="qwen3_moe", config=_qwen3_moe, moe_layers=(0, 2), num_experts=8, num_chosen=2),
    Family(name="olmoe", config=_olmoe, moe_layers=(0, 1, 2), num_experts=8, num_chosen=3),
    Family(name="mixtral", config=_mixtral, moe_layers=(0, 1, 2), num_experts=4, num_chosen=2),
    Family(name="deepseek_v3", config=_deepseek_v3, moe_layers=(1, 2), num_experts=8, num_chosen=2),
    Family(name="llama", config=_llama),
)
BY_NAME = {family.name: family for family in FAMILIES}


def write_checkpoint(family: Family, folder: Path, seed: int = 0) -> Path:
    """A self-contained folder with seeded random weights and a character tokenizer."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Routers and heads far from uniform, so that a wrong choice or a wrong temperature is seen.
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3 if "lm_head" in name or ".gate." in name else 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.05)
    model.save_pretrained(folder)
    # Once vLLM is imported, it has changed the type under which transformers writes DeepSeek-V3.
    config = {**json.loads((folder / "config.json").read_text()), "model_type": family.name}
    config |= {
        name: getattr(family.config(), name)
        for name in ("topk_method", "scoring_func")
        if hasattr(family.config(), name)
    }
    (folder / "config.json").write_text(json.dumps(config))
    character_tokenizer(ALPHABET).save(folder)
    return folder


class Reference:
    """transformers' own forward of a checkpoint, with every router's choice."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family = family
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._chosen: dict[int, Tensor] = {}
        for layer in family.moe_layers:
            mlp = self.model.model.layers[layer].mlp
            mlp.experts.register_forward_pre_hook(self._keep(layer), with_kwargs=True)

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            self._chosen[layer] = options["top_k_index"] if "top_k_index" in options else args[1]

        return hook

    @torch.no_grad()
    def __call__(self, token_ids: NDArray[np.int32]) -> tuple[Tensor, NDArray[np.int64]]:
        """(logits [T, V], chosen experts [T, L, X], sorted) of one sequence."""
        ids = torch.from_numpy(token_ids.astype(np.int64))[None]
        logits_TV = self.model(ids, use_cache=False).logits[0]
        layers = [self._chosen[layer].view(len(token_ids), -1).sort(-1).values for layer in self.family.moe_layers]
        chosen = torch.stack(layers, 1).numpy() if layers else np.zeros((len(token_ids), 0, 0), np.int64)
        return logits_TV, chosen


def compare(reference: Reference, segment: Segment, temperature: float = 1.0) -> tuple[int, float]:
    """((token, layer) whose experts differ, largest |Δ log-probability| of a sampled token) of one record."""
    logits_TV, chosen_TLX = reference(segment.token_ids)
    different = int((np.sort(segment.routes[:-1], -1) != chosen_TLX[:-1]).any(-1).sum())
    scaled_TV = logits_TV / temperature
    if segment.support is not None:
        excluded_TV = torch.zeros_like(scaled_TV, dtype=torch.bool)
        first = 0
        for row, count in zip(segment.trained.nonzero()[0] - 1, segment.support.counts):
            if count:
                excluded_TV[row] = True
                excluded_TV[row, torch.from_numpy(segment.support.ids[first : first + count].astype(np.int64))] = False
            first += count
        scaled_TV = scaled_TV.masked_fill(excluded_TV, -torch.inf)
    logprobs_TV = scaled_TV.log_softmax(-1)
    rows = segment.trained.nonzero()[0]
    theirs = logprobs_TV[rows - 1, torch.from_numpy(segment.token_ids[rows].astype(np.int64))].numpy()
    return different, float(np.abs(theirs - segment.sampler_logprobs[rows]).max())
