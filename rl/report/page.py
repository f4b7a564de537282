"""Every rollout of a run in one HTML file that needs no server: what it holds, and how data and template become one text.

The template lies beside this file: `rollouts.html`, its style and the two parts of its script. The page's security policy allows that style and that script by
their hashes and nothing else, no request of any kind among it; the script sets text through `textContent` alone.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.model.durable_file import replace_file
from samepath.rl.report.page_choice import (
    PageLimits,
    StepSize,
    choose_steps,
    choose_token_values,
    longest_of,
    ranges,
    worst_first,
)
from samepath.rl.report.page_conversation import messages, num_tokens, segments, texts
from samepath.rl.tracking.jsonl import plain, read_rollouts
from samepath.rl.tracking.tracked_rollout import TOKEN_FIELDS, TrackedRollout

TEMPLATE = Path(__file__).with_name("rollouts.html")
TOKEN_COLUMNS = tuple(name for name in TOKEN_FIELDS if name != "routes")
"""Fields by token that the page has; experts are too many for it."""
COLUMNS = (
    "step", "group_id", "sample_index", "response_text", "reward", "reward_parts", "reward_status", "reward_detail", "advantage", "kl",
    "off_policy", "masked", "route_flips", "weight_lag", "num_tokens", "finish_reason", "ended", "generate_s",
    "problems", "segment_tokens", *TOKEN_COLUMNS,
)  # fmt: skip
"""Fields of a rollout that the page has as columns of the same name."""
MADE_COLUMNS = ("prompt", "response_left_out", "messages", "segments")
"""Columns that are no field as it stands."""
SHARED_SCRIPTS = ("rollout.js", "tokens.js", "conversation.js", "list.js")
"""The parts of the script that the inspector has too, in their order: one rollout, and the list of them."""
SCRIPTS = (*SHARED_SCRIPTS, "rollouts.js")
"""All of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the page holds of a run."""

    paths: Sequence[Path]
    """Files of the steps, in their order."""
    first: int | None
    """Of a lone step that is too large, how many rollouts from its beginning."""
    with_tokens: frozenset[tuple[int, int]]
    """(step, place in the step) of the rollouts with values for each token."""
    sentences: Sequence[str]
    """What is held and what is not, for people."""
    which: str
    """The steps, where some are left out."""


def write_rollout_report(rollouts_dir: Path, out_html: Path, limits: PageLimits | None = None) -> int:
    """Write the page for a run's `rollouts/` folder; returns how many rollouts it holds.

    It holds all rollouts up to `limits`; of more it holds whole steps, evenly spread with the first and last. The page says which.

    Raises:
        FileNotFoundError: the folder holds no `step-*.jsonl`.
    """
    paths = sorted(rollouts_dir.glob("step-*.jsonl"), key=_step_of)
    if not paths:
        raise FileNotFoundError(
            f"a report needs files step-*.jsonl; {rollouts_dir} has none. Give a run's rollouts folder."
        )
    limits = limits or PageLimits()
    held = _held(paths, limits)
    prompts: dict[tuple[str, str, str], int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *MADE_COLUMNS)}
    for step, place, rollout in _rollouts(held.paths, held.first):
        for name, value in _row(rollout, limits, has_tokens=(step, place) in held.with_tokens).items():
            columns[name].append(value)
        prompt = (rollout.dataset, rollout.prompt_text, rollout.gold)
        columns["prompt"].append(prompts.setdefault(prompt, len(prompts)))
    data = {
        "held": held.sentences,
        "which": held.which,
        "prompts": [_prompt(prompt, limits) for prompt in prompts],
        "columns": columns,
    }
    replace_file(out_html, _filled(f"Rollouts of {rollouts_dir.resolve().parent.name}", data))
    return len(columns["step"])


def embedded_json(value: Any) -> str:
    """Return JSON that can stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _held(paths: Sequence[Path], limits: PageLimits) -> _Held:
    """Read the run once, for the size of its steps and the rewards."""
    sizes, scored, num_cut = [], [], {}
    for path in paths:
        rollouts = read_rollouts(path)
        lengths = [[len(text) for text in (one.prompt_text, one.response_text, *texts(one))] for one in rollouts]
        num_chars = sum(min(length, limits.text_chars) for of_one in lengths for length in of_one)
        sizes.append(StepSize(num_rollouts=len(rollouts), num_chars=num_chars))
        num_cut[path] = [max(of_one) > limits.text_chars for of_one in lengths]
        scored.append([(worst_first(one), num_tokens(one), longest_of(one, limits)) for one in rollouts])
    chosen, first = choose_steps(sizes, limits)
    steps = [_step_of(paths[index]) for index in chosen]
    rollouts_by_key = {
        (step, place): entry
        for step, index in zip(steps, chosen, strict=True)
        for place, entry in enumerate(scored[index][:first])
    }
    with_tokens = choose_token_values(rollouts_by_key, limits)
    total, num_held = sum(size.num_rollouts for size in sizes), len(rollouts_by_key)
    cut = sum(sum(num_cut[paths[index]][:first]) for index in chosen)
    sentences = [_what_is_held(num_held, total, steps, len(paths), first)]
    if cut:
        sentences.append(f"Of {cut:,} rollouts a text is cut after {limits.text_chars:,} characters, and says so.")
    if len(with_tokens) < num_held:
        sentences.append(
            f"Values for each token are here for {len(with_tokens):,} of them, worst first: at most {limits.tokens:,} tokens in all "
            f"and {limits.tokens_of_one:,} of one answer or {limits.tokens_of_conversation:,} of a conversation."
        )
    return _Held(
        paths=[paths[index] for index in chosen],
        first=first,
        with_tokens=with_tokens,
        sentences=sentences,
        which="" if num_held == total else f" {ranges(steps)}",
    )


