"""Settings of the faults that a run is to survive: a plan to break it on purpose, for tests and soaks. Nothing is planned by default."""

from fnmatch import fnmatchcase
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

FaultName = Literal[
    "worker_killed",
    "worker_stopped",
    "rank_killed",
    "reward_child_killed",
    "store_gone",
    "nan_reward",
    "nan_logprob",
    "disk_full",
    "driver_killed",
]
"""A rollout worker, a rank of the learner, a reward child or the run's own process is killed (SIGKILL), a worker is stopped (SIGSTOP), MLflow does
not answer, a reward or a recorded log-probability is NaN, or the run's folder takes no more."""
FAULTS: tuple[FaultName, ...] = get_args(FaultName)

Moment = Literal["begin", "sampling", "waiting", "scoring", "learning", "syncing", "recording"]
"""The beginning of a step, or of a phase of it as the display names them; `waiting` is the first of a run that samples ahead."""

OUTAGE_S = 5.0
"""How long MLflow is away if the plan does not say, seconds."""
LEARNERS_FILES = ("checkpoints/step-000001/manifest.json", "reference/manifest.json")
"""Examples of what the learner's own process writes under `runtime: ray`."""


class PlannedFault(BaseModel):
    """One fault, injected once in a run, however often that is resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: FaultName = Field(description="what breaks")
    step: int = Field(ge=1, description="in which step; the first is 1")
    during: Moment = Field(
        "begin",
        description="with the beginning of this phase; a NaN comes with the next reward or update after it",
    )
    file: str = Field(
        "",
        description="`disk_full`, `driver_killed`: instead of `during`, the first write from this step on of a file whose path below the run's "
        "folder is like this (`*` stands for anything), such as `run.json` or `checkpoints/step-000002/*`",
    )
    for_s: float = Field(OUTAGE_S, gt=0, le=3600, description="`store_gone`: how long MLflow does not answer, seconds")

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.fault == "disk_full" and not self.file:
            raise ValueError("disk_full needs file, the write that the disk refuses, such as metrics.jsonl")
        if self.file and self.fault not in ("disk_full", "driver_killed"):
            raise ValueError(f"file belongs to disk_full and driver_killed; got it with {self.fault}")
        if self.file and self.during != "begin":
            raise ValueError("file says when in the step; leave during out")
        if self.for_s != OUTAGE_S and self.fault != "store_gone":
            raise ValueError(f"for_s belongs to store_gone; got it with {self.fault}")
        return self


class FaultSettings(BaseModel):
    """Faults that are injected on purpose. Leave it out of every run whose result counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: tuple[PlannedFault, ...] = Field((), description="faults at named steps, in any order")
    every_s: float = Field(
        0.0,
        ge=0,
        description="seconds from one further fault to the next, on average (half as long to half as long again); 0 for none",
    )
    kinds: tuple[FaultName, ...] = Field(
        (), description="what these further faults are drawn from; one named twice is drawn twice as often"
    )
    seed: int = Field(0, ge=0, description="the draws follow from it, whatever `seed` of the recipe is")

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if bool(self.every_s) != bool(self.kinds):
            raise ValueError(
                f"every_s and kinds belong together: how often, and what is drawn; got every_s={self.every_s:g} and kinds={list(self.kinds)}"
            )
        if self.seed and not self.every_s:
            raise ValueError("seed draws the faults of every_s; without them there is nothing to draw")
        return self

    @property
    def planned(self) -> bool:
        """Whether this run is broken on purpose."""
        return bool(self.at or self.every_s)

    @property
    def named(self) -> tuple[FaultName, ...]:
        """Every fault that may come, once."""
        return tuple(dict.fromkeys([*(one.fault for one in self.at), *self.kinds]))

    def learners_file(self) -> str:
        """A planned file that the learner's own process would write, or ""."""
        return next(
            (one.file for one in self.at if one.file and any(fnmatchcase(path, one.file) for path in LEARNERS_FILES)),
            "",
        )
