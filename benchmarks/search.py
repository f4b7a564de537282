"""The small search that gives every peer its fastest setting, and the ledger of what was tried and what failed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.process import LONGEST_RUN_S, BenchError, TooSlowError
from benchmarks.setting import PeerSetting

Result = TypeVar("Result")

PATIENCE = 3.0
"""A trial is stopped after this many times the shortest trial before it: it has lost by then."""
SHORTEST_LIMIT_S = 60.0


class Trial(BaseModel):
    """One setting that the search tried.

    Example:
        Trial(what="trl, constant", setting=PeerSetting(threads=2), speed=212.5)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(description="peer and case")
    setting: PeerSetting = Field(description="how it was run")
    speed: float | None = Field(description="of the benchmark's own unit, per second; None: it has none")
    note: str = Field("", description="why it has none: failed, or stopped because it had lost")


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
            self._fail(what, setting, error)
            return None

    def fastest(
        self, what: str, settings: Sequence[PeerSetting], speed: Callable[[PeerSetting, float], float]
    ) -> PeerSetting | None:
        """The setting with the highest speed in one short run of each (a single one needs none); None if every one failed.

        `speed(setting, limit_s)` runs it, and raises TooSlowError past the limit.
        """
        if len(settings) == 1:
            return settings[0]
        best: Trial | None = None
        limit_s = LONGEST_RUN_S
        for setting in settings:
            started = time.perf_counter()
            trial = self._trial(what, setting, speed, limit_s)
            self.trials.append(trial)
            typer.echo(f"tried   {what}: {setting}: {trial.note or f'{trial.speed:,.1f}/s'}")
            if trial.speed is None:
                continue
            limit_s = min(limit_s, max(SHORTEST_LIMIT_S, PATIENCE * (time.perf_counter() - started)))
            if best is None or best.speed is None or trial.speed > best.speed:
                best = trial
        return None if best is None else best.setting

    def _trial(
        self, what: str, setting: PeerSetting, speed: Callable[[PeerSetting, float], float], limit_s: float
    ) -> Trial:
        try:
            return Trial(what=what, setting=setting, speed=speed(setting, limit_s))
        except BenchError as error:
            if isinstance(error, TooSlowError) and limit_s < LONGEST_RUN_S:
                return Trial(what=what, setting=setting, speed=None, note=f"stopped after {limit_s:.0f} s")
            self._fail(what, setting, error)
            return Trial(what=what, setting=setting, speed=None, note="failed")

    def _fail(self, what: str, setting: PeerSetting, error: BenchError) -> None:
        self.failures.append(Failure(what=what, setting=setting, message=str(error)))
        typer.echo(f"failed: {what}, {setting}: {error}", err=True)

    def plain(self) -> dict[str, Any]:
        """Trials and failures as plain data."""
        return {
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "failures": [failure.model_dump(mode="json") for failure in self.failures],
        }
