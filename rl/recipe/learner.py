"""Settings of the learner: how it computes, and what of the model it trains."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samepath.model.transformers.lora_settings import LoraSettings


class RankSettings(BaseModel):
    """The processes that learn together; a run on text has these settings alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranks: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that learn together, one CPU core or GPU each; each runs a share of the passes",
    )
    min_passes: int = Field(
        1,
        ge=1,
        le=4096,
        description="least number of passes of an update, if it has as many rollouts (of text: sequences). Equal passes give equal bits on any number of "
        "ranks",
    )
    update_timeout_s: float = Field(
        600.0,
        gt=0,
        description="longest wait for the updates of one step under Ray, and of a rank for the others, seconds",
    )


class LearnerSettings(RankSettings):
    """How the learner computes."""

    shard: Literal["none", "full"] = Field(
        "none",
        description="what a rank holds: everything, or with `full` its share of weights, gradients, optimiser and reference (FSDP); layers are gathered "
        "one by one",
    )
    expert_parallel: bool = Field(
        False,
        description="own network with `shard: full`: a rank's share of the routed experts is whole experts, which are never gathered: tokens travel to "
        "the ranks that hold their experts, and back. `ranks` must divide the experts",
    )
    restarts: int = Field(
        0,
        ge=0,
        le=100,
        description="how often a run that loses a process of its learner goes on by itself from its last checkpoint, with new ones",
    )
    max_tokens_per_pass: int = Field(
        4096,
        ge=16,
        description="rows of one forward and backward pass; a longer rollout is spread over several, segment by segment, and a longer segment stands alone",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="transformers models: arithmetic of the layers; weights, optimiser and log-probabilities stay in float32",
    )
    activation_checkpointing: bool = Field(
        False,
        description="keep only the layers' inputs for the backward and run each layer twice: less memory, same gradients",
    )
    lora: LoraSettings = Field(
        default_factory=lambda: LoraSettings(), description="transformers models: low-rank adapters"
    )
    weight_bucket_bytes: int = Field(
        64 << 20,
        ge=1 << 10,
        le=4 << 30,
        description="new weights cross to workers in other processes in pieces of so many bytes; a larger tensor crosses alone",
    )
    weight_deltas: bool = Field(
        False,
        description="under Ray, of each tensor only the numbers that changed cross to the built-in engines, where that is less than all of it; costs the "
        "learner's process one more copy of the weights. A low learning rate leaves most bfloat16 numbers as they were, and hardly one in float32",
    )
    indexer: Literal["frozen", "trained"] = Field(
        "frozen", description="train the indexer with its own loss during RL, or not"
    )
    indexer_lr_scale: float = Field(1.0, gt=0, description="indexer's learning rate over the policy's, when trained")
