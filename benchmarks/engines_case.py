"""What every engine of `make bench-engines` is given, and what each gives back. Imports no torch: memory is the peer's own."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.setting import PeerSetting

ModelName = Literal["tiny-qwen3-moe", "smollm2"]
EnginePeer = Literal["builtin", "vllm", "generate"]
Precision = Literal["float32", "bfloat16"]

TINY_VOCAB = 512
TINY_MOE = {
    "vocab_size": TINY_VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}
"""Sizes of the random Qwen3-MoE, about 1.1 M parameters, under transformers' names."""

FIRST_ORDINARY_ID = 2
"""Ids below are the special tokens of both models' tokenizers; prompts hold none."""


class EngineCase(BaseModel):
    """One measurement of one engine on one model.

    Example:
        EngineCase(model="tiny-qwen3-moe", folder="/tmp/model", vocab_size=512, peer="builtin", precision="float32")
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelName = Field(description="which model")
    folder: str = Field(description="checkpoint folder")
    vocab_size: int = Field(ge=4, description="ids that prompts are drawn from")
    peer: EnginePeer = Field(description="which engine")
    precision: Precision = Field("float32", description="of weights and activations")
    setting: PeerSetting = Field(PeerSetting(), description="how the engine's process is run")
    num_sequences: int = Field(32, ge=1, description="sequences sampled together")
    prompt_tokens: int = Field(16, ge=1, description="length of every prompt, tokens")
    new_tokens: int = Field(64, ge=1, description="length of every response, tokens")
    rounds: int = Field(3, ge=1, description="timed rounds after one of warm-up; the median counts")
    seed: int = Field(0, ge=0, description="prompts follow from it")

    @property
    def title(self) -> str:
        """For messages: `vllm in bfloat16, smollm2`."""
        return f"{self.peer} in {self.precision}, {self.model}"


class EngineResult(BaseModel):
    """What one process measured.

    Example:
        EngineResult(case=case, versions={"torch": "2.13.0"}, start_s=0.4, round_s=(0.45, 0.44, 0.46), first_token_s=0.004,
                     update_s=0.01, peak_bytes=400 << 20, parameters=1123456)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: EngineCase = Field(description="what was asked")
    versions: dict[str, str] = Field(description="packages that ran")
    start_s: float = Field(description="imports and construction until the engine can be asked, seconds")
    round_s: tuple[float, ...] = Field(description="wall time of each timed round, seconds")
    first_token_s: float = Field(description="one fresh prompt alone until its first token, median of five, seconds")
    update_s: float = Field(description="taking a full set of new weights from memory, median of three, seconds")
    peak_bytes: int = Field(description="largest resident size of the process")
    parameters: int = Field(description="of the model")

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens per second of the median round."""
        return float(self.case.num_sequences * self.case.new_tokens / np.median(self.round_s))


def prompts(case: EngineCase, round_: int, count: int) -> list[tuple[int, ...]]:
    """`count` random prompts; no two rounds share one, so that no prefix cache can help."""
    rng = np.random.default_rng([case.seed, round_])
    ids = rng.integers(FIRST_ORDINARY_ID, case.vocab_size, (count, case.prompt_tokens))
    return [tuple(row) for row in ids.tolist()]