def _what_is_held(num_held: int, total: int, steps: Sequence[int], num_steps: int, first: int | None) -> str:
    if num_held == total:
        return f"All {total:,} rollouts of {num_steps:,} steps are here."
    rest = "The others stand in the run's folder, rollouts/step-….jsonl."
    if first is not None:
        return f"{num_held:,} of {total:,} rollouts are here: the first {first:,} of step {steps[0]}. {rest}"
    return f"{num_held:,} of {total:,} rollouts are here: all of {len(steps):,} of {num_steps:,} steps, evenly spread. {rest}"


def _rollouts(paths: Sequence[Path], first: int | None) -> Iterator[tuple[int, int, TrackedRollout]]:
    """(step, place in it, rollout) of the files, step by step."""
    for path in paths:
        for place, rollout in enumerate(read_rollouts(path)[:first]):
            yield _step_of(path), place, rollout


def _row(rollout: TrackedRollout, limits: PageLimits, *, has_tokens: bool) -> dict[str, Any]:
    row = {name: _rounded(getattr(rollout, name)) for name in COLUMNS}
    if not has_tokens:
        row.update({name: [] for name in TOKEN_COLUMNS})
    elif rollout.segments:
        row["tokens"] = []  # They stand in the segments.
    row["segments"] = segments(rollout) if has_tokens else []
    row["messages"] = messages(rollout, limits.text_chars)
    row["response_text"] = rollout.response_text[: limits.text_chars]
    row["response_left_out"] = len(rollout.response_text) - len(row["response_text"])
    return row


def _prompt(prompt: tuple[str, str, str], limits: PageLimits) -> dict[str, Any]:
    dataset, text, gold = prompt
    shown = text[: limits.text_chars]
    return {"dataset": dataset, "text": shown, "gold": gold, "left_out": len(text) - len(shown)}


def _rounded(value: Any) -> Any:
    """Keep four digits of each number: the page shows three, and token values make up most of its size."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return value


def _filled(title: str, data: Mapping[str, Any]) -> str:
    """Put title, data, style and script into the template, in one pass: what looks like a mark in the data stays as it is."""
    style = TEMPLATE.with_suffix(".css").read_text(encoding="utf-8")
    script = "".join(TEMPLATE.with_name(name).read_text(encoding="utf-8") for name in SCRIPTS)
    values = {
        "TITLE": html.escape(title),
        "DATA": embedded_json(data),
        "STYLE": style,
        "SCRIPT": script,
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
    }
    return re.sub(r"@([A-Z_]+)@", lambda mark: values[mark[1]], TEMPLATE.read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
