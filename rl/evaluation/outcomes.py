"""What an evaluation gave prompt by prompt, kept in the run's folder: two runs are compared on the same prompts, not on two means."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samepath.model.durable_file import replace_file
from samepath.rl.run_folder import EVALUATIONS
from samepath.rl.tasks.row import TaskRow

DIGEST_CHARS = 12


class OutcomesError(ValueError):
    """A file of outcomes that was not written by this package, or is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Results on each prompt of a set, in the set's order.

    Example:
        Outcomes(prompts=("0c1f2a9b4d7e", "77de01b2c3f4"), scored=(4, 3), right=(4, 0), rewards=(1.0, 0.25))
    """

    prompts: tuple[str, ...] = ()
    """Digest of what is asked and of its answer (see `digest_of`): equal in two runs where the prompt is."""
    scored: tuple[int, ...] = ()
    """Responses with a usable reward."""
    right: tuple[int, ...] = ()
    """Those of them that are right."""
    rewards: tuple[float, ...] = ()
    """Mean total of the scored responses; NaN without any."""


def digest_of(row: TaskRow) -> str:
    """48 bits, as hexadecimal digits, of a row's question and answer data."""
    answer = json.dumps(row.answer, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(f"{row.canonical}\0{answer}".encode(errors="replace")).hexdigest()[:DIGEST_CHARS]


def write_outcomes(run_dir: Path, step: int, sets: Mapping[str, Outcomes]) -> None:
    """Write `evaluations/step-…json`, replacing that of the same step; nothing where no set has a prompt. Raises OSError."""
    if not any(one.prompts for one in sets.values()):
        return
    path = run_dir / EVALUATIONS / f"step-{step:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(
        path, json.dumps({"step": step, "sets": {name: _plain(one) for name, one in sets.items()}}, allow_nan=False)
    )


def _plain(one: Outcomes) -> dict[str, Sequence[object]]:
    return {
        "prompts": one.prompts,
        "scored": one.scored,
        "right": one.right,
        "rewards": [None if math.isnan(value) else round(value, 6) for value in one.rewards],
    }


def read_outcomes(path: Path) -> dict[str, Outcomes]:
    """The sets of a file that `write_outcomes` wrote. Raises OutcomesError."""
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        return {
            name: Outcomes(
                prompts=tuple(one["prompts"]),
                scored=tuple(one["scored"]),
                right=tuple(one["right"]),
                rewards=tuple(math.nan if value is None else value for value in one["rewards"]),
            )
            for name, one in sets.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutcomesError(f"{path} must hold the outcomes of an evaluation; it does not: {error!r}") from error


def outcome_files(run_dir: Path) -> dict[int, Path]:
    """Files of a run by step, in their order."""
    found = {int(path.stem.removeprefix("step-")): path for path in (run_dir / EVALUATIONS).glob("step-*.json")}
    return dict(sorted(found.items()))
