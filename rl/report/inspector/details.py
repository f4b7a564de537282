"""One rollout, its group, and the best answers to its prompt, read from the steps' files at the places that the index knows."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samepath.rl.report.inspector.rollout_index import Snapshot
from samepath.rl.report.page_conversation import messages, segments
from samepath.rl.tracking.jsonl import plain, rollout_from_plain
from samepath.rl.tracking.token_columns import unpacked
from samepath.rl.tracking.tracked_rollout import TOKEN_FIELDS, TrackedRollout

TEXT_CHARS = 200_000
"""Of one text of one rollout, characters; the JSON lines keep all of them."""
GROUP_CHARS = 6000
"""The same where many rollouts stand side by side."""
HISTORY_STEPS = 200
"""Steps of one prompt that are compared, at most."""
LEFT_OUT = ("prompt_text", "gold", "messages", "segments", "tool_calls", "routes")
"""Fields that do not go out as they stand."""


class RewrittenError(RuntimeError):
    """The step's file is another one by now; the index will know it after its next look."""


def rollout_at(snapshot: Snapshot, place: int) -> TrackedRollout:
    """Read one rollout. Raises RewrittenError, OSError."""
    path = snapshot.paths[snapshot.files_B[place]]
    offset, size = int(snapshot.numbers["offset"][place]), int(snapshot.numbers["size"][place])
    try:
        with path.open("rb") as file:
            file.seek(offset)
            rollout = rollout_from_plain(json.loads(file.read(size)))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RewrittenError(f"{path} has changed. Look again in a moment.") from error
    known = (snapshot.numbers["step"][place], snapshot.numbers["sample"][place])
    if (rollout.step, rollout.sample_index) != known:
        raise RewrittenError(f"{path} has changed. Look again in a moment.")
    return rollout


def place_of(snapshot: Snapshot, step: int, group: str, sample: int) -> int | None:
    """Place of a rollout by its name; the first, if a file holds it twice. None if there is none."""
    places = places_of_group(snapshot, step, group)
    found = places[snapshot.numbers["sample"][places] == sample]
    return int(found[0]) if len(found) else None


def places_of_group(snapshot: Snapshot, step: int, group: str) -> NDArray[np.int64]:
    """Places of the rollouts of a group, in the order of their samples."""
    words = snapshot.words["group"]
    if group not in words.values:
        return np.zeros(0, np.int64)
    same = (snapshot.numbers["step"] == step) & (words.codes_B == words.values.index(group))
    places = np.flatnonzero(same)
    return places[np.argsort(snapshot.numbers["sample"][places], kind="stable")]


def detail(snapshot: Snapshot, place: int) -> dict[str, Any]:
    """Everything of one rollout, as JSON data."""
    rollout = rollout_at(snapshot, place)
    return {
        **_record(snapshot, place, rollout, TEXT_CHARS),
        "segments": segments(rollout),
        "routes": None if rollout.routes is None else unpacked(rollout.routes),
    }


def group(snapshot: Snapshot, step: int, name: str) -> list[dict[str, Any]]:
    """The rollouts of a group side by side, without their tokens."""
    return [_beside(snapshot, place) for place in places_of_group(snapshot, step, name).tolist()]


def history(snapshot: Snapshot, prompt: int) -> tuple[list[dict[str, Any]], int]:
    """(the best rollout of each step that has this prompt, step by step, how many steps are left out at the beginning)."""
    numbers = snapshot.numbers
    places = np.flatnonzero((numbers["prompt"] == prompt) & ~numbers["failed"])
    best: dict[int, int] = {}
    for place in places.tolist():
        step = int(numbers["step"][place])
        if step not in best or numbers["reward"][place] > numbers["reward"][best[step]]:
            best[step] = place
    chosen = [place for _, place in sorted(best.items())]
    return [_beside(snapshot, place) for place in chosen[-HISTORY_STEPS:]], max(len(chosen) - HISTORY_STEPS, 0)


def listed(snapshot: Snapshot, places: Sequence[int]) -> list[dict[str, Any]]:
    """Lines of the list, as JSON data."""
    wanted = [place for place in places if place < len(snapshot)]
    heads = snapshot.table.column("response_head").take(wanted).to_pylist() if wanted else []
    return [{**_of_index(snapshot, place), "head": head} for place, head in zip(wanted, heads, strict=True)]


def _of_index(snapshot: Snapshot, place: int) -> dict[str, Any]:
    values = {
        name: plain(column[place].item()) for name, column in snapshot.numbers.items() if name not in ("offset", "size")
    }
    words = {name: column.values[column.codes_B[place]] for name, column in snapshot.words.items()}
    return {**values, **words}


def _beside(snapshot: Snapshot, place: int) -> dict[str, Any]:
    record = _record(snapshot, place, rollout_at(snapshot, place), GROUP_CHARS)
    return {**record, **{name: [] for name in TOKEN_FIELDS}, "segments": []}


def _record(snapshot: Snapshot, place: int, rollout: TrackedRollout, max_chars: int) -> dict[str, Any]:
    """A rollout as the page's script takes it."""
    record = dict(_plain_fields(rollout))
    shown, asked = rollout.response_text[:max_chars], rollout.prompt_text[:max_chars]
    return {
        **record,
        "response_text": shown,
        "response_left_out": len(rollout.response_text) - len(shown),
        "messages": messages(rollout, max_chars),
        "prompt": {
            "number": int(snapshot.numbers["prompt"][place]),
            "dataset": rollout.dataset,
            "text": asked,
            "gold": rollout.gold,
            "left_out": len(rollout.prompt_text) - len(asked),
        },
    }


def _plain_fields(rollout: TrackedRollout) -> Iterator[tuple[str, Any]]:
    for field in fields(rollout):
        if field.name not in LEFT_OUT:
            yield field.name, plain(getattr(rollout, field.name))
