"""Settings of what lies between reward and loss: baseline and scale, and answers that ran into the token limit."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AdvantageSettings(BaseModel):
    """How rewards are centred and scaled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: Literal["group_mean", "leave_one_out"] = Field(
        default="group_mean",
        description="`group_mean`: mean of the group's scored rewards. `leave_one_out`: mean of the others (RLOO, arXiv:2402.14740).",
    )
    scale: Literal["none", "group_std", "batch_std"] = Field(
        default="none",
        description=(
            "`none`: as centred (arXiv:2512.02556 §3.1). `group_std`: over the group's standard deviation (GRPO, arXiv:2402.03300). "
            "`batch_std`: over that of all scored rewards (arXiv:2508.08221)."
        ),
    )
    epsilon: float = Field(
        default=1e-6,
        gt=0,
        le=1,
        description="Added to the standard deviation; reward units, above 0. Unused with scale `none`.",
    )


class TruncationSettings(BaseModel):
    """What happens to an answer that ran into the token limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["train", "mask", "penalise"] = Field(
        default="train",
        description=(
            "`train`: like any other. `mask`: counts in its group's baseline, gives no loss (overlong filtering, arXiv:2503.14476). "
            "`penalise`: penalty is taken off its reward."
        ),
    )
    penalty: float = Field(
        default=0.5, ge=0, le=1000, description="Taken off the reward in mode `penalise`; reward units, 0 or more."
    )
