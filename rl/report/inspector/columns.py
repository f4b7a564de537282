"""Columns of the index: what a filter, an order or a line of the list reads of a rollout, and where its own line stands."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from samepath.rl.report.page_conversation import texts_of

HEAD_CHARS = 200
"""Of prompt and response in a line of the list, characters."""
LARGEST = 2**53
"""Whole numbers beyond it are none that a run writes, and a browser would round them."""

NUMBERS: Mapping[str, pa.DataType] = {
    "step": pa.int64(), "sample": pa.int64(), "prompt": pa.int64(), "weight_lag": pa.int64(), "num_tokens": pa.int64(),
    "segments": pa.int64(), "offset": pa.int64(), "size": pa.int64(), "reward": pa.float64(), "advantage": pa.float64(),
    "kl": pa.float64(), "off_policy": pa.float64(), "route_flips": pa.float64(), "masked": pa.bool_(),
    "failed": pa.bool_(), "truncated": pa.bool_(),
}  # fmt: skip
"""Kept as arrays of numbers. `prompt` is a number that equal prompts share; `offset` and `size` are bytes in the step's file."""
WORDS = ("group", "task", "status", "prompt_head")
"""Kept as a list of different texts and a number for each rollout."""
TEXTS = ("response_head", "text")
"""Stay in the index file, which is mapped into memory. `text` is everything that is searched, in lower case."""
SCHEMA = pa.schema([*NUMBERS.items(), *((name, pa.large_string()) for name in (*WORDS, *TEXTS))])
TOKEN_NUMBERS = re.compile(
    rb'"(sampler_logprobs|kl_tokens|log_ratios|entropies|support_sizes)": \[[-+0-9.eE, naif"]*\]'
)
"""Numbers of tokens, three quarters of a line, which no column holds. In a text every quotation mark has a backslash before it, so none matches."""


class NoRolloutError(ValueError):
    """A line that holds no rollout."""


def columns_of(lines: Iterable[tuple[int, bytes]]) -> tuple[pa.Table, int]:
    """The columns of lines, each with its offset in bytes, and how many lines held no rollout (torn by a kill, or of something else)."""
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    unreadable = 0
    for offset, line in lines:
        try:
            row = row_of(line)
        except NoRolloutError:
            unreadable += 1
            continue
        row.update(offset=offset, size=len(line))
        for name, column in rows.items():
            column.append(row[name])
    arrays = [_array(column, field.type) for column, field in zip(rows.values(), SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA), unreadable


def row_of(line: bytes) -> dict[str, Any]:
    """The columns of one line, but for its place. Raises NoRolloutError."""
    try:
        entry = json.loads(TOKEN_NUMBERS.sub(rb'"\1": []', line))
        if not isinstance(entry, dict):
            raise NoRolloutError
        return _row(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NoRolloutError(str(error)) from error


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    prompt, response, gold = (_text(entry.get(name, "")) for name in ("prompt_text", "response_text", "gold"))
    task, status, detail = (
        _text(entry.get(name, default))
        for name, default in (("dataset", ""), ("reward_status", "ok"), ("reward_detail", ""))
    )
    reward = _real(entry, "reward")
    searched = (prompt, response, gold, detail, *texts_of(entry.get("messages", ())))
    return {
        "step": _whole(entry["step"]),
        "sample": _whole(entry["sample_index"]),
        "group": _text(entry["group_id"]),
        "prompt": prompt_number(task, prompt, gold),
        "task": task,
        "status": status,
        "reward": reward,
        **{name: _real(entry, name) for name in ("advantage", "kl", "off_policy", "route_flips")},
        **{name: _whole(entry.get(name, 0)) for name in ("weight_lag", "num_tokens")},
        "segments": len(entry.get("segment_tokens", ())),
        "masked": bool(entry.get("masked", False)),
        "failed": status != "ok" or abs(reward) == float("inf") or reward != reward,
        "truncated": entry.get("finish_reason") == "length" or entry.get("ended") in ("tokens", "time"),
        "prompt_head": prompt[:HEAD_CHARS],
        "response_head": response[:HEAD_CHARS],
        "text": "\n".join(searched).lower(),
    }


def prompt_number(task: str, prompt: str, gold: str) -> int:
    """A number below 2^53 that equal prompts share, and two different ones among 10^5 of them with a chance of one in a million."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (task, prompt, gold):
        digest.update(text.encode("utf-8", errors="replace") + b"\0")
    return int.from_bytes(digest.digest()) % LARGEST


def lines_of(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """Every line that begins in the first `size` bytes of a file, as far as these go, with its offset; empty ones are left out.

    A last line without its end is among them: it may lack nothing but that, and where it does it is no rollout.
    """
    offset = 0
    with path.open("rb") as file:
        while offset < size and (line := file.readline(size - offset)):
            if line.strip():
                yield offset, line.rstrip(b"\n")
            offset += len(line)


def _array(column: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(column, kind)
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON may spell out, has no UTF-8.
        return pa.array([text.encode("utf-8", errors="replace").decode() for text in column], kind)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NoRolloutError
    return value


def _real(entry: Mapping[str, Any], name: str) -> float:
    return float(entry.get(name, "nan"))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not -LARGEST < value < LARGEST:
        raise NoRolloutError
    return value
