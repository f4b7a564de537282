"""Sampled groups on disk from the moment in which they end until no checkpoint needs them: a killed run samples none of them again.

`sampled/step-000012.groups` holds the groups of step 12, each as length, SHA-256 and content; what a kill left open at the end is not read.
"""

import hashlib
import io
import pickle
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.model.durable_file import replace_file
from samepath.rl.run_folder import SAMPLED, step_of
from samepath.rollout.types import Group

_HEAD = struct.Struct("<Q32s")
_OWN_MODULES = (
    "samepath.rollout.types",
    "samepath.rollout.sampling_settings",
    "samepath.rewards.score",
    "samepath.model.text.conversation",
)
_ARRAYS = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}


class JournalError(RuntimeError):
    """A sampled group cannot be written; the message says what to do."""


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
        path, record = self._path(step), _record(entry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                if file.write(record) != len(record):
                    file.truncate(size)
                    raise OSError("the disk is full")
        except OSError as error:
            raise JournalError(
                f"{path} cannot be written: {error}. Make room, then go on with `samepath resume`."
            ) from error

    def entries(self, step: int) -> list[SampledGroup]:
        """The groups of a step that are whole on the disk, each once."""
        path = self._path(step)
        found = {entry.number: entry for entry in _entries(path.read_bytes())} if path.is_file() else {}
        return list(found.values())

    def rewind(self, step: int) -> int:
        """Leave what a run that goes on from the checkpoint of `step` can train; returns how many sampled tokens that leaves out.

        Tokens of later weights are left out: those weights are made anew, and may be others.
        """
        lost = 0
        for path in self._files():
            entries = self.entries(step_of(path))
            kept = [entry for entry in entries if entry.newest_version <= step]
            if step_of(path) >= step:
                lost += sum(entry.num_tokens for entry in entries) - sum(entry.num_tokens for entry in kept)
            # Also where nothing goes: what a kill left open must not stand in the middle.
            replace_file(path, b"".join(map(_record, kept)))
        return lost

    def prune(self, done: int, checkpoints: Collection[int], max_weight_lag: int) -> None:
        """Remove the groups of the first `done` steps, but for those that one of the checkpoints goes on with: of its own weights or older ones."""
        for path in self._files():
            step = step_of(path)
            if step < done and not any(step - max_weight_lag <= one <= step for one in checkpoints):
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.groups"

    def _files(self) -> Sequence[Path]:
        return sorted(self._folder.glob("step-*.groups"))


class _Reader(pickle.Unpickler):
    """Makes records and plain data alone: a file from elsewhere runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of a record, or an array's parts. Raises UnpicklingError for anything else."""
        own = module in _OWN_MODULES and "." not in name
        if own or (module.split(".")[0] == "numpy" and name in _ARRAYS):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a sampled group")


def _record(entry: SampledGroup) -> bytes:
    content = pickle.dumps((entry.number, entry.group), pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(content), hashlib.sha256(content).digest()) + content


def _entries(data: bytes) -> Iterator[SampledGroup]:
    """The records as far as they are whole; one that holds anything but records and plain data is passed over."""
    place = 0
    while place + _HEAD.size <= len(data):
        length, digest = _HEAD.unpack_from(data, place)
        content = data[place + _HEAD.size : place + _HEAD.size + length]
        if len(content) < length or hashlib.sha256(content).digest() != digest:
            return
        place += _HEAD.size + length
        try:
            number, group = _Reader(io.BytesIO(content)).load()
        except (pickle.UnpicklingError, AttributeError):
            continue
        yield SampledGroup(number=number, group=group)
