"""What the page asks for, as JSON data: the run, lines of the list, one rollout, a group, a prompt's history."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samepath.rl.report.inspector.details import detail, group, history, listed, place_of
from samepath.rl.report.inspector.rollout_index import RolloutIndex, Snapshot
from samepath.rl.report.inspector.run_facts import run_facts
from samepath.rl.report.inspector.search import Wanted, find, wanted_of
from samepath.rl.tracking.jsonl import plain

MAX_LINES = 1000
"""Lines of the list in one answer."""
KEPT_ANSWERS = 8
"""Filters whose answers are kept, because the list asks for one window after the other."""


class MissingError(LookupError):
    """There is no such page, rollout or group."""


class Api:
    """Answers by path. Raises ValueError for a question that cannot be read, MissingError, RewrittenError, OSError."""

    def __init__(self, run_dir: Path, index: RolloutIndex) -> None:
        self._run_dir, self._index = run_dir, index
        self._answers: OrderedDict[tuple[int, Wanted], NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, path: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """JSON data for a path below `/api/`, with what stands behind its `?`."""
        given, snapshot = dict(asked), self._index.snapshot
        match path:
            case "run":
                return self._run(snapshot)
            case "rollouts":
                return self._rollouts(snapshot, given)
            case "rollout":
                step, name, sample = _step(given), _taken(given, "group"), _number(given, "sample")
                place = place_of(snapshot, step, name, sample)
                if place is None:
                    raise MissingError(f"there is no sample {sample} of group {name!r} in step {step}")
                return detail(snapshot, place)
            case "group":
                step, name = _step(given), _taken(given, "group")
                members = group(snapshot, step, name)
                if not members:
                    raise MissingError(f"there is no group {name!r} in step {step}")
                return {"rollouts": members}
            case "history":
                best, left_out = history(snapshot, _number(given, "prompt"))
                return {"best": best, "left_out": left_out}
        raise MissingError(f"there is nothing at /api/{path}")

    def _run(self, snapshot: Snapshot) -> dict[str, Any]:
        words = snapshot.words
        return {
            **run_facts(self._run_dir),
            "version": snapshot.version,
            "total": len(snapshot),
            "waiting": self._index.waiting,
            "unreadable": snapshot.unreadable,
            "problem": self._index.problem,
            "unsaved": snapshot.unsaved,
            "tasks": sorted(words["task"].values),
            "statuses": sorted(words["status"].values),
            "steps": _by_step(snapshot),
        }

    def _rollouts(self, snapshot: Snapshot, given: dict[str, str]) -> dict[str, Any]:
        first, count = _number(given, "first", 0), _number(given, "count", 100)
        if first < 0 or not 0 <= count <= MAX_LINES:
            raise ValueError(f"first must be at least 0 and count at most {MAX_LINES}; got {first} and {count}")
        at = given.pop("at", "")
        places = self._found(snapshot, wanted_of(given))
        answer = {
            "version": snapshot.version,
            "total": len(snapshot),
            "found": len(places),
            "first": first,
            "rollouts": listed(snapshot, places[first : first + count].tolist()),
        }
        if at:
            answer["at"] = _place_in(snapshot, places, at)
        return answer

    def _found(self, snapshot: Snapshot, wanted: Wanted) -> NDArray[np.int64]:
        key = (snapshot.version, wanted)
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        places = find(snapshot, wanted)
        with self._lock:
            self._answers[key] = places
            while len(self._answers) > KEPT_ANSWERS:
                self._answers.popitem(last=False)
        return places


def _place_in(snapshot: Snapshot, places: NDArray[np.int64], name: str) -> int:
    """Line of the list on which `step/sample/group` stands, or −1."""
    step, _, rest = name.partition("/")
    sample, _, group_name = rest.partition("/")
    place = place_of(snapshot, _whole("at", step), group_name, _whole("at", sample))
    if place is None:
        return -1
    lines = np.flatnonzero(places == place)
    return int(lines[0]) if len(lines) else -1


def _by_step(snapshot: Snapshot) -> dict[str, list[Any]]:
    """Of each step its number, its rollouts, the mean of those rewards that are there (else NaN), and the shares masked and without a reward."""
    numbers = snapshot.numbers
    steps, place_B = np.unique(numbers["step"], return_inverse=True)
    scored_B = ~numbers["failed"]

    def summed(values_B: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(place_B, weights=values_B.astype(np.float64), minlength=len(steps)).astype(np.float64)

    count, scored = summed(np.ones(len(place_B))), summed(scored_B)
    rewards = summed(np.where(scored_B, numbers["reward"], 0.0))
    mean = np.divide(rewards, scored, out=np.full(len(steps), np.nan), where=scored > 0)
    return {
        "step": steps.tolist(),
        "count": count.astype(int).tolist(),
        "reward": plain(mean.tolist()),
        "masked": plain((summed(numbers["masked"]) / count).tolist()),
        "failed": plain((1 - scored / count).tolist()),
    }


def _step(given: dict[str, str]) -> int:
    return _number(given, "step")


def _taken(given: dict[str, str], name: str) -> str:
    if name not in given:
        raise ValueError(f"{name} is missing")
    return given.pop(name)


def _number(given: dict[str, str], name: str, default: int | None = None) -> int:
    if name not in given and default is not None:
        return default
    return _whole(name, _taken(given, name))


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a whole number; got {text!r}") from error
