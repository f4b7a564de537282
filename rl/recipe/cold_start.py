"""Settings of the supervised start."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from samepath.rl.recipe.optimizer import OptimizerSettings


class ColdStartOptimizerSettings(OptimizerSettings):
    """AdamW as in RL; the rate falls by itself, so that the checkpoint that RL starts from is settled."""

    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the rate falls over the cold start's steps"
    )


class ColdStartSettings(BaseModel):
    """Supervised training before RL; `steps: 0` starts from the model as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(0, ge=0, description="optimiser steps")
    batch_size: int = Field(64, ge=1, description="worked answers of a step")
    traces: str = Field(
        "samepath.rl.learner.worked_answers:arithmetic_sum",
        pattern=r"^[\w.]+:\w+$",
        description="function that writes a worked answer for a task row, or a worked conversation for an environment's",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that function")
    late_steps: int = Field(
        0, ge=0, description="last steps, whose worked answers are written with `late_options` laid over `options`"
    )
    late_options: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments for the last steps, such as more slips: a start that knows but is careless",
    )
    dense_warmup_steps: int = Field(
        0, ge=0, description="first steps with dense attention while the indexer learns to imitate it"
    )
    bias_update_rate: float = Field(
        0.001, ge=0, description="step of the selection bias towards an even expert load (arXiv:2408.15664); 0 = off"
    )
    optimizer: ColdStartOptimizerSettings = Field(
        default_factory=lambda: ColdStartOptimizerSettings(), description="its own optimiser"
    )
