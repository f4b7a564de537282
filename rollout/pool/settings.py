"""Settings of the rollout workers."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

OnNewWeights = Literal["finish", "continue", "recompute"]
"""What becomes of samples that are under way when weights come: they end on the old ones and only then these are taken, they go on behind
their old keys, or they go on behind a context that the new weights computed."""


Placing = Literal["any", "pack", "spread"]
"""Where actors stand on a cluster of several nodes: wherever Ray puts them, with nothing reserved; on as few nodes as have room; on as many as there are."""
RESERVED_CPUS = 1.0
"""What an actor that has its room reserves, if the recipe does not say."""


class RolloutSettings(BaseModel):
    """How many workers sample, and how long anybody waits for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: int = Field(
        2,
        ge=1,
        le=1024,
        description="rollout actors under Ray; `runtime: inline` has one engine, or one in each of `learner.ranks`",
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a worker")
    start_timeout_s: float = Field(120.0, gt=0, description="longest wait for a worker to load its model, seconds")
    stall_timeout_s: float = Field(
        120.0, gt=0, description="longest time without any answer from a worker before it is replaced, seconds"
    )
    max_replacements: int = Field(8, ge=0, description="workers replaced in one run before it is stopped")
    gpus: float = Field(
        1.0, gt=0, le=1, description="under Ray with `model.device: cuda`: GPUs of a worker; a fraction shares one"
    )
    own_process: bool = Field(
        False,
        description="under `runtime: inline`: the engine in a process beside the learner's; with `model.device: cuda` on the first GPU behind those of "
        "`learner.ranks`",
    )
    placing: Placing = Field(
        "any",
        description="nodes of a Ray cluster: `any` leaves it to Ray and reserves no CPUs; `pack` on as few as have room, `spread` on as many as "
        "there are. A worker whose node is lost goes to another one that has room",
    )
    cpus: float = Field(RESERVED_CPUS, gt=0, description="with `placing` other than `any`: CPUs that a worker reserves")

    @model_validator(mode="after")
    def _reserves(self) -> Self:
        if self.placing == "any" and self.cpus != RESERVED_CPUS:
            raise ValueError(
                f"cpus={self.cpus:g} is reserved with placing pack or spread; got placing=any, which reserves none"
            )
        return self
