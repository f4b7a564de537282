"""What was injected into a run, a line each in `faults.jsonl` of its folder: what stands there is not injected again when the run goes on."""

import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from samepath.model.durable_file import append_lines, whole_lines
from samepath.rl.run_folder import FAULTS_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """One fault that was injected.

    Example:
        Injected(fault="worker_killed", step=3, during="sampling", detail="process 4711", planned=0, time_s=1767225600.0)
    """

    fault: str
    """Its name in the recipe."""
    step: int
    """In which step, from 1."""
    during: str
    """Phase of that step as the display names it."""
    detail: str
    """What it hit: a process, a file, a rollout."""
    planned: int
    """Place in `faults.at`; −1 if it was drawn (`faults.every_s`)."""
    time_s: float
    """Wall clock, seconds since 1970."""

    def said(self) -> str:
        """For people."""
        return f"fault on purpose: {self.fault} ({self.detail}) in step {self.step}, {self.during}"


class FaultBook:
    """The record of one run, read when it goes on and written before each fault."""

    def __init__(self, run_dir: Path) -> None:
        """Read what earlier attempts wrote."""
        self.path = run_dir / FAULTS_FILE
        self._lock = threading.Lock()
        self._entries = read_faults(run_dir)

    def add(self, entry: Injected) -> None:
        """Write an entry to the disk; the fault comes after it, so that it cannot come twice."""
        with self._lock:
            append_lines(self.path, json.dumps(asdict(entry)) + "\n")
            self._entries.append(entry)

    @property
    def done(self) -> set[int]:
        """Places in `faults.at` that were injected."""
        return {entry.planned for entry in self._entries if entry.planned >= 0}

    @property
    def num_drawn(self) -> int:
        """How many drawn faults were injected."""
        return sum(entry.planned < 0 for entry in self._entries)

    @property
    def counted(self) -> dict[str, int]:
        """How often each fault was injected."""
        return dict(Counter(entry.fault for entry in self._entries))

    @property
    def total(self) -> int:
        """How many faults were injected into the run so far."""
        return len(self._entries)


def read_faults(run_dir: Path) -> list[Injected]:
    """What was injected into a run, in order; nothing without a plan."""
    path = run_dir / FAULTS_FILE
    return [Injected(**json.loads(line)) for line in whole_lines(path)] if path.is_file() else []


def entry(fault: str, step: int, during: str, detail: str, planned: int) -> Injected:
    """An entry of now."""
    return Injected(fault=fault, step=step, during=during, detail=detail, planned=planned, time_s=time.time())
