"""Sampled groups on disk from the moment in which they end until no checkpoint needs them: a killed run samples none of them again.

`sampled/step-000012.groups` holds the groups of step 12, each as length, SHA-256 and content; what a kill left open at the end is not read.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from samepath.model.durable_file import replace_file
from samepath.rl.record_file import append, framed, unframed
from samepath.rl.run_folder import SAMPLED, step_of
from samepath.rollout.record_bytes import RecordError, as_bytes, from_bytes
from samepath.rollout.types import Group

MOST_KEPT_BYTES = 4 << 30
"""Groups since the newest checkpoint may take this much of the disk: beyond it a run that goes on samples those of later weights again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroup:
    """A group that has ended.

    Example:
        SampledGroup(number=35, group=group).newest_version == 2
    """

    number: int
    """Of the feed."""
    group: Group
    """Without scores."""

    @property
    def newest_version(self) -> int:
        """Of the weights that drew a token of it; −1 without tokens."""
        segments = [segment for rollout in self.group.rollouts for segment in rollout.segments]
        return max((int(segment.weight_version.max()) for segment in segments), default=-1)

    @property
    def num_tokens(self) -> int:
        """Sampled tokens."""
        return sum(rollout.num_trained for rollout in self.group.rollouts)


class GroupJournal:
    """The sampled groups of one run."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / SAMPLED

    def append(self, step: int, entry: SampledGroup) -> None:
        """Keep a group of a step. Raises JournalError; what stood there before stays."""
        append(self._path(step), _record(entry))

    def entries(self, step: int) -> list[SampledGroup]:
        """The groups of a step that are whole on the disk, each once."""
        path = self._path(step)
        found = {entry.number: entry for entry in _entries(path.read_bytes())} if path.is_file() else {}
        return list(found.values())

    def mend(self) -> None:
        """Take off what a kill left open at the end of a file: more is appended there."""
        for path in self._files():
            replace_file(path, b"".join(map(_record, _entries(path.read_bytes()))))

    def rewind(self, step: int) -> int:
        """Leave what weights up to version `step` drew; returns how many sampled tokens of steps from `step` on that leaves out."""
        lost = 0
        for path in self._files():
            entries = self.entries(step_of(path))
            kept = [entry for entry in entries if entry.newest_version <= step]
            if step_of(path) >= step:
                lost += sum(entry.num_tokens for entry in entries) - sum(entry.num_tokens for entry in kept)
            replace_file(path, b"".join(map(_record, kept)))
        return lost

    def prune(self, done: int, checkpoints: Collection[int], max_weight_lag: int) -> None:
        """Remove the groups of the first `done` steps that no run which goes on from one of the checkpoints can train.

        From the newest one on it trains all of them again; unless they take more than MOST_KEPT_BYTES; of an older one those that its own
        weights, or older ones, drew.
        """
        newest = max(checkpoints)
        kept = [path for path in self._files() if step_of(path) >= newest]
        if sum(path.stat().st_size for path in kept) > MOST_KEPT_BYTES:
            newest = done
        for path in self._files():
            step = step_of(path)
            needed = step >= newest or any(step - max_weight_lag <= one <= step for one in checkpoints)
            if step < done and not needed:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.groups"

    def _files(self) -> Sequence[Path]:
        return sorted(self._folder.glob("step-*.groups"))


def _record(entry: SampledGroup) -> bytes:
    return framed(as_bytes((entry.number, entry.group)))


def _entries(data: bytes) -> Iterator[SampledGroup]:
    """The records as far as they are whole; one that holds anything but records and plain data is passed over."""
    for content in unframed(data):
        try:
            number, group = from_bytes(content)
        except RecordError:
            continue
        yield SampledGroup(number=number, group=group)
