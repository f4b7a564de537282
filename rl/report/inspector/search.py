"""Which rollouts are wanted, and in which order: a filter is one look at each of its columns.

Axes: B rollouts of a snapshot.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from samepath.rl.report.inspector.rollout_index import Snapshot, Words

RANGES = ("step", "reward", "advantage", "kl", "off_policy", "route_flips", "weight_lag", "num_tokens", "segments")
"""Columns that a filter bounds, as `low..high`; either may be missing."""
EQUALS = ("task", "status", "group")
"""Columns that a filter compares with a text."""
YES_NO = ("masked", "failed", "truncated")
"""Columns that a filter asks `yes` or `no` of."""
RANKED = ("worst", "best")
"""Orders of their own: rollouts without a reward first or last, then by reward; equals with the latest step first."""
ORDERS = (*RANKED, *RANGES, "task", "status", "prompt", "masked")
OTHERS = ("text", "prompt", "order", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody looks for.

    Example: rewards up to 0.5 of one task, longest first:
        Wanted(ranges=(("reward", -math.inf, 0.5),), equals=(("task", "sums"),), order="num_tokens", down=True)
    """

    ranges: tuple[tuple[str, float, float], ...] = ()
    """(column, lowest, highest), both included. What has no such number is out, and of `reward` what has no reward."""
    equals: tuple[tuple[str, str], ...] = ()
    """(column, text)."""
    yes_no: tuple[tuple[str, bool], ...] = ()
    """(column, what it must be)."""
    prompt: int | None = None
    """Number of a prompt."""
    text: str = ""
    """Stands somewhere in prompt, answer, gold, reason or messages, in large or small letters."""
    order: str = "worst"
    """One of `ORDERS`; what has no such number comes last, and equals stand as they were made."""
    down: bool = False
    """Largest first; not with `RANKED`."""


def wanted_of(asked: Mapping[str, str]) -> Wanted:
    """Read a filter. Raises ValueError with what must hold."""
    known = {*RANGES, *EQUALS, *YES_NO, *OTHERS}
    if unknown := sorted(asked.keys() - known):
        raise ValueError(f"a filter must be one of {', '.join(sorted(known))}; got {', '.join(map(repr, unknown))}")
    order = asked.get("order", "worst")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    return Wanted(
        ranges=tuple((name, *_range(name, asked[name])) for name in RANGES if name in asked),
        equals=tuple((name, asked[name]) for name in EQUALS if name in asked),
        yes_no=tuple((name, _yes(name, asked[name])) for name in YES_NO if name in asked),
        prompt=_whole("prompt", asked["prompt"]) if "prompt" in asked else None,
        text=asked.get("text", ""),
        order=order,
        down=_yes("down", asked.get("down", "no")),
    )


def find(snapshot: Snapshot, wanted: Wanted) -> NDArray[np.int64]:
    """Places of the wanted rollouts in the snapshot, in the wanted order."""
    kept_B = np.ones(len(snapshot), np.bool_)
    numbers = snapshot.numbers
    for name, low, high in wanted.ranges:
        kept_B &= (numbers[name] >= low) & (numbers[name] <= high)
        if name == "reward":
            kept_B &= ~numbers["failed"]
    for name, text in wanted.equals:
        kept_B &= _equal(snapshot.words[name], text)
    for name, yes in wanted.yes_no:
        kept_B &= numbers[name] == yes
    if wanted.prompt is not None:
        kept_B &= numbers["prompt"] == wanted.prompt
    if wanted.text:
        # An engine's and a model's text may hold half of a surrogate pair, and the index holds `?` for it.
        sought = wanted.text.lower().encode("utf-8", errors="replace").decode()
        kept_B &= pc.match_substring(snapshot.table.column("text"), sought).to_numpy()
    places = np.flatnonzero(kept_B)
    return places[_order(snapshot, places, wanted.order, down=wanted.down)]


def _order(snapshot: Snapshot, places: NDArray[np.int64], order: str, *, down: bool) -> NDArray[np.int64]:
    numbers = snapshot.numbers
    if order in RANKED:
        failed, best = numbers["failed"][places], order == "best"
        reward = np.where(failed, 0.0, numbers["reward"][places])
        keys = (-numbers["step"][places], -reward if best else reward, failed if best else ~failed)
        return np.asarray(np.lexsort(keys), np.int64)
    if order in snapshot.words or order == "prompt":
        words = snapshot.words["prompt_head" if order == "prompt" else order]
        key = _ranks(words)[words.codes_B[places]]
    else:
        key = numbers[order][places].astype(np.float64)
    # NaN stands last in both directions.
    return np.asarray(np.argsort(-key if down else key, kind="stable"), np.int64)


def _ranks(words: Words) -> NDArray[np.int64]:
    ranks = np.empty(len(words.values), np.int64)
    ranks[sorted(range(len(words.values)), key=words.values.__getitem__)] = np.arange(len(words.values))
    return ranks


def _equal(words: Words, text: str) -> NDArray[np.bool_]:
    code = words.values.index(text) if text in words.values else -1
    return np.asarray(words.codes_B == code, np.bool_)


def _range(name: str, text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        limits = float(low) if low else -math.inf, float(high) if high else math.inf
    except ValueError:
        limits = math.nan, math.nan
    if not dots or math.isnan(limits[0]) or math.isnan(limits[1]):
        raise ValueError(f"{name} must be low..high, of which one may be missing; got {text!r}")
    return limits


def _yes(name: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{name} must be yes or no; got {text!r}")
    return text == "yes"


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a whole number; got {text!r}") from error
