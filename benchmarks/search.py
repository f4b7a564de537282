"""The small search that gives every peer its fastest setting, and the ledger of what was tried and what failed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.process import BenchError
from benchmarks.setting import PeerSetting

Result = TypeVar("Result")


class Trial(BaseModel):
    """One setting that the search tried.

    Example:
        Trial(what="trl, constant", setting=PeerSetting(threads=2), speed=212.5)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(description="peer and case")
    setting: PeerSetting = Field(description="how it was run")
    speed: float | None = Field(description="of the benchmark's own unit, per second; None: it failed")


class Failure(BaseModel):
    """A process that ended without a result.

    Example:
        Failure(what="vllm in bfloat16, smollm2", setting=PeerSetting(), message="… ended by signal 11: …")
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(description="peer and case")
    setting: PeerSetting = Field(description="how it was run")
    message: str = Field(description="the end of its output")


@dataclass(slots=True)
class Ledger:
    """Everything that was tried and everything that failed, in order; one peer's failure never ends the others' measurements."""

    trials: list[Trial] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def attempt(self, what: str, setting: PeerSetting, run: Callable[[PeerSetting], Result]) -> Result | None:
        """The result of one process, or None after writing down its failure."""
        try:
            return run(setting)
        except BenchError as error:
            self.failures.append(Failure(what=what, setting=setting, message=str(error)))
            typer.echo(f"failed: {what}, {setting}: {error}", err=True)
            return None

    def fastest(
        self, what: str, settings: Sequence[PeerSetting], speed: Callable[[PeerSetting], float]
    ) -> PeerSetting | None:
        """The setting with the highest speed in one short run of each (a single one needs none); None if every one failed."""
        if len(settings) == 1:
            return settings[0]
        best: Trial | None = None
        for setting in settings:
            trial = Trial(what=what, setting=setting, speed=self.attempt(what, setting, speed))
            self.trials.append(trial)
            if trial.speed is None:
                continue
            typer.echo(f"tried   {what}: {setting}: {trial.speed:,.1f}/s")
            if best is None or best.speed is None or trial.speed > best.speed:
                best = trial
        return None if best is None else best.setting

    def plain(self) -> dict[str, Any]:
        """Trials and failures as plain data."""
        return {
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "failures": [failure.model_dump(mode="json") for failure in self.failures],
        }
