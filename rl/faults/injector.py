"""Breaks a run on purpose, as its recipe plans it: at the beginning of a phase, while a file is written, or from a clock of its own."""

import errno
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from samepath.model.durable_file import at_writes
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.faults.book import FaultBook, entry
from samepath.rl.faults.processes import hit, strike
from samepath.rl.recipe.faults import OUTAGE_S, FaultName, FaultSettings

DRAWN = -1
"""In place of a place in `faults.at`."""
FIRST = ("sampling", "waiting")
"""Phases that a step begins with."""
ARMED: tuple[FaultName, ...] = ("nan_reward", "nan_logprob", "disk_full")
"""Faults that come with the next reward, update or write."""
_PARTIAL = re.compile(r"(?:^|(?<=/))\.([^/]+)\.partial(?=/)")
"""Name of a folder that is not whole yet."""
END_WAIT_S = 5.0
"""Longest wait for the clock when the run is over."""
LOOK_AGAIN_S = 0.5
"""How soon a drawn fault that found nothing to hit is tried again, seconds."""


def _unheard(text: str) -> None:
    """Before anybody listens."""


class FaultInjector:
    """The faults of one attempt of a run. Whatever is due is written down first (`FaultBook`), so that a resumed run meets it no more."""

    def __init__(self, settings: FaultSettings, run_dir: Path) -> None:
        """Read what earlier attempts met."""
        self._settings, self._run_dir = settings, run_dir
        self.say: Callable[[str], None] = _unheard
        """Shows a line to the user."""
        self._book = FaultBook(run_dir)
        self._waiting = {place: fault for place, fault in enumerate(settings.at) if place not in self._book.done}
        self._armed: dict[FaultName, int] = {}
        """Those that are due, with their place in the plan."""
        self._step, self._phase, self._begun = 0, "begin", False
        self._away_until_s = 0.0
        self._full = False
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._clock: threading.Thread | None = None

    @contextmanager
    def injecting(self, done: int) -> Iterator[None]:
        """Watch writes, and from the first step on the clock; `done` steps are done."""
        if not self.planned:
            yield
            return
        self.done(done)
        at_writes.append(self._at_write)
        try:
            yield
        finally:
            self._over.set()
            if self._clock is not None:
                self._clock.join(END_WAIT_S)
            if self._waiting:
                left = ", ".join(f"{one.fault} in step {one.step}" for one in self._waiting.values())
                self.say(f"warning: planned faults that have not come: {left}")
            at_writes.remove(self._at_write)

    @property
    def planned(self) -> bool:
        """Whether this run is broken on purpose."""
        return self._settings.planned

    @property
    def mark(self) -> str:
        """What stands on every line of the display; "" without a plan."""
        return "FAULTS ON PURPOSE" if self.planned else ""

    @property
    def warning(self) -> list[str]:
        """What must be said before anything else; nothing without a plan."""
        settings = self._settings
        if not self.planned:
            return []
        often = f", and one every {settings.every_s:g} s" if settings.every_s else ""
        return [
            f"{self.mark}: this run is broken as its recipe plans it ({len(self._waiting)} at named steps{often}: {', '.join(settings.named)}). "
            "Take `faults` out of the recipe for a run that counts."
        ]

    @property
    def metrics(self) -> dict[str, float]:
        """`faults/injected`: how many so far in the run; nothing without a plan."""
        return {"faults/injected": float(self._book.total)} if self.planned else {}

    @property
    def counters(self) -> dict[str, float]:
        """`faults/<name>`: how often each was injected into the run so far."""
        return {f"faults/{name}": float(number) for name, number in self._book.counted.items()}

    def done(self, step: int) -> None:
        """Step `step`, from 1, is done, or the run goes on behind it: what comes until the next one begins belongs to it."""
        self._step, self._begun = step, False

    def phase(self, name: str) -> None:
        """A phase begins now, as the display names it; with the first of a step that step begins."""
        with self._lock:
            if not self._begun and name in FIRST:
                self._step, self._begun, self._phase = self._step + 1, True, "begin"
                if self._settings.every_s and self._clock is None:
                    self._clock = threading.Thread(target=self._draw, name="samepath-faults", daemon=True)
                    self._clock.start()
                self._due()
            self._phase = name
            self._due()

    def _due(self) -> None:
        for place, one in list(self._waiting.items()):
            now = one.step == self._step and one.during == self._phase and not one.file
            if now and self._inject(one.fault, one.for_s, place):
                del self._waiting[place]

    def store_away(self) -> bool:
        """Whether MLflow is out of reach now."""
        return time.monotonic() < self._away_until_s

    def spoils(self, rollout_key: str) -> bool:
        """Whether the reward of this rollout is NaN instead of what the function gives."""
        return self._fires("nan_reward", f"rollout {rollout_key}")

    def spoiled(self, batch: TrainBatch) -> TrainBatch:
        """The batch of an update, with a log-probability that is NaN if one is due."""
        if not self._fires("nan_logprob", f"rollout {batch.names[batch.rollout_S[0]]}"):
            return batch
        first, *others = batch.sequences
        logprobs = first.segment.sampler_logprobs.copy()
        logprobs[-1] = np.nan
        segment = replace(first.segment, sampler_logprobs=logprobs)
        return replace(batch, sequences=(replace(first, segment=segment), *others))

    def _inject(self, name: FaultName, for_s: float, place: int) -> bool:
        """Do what the fault says; False if there is nothing to hit."""
        if name in ARMED:
            self._armed[name] = place
        elif name == "store_gone":
            self._note(name, f"for {for_s:g} s", place)
            self._away_until_s = time.monotonic() + for_s
        elif name == "driver_killed":
            self._note(name, f"process {os.getpid()}", place)
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            process = hit(name, random.Random(f"{self._settings.seed}/{self._book.total}"))
            if process is None:
                return False
            self._note(name, f"process {process.pid}", place)
            strike(name, process)
        return True

    def _fires(self, name: FaultName, detail: str) -> bool:
        """Whether an armed fault comes now; it is written down."""
        with self._lock:
            place = self._armed.pop(name, None)
            if place is None:
                return False
            self._note(name, detail, place)
            return True

    def _note(self, name: FaultName, detail: str, place: int) -> None:
        noted = entry(name, self._step, self._phase, detail, place)
        self._book.add(noted)
        self.say(noted.said())

    def _at_write(self, path: Path) -> None:
        """Meet the write of a file: a disk that is full stays full until the process ends."""
        if path == self._book.path or not path.is_relative_to(self._run_dir):
            return
        name = _PARTIAL.sub(r"\1", path.relative_to(self._run_dir).as_posix())
        with self._lock:
            if self._fires("disk_full", name):
                self._full = True
            for place, one in list(self._waiting.items()):
                if one.file and one.step <= self._step and fnmatchcase(name, one.file):
                    del self._waiting[place]
                    self._note(one.fault, name, place)
                    if one.fault == "driver_killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    else:
                        self._full = True
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _draw(self) -> None:
        """Body of the clock's thread: wait, draw, inject, again."""
        settings = self._settings
        while True:
            before = self._book.num_drawn
            rng = random.Random(f"{settings.seed}/{before}/drawn")
            if self._over.wait(settings.every_s * rng.uniform(0.5, 1.5)):
                return
            name = rng.choice(settings.kinds)
            while not self._over.is_set() and not self._tried(name):
                self._over.wait(LOOK_AGAIN_S)
            while not self._over.is_set() and self._book.num_drawn == before:
                # It comes with the next reward, update or write.
                self._over.wait(LOOK_AGAIN_S)

    def _tried(self, name: FaultName) -> bool:
        with self._lock:
            return self._inject(name, OUTAGE_S, DRAWN)
