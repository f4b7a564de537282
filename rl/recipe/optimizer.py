"""Settings of the optimiser, of the cold start's as of RL's."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OptimizerSettings(BaseModel):
    """AdamW (arXiv:1711.05101) with gradient clipping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-3, gt=0, le=1, description="learning rate")
    warmup_updates: int = Field(0, ge=0, description="optimiser steps over which the rate rises linearly")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="how the rate falls, after the rise as during it, over all updates that the recipe plans (a step without anything to learn takes none)",
    )
    min_lr_share: float = Field(
        0.1, ge=0, le=1, description="share of the rate that `linear` and `cosine` fall to; `constant` does not fall"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
