"""What time decided in a run that samples while it learns, a line a step in `history.jsonl`: from it the run can be made again to the bit.

Which groups a step trained, which weights drew which tokens of each sample, how its reward went, and a fingerprint of the weights that came of it. A step
that a resumed run makes again the same way has its line already.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samepath.model.durable_file import append_lines, whole_lines
from samepath.rl.run_folder import HISTORY
from samepath.rollout.types import Group, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLine:
    """One sample that was trained.

    Example: five tokens of version 3 and then two of version 4:
        SampleLine(drawn=((3, 5), (4, 2)), record="9f3c…", status="ok", reward=1.0)
    """

    drawn: tuple[tuple[int, int], ...]
    """(weight version, tokens that it drew), in order."""
    record: str
    """`record_digest` of all that was recorded; of a sample that failed the reason."""
    status: str
    """How its reward went; empty without one."""
    reward: float | None
    """Total; None unless the status is `ok`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """One group that was trained."""

    number: int
    """Of the feed."""
    samples: tuple[SampleLine, ...]
    """In sample order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """One step."""

    step: int
    """From 0: the version that learned."""
    weights: str
    """fingerprint of the weights after it (`Header`): of version `step` + 1."""
    groups: tuple[GroupLine, ...]
    """What it trained, in order."""

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":")) + "\n"


class History:
    """The lines of one run, in the order of the steps; one that a kill left open at the end of the file is not there."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / HISTORY
        self._places: dict[int, int] = {}
        """Where each step's line begins, bytes."""
        place = 0
        for data in whole_lines(self._path) if self._path.is_file() else ():
            self._places[int(json.loads(data)["step"])] = place
            place += len(data) + 1
        if self._path.is_file() and self._path.stat().st_size > place:
            os.truncate(self._path, place)

    def line(self, step: int) -> StepLine | None:
        """What is known of a step."""
        text = self._text(step)
        return _parsed(json.loads(text)) if text else None

    def weights(self, version: int) -> str:
        """Fingerprint of the weights of a version that a step made; empty if it is not known."""
        found = self.line(version - 1)
        return "" if found is None else found.weights

    @property
    def steps(self) -> list[int]:
        """The steps with a line, in order."""
        return sorted(self._places)

    def note(self, line: StepLine) -> None:
        """Keep a step's line; what was known of this and later steps goes, unless it was the same. Raises OSError."""
        text = line.as_json()
        if self._text(line.step) == text:
            return
        self.rewind(line.step)
        place = self._path.stat().st_size if self._path.is_file() else 0
        append_lines(self._path, text)
        self._places[line.step] = place

    def rewind(self, steps: int) -> None:
        """Leave the lines of the first `steps` steps."""
        later = [step for step in self._places if step >= steps]
        if later:
            os.truncate(self._path, self._places[min(later)])
            for step in later:
                del self._places[step]

    def _text(self, step: int) -> str:
        if step not in self._places:
            return ""
        with self._path.open("rb") as file:
            file.seek(self._places[step])
            return file.readline().decode()


def step_line(step: int, numbers: Sequence[int], groups: Sequence[Group], weights: str) -> StepLine:
    """The line of a step from the scored groups that it trained and their numbers."""
    return StepLine(
        step=step,
        weights=weights,
        groups=tuple(
            GroupLine(number=number, samples=tuple(_sample_line(one) for one in group.rollouts))
            for number, group in zip(numbers, groups, strict=True)
        ),
    )


def record_digest(rollout: Rollout) -> str:
    """16 hexadecimal digits of all that the learner reads of a sample; of one that failed its reason."""
    if rollout.failure:
        return rollout.failure
    digest = hashlib.sha256()
    for segment in rollout.segments:
        support = () if segment.support is None else (segment.support.counts, segment.support.ids)
        arrays = (segment.token_ids, segment.trained, segment.sampler_logprobs, segment.routes, *support)
        for array in (*arrays, segment.selection_fingerprint, segment.weight_version):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _sample_line(rollout: Rollout) -> SampleLine:
    score = rollout.score
    return SampleLine(
        drawn=_runs(rollout),
        record=record_digest(rollout),
        status="" if score is None else score.status,
        reward=None if score is None or not math.isfinite(score.total) else score.total,
    )


def _runs(rollout: Rollout) -> tuple[tuple[int, int], ...]:
    versions = [int(one) for segment in rollout.segments for one in segment.weight_version[segment.trained]]
    runs: list[tuple[int, int]] = []
    for version in versions:
        if runs and runs[-1][0] == version:
            runs[-1] = (version, runs[-1][1] + 1)
        else:
            runs.append((version, 1))
    return tuple(runs)


def _parsed(data: dict[str, Any]) -> StepLine:
    groups = [
        GroupLine(
            number=group["number"],
            samples=tuple(
                SampleLine(**{**one, "drawn": tuple((version, count) for version, count in one["drawn"])})
                for one in group["samples"]
            ),
        )
        for group in data["groups"]
    ]
    return StepLine(step=data["step"], weights=data["weights"], groups=tuple(groups))
