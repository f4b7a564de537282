"""Settings of the checkpoints that a run keeps."""

from pydantic import BaseModel, ConfigDict, Field


class CheckpointSettings(BaseModel):
    """What is kept for resuming."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(0, ge=0, description="steps between checkpoints; 0 only at the end (and when interrupted)")
    keep: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: bool = Field(
        True,
        description="keep beside those the checkpoint whose evaluation had the highest accuracy (`eval/accuracy`, of equal ones the earliest; step 0 is "
        "the reference); an evaluation that is a new best begins a checkpoint of its step",
    )
    asynchronous: bool = Field(
        True,
        description="write checkpoints while training goes on, from a copy of weights and optimiser state in host memory that lives until it is written "
        "(12 bytes a parameter in float32, 14 in bfloat16 with its masters); false writes them between two steps, without the copy",
    )
    keep_sampled: bool = Field(
        False,
        description="with rl.max_weight_lag ≥ 1: keep every sampled group in the run's folder, so that `samepath replay-run --from-rollouts` trains "
        "them again; else they go once no checkpoint needs them",
    )
