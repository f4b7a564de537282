"""Scores of Reasoning Gym's own task scorers, with the ways to be paid for nonsense closed."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from samepath.rewards.final_answer import final_text
from samepath.rewards.request import RewardRequest

# The one place that needs the extra. This module is imported by path in the children only, before their limits on time and
# memory begin: the import takes one to two seconds.
try:
    from reasoning_gym import create_dataset
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "samepath.rewards.reasoning_gym needs Reasoning Gym: pip install samepath[gym]", name=error.name
    ) from error

Scorer = Callable[[str, Mapping[str, Any]], float]

NONSENSE = "\x00"
"""No task's right answer."""
BAD_TEXT_ERRORS = (ValueError, TypeError, LookupError)
"""What scorers raise on text they cannot read: prime_factorization, boxnet and game_of_life do."""


def score(request: RewardRequest, *, strict: bool = True, marker: str = "") -> float:
    """Score the text after the last `marker` (all of it if empty) against `request.answer["entry"]`.

    strict: 1 for full marks and 0 for anything less, because several scorers pay part of the marks for garbage; and where a
    scorer gives full marks to nonsense too (game_of_life_halting, when the answer is False), only the entry's own answer
    counts. Not strict: the scorer's marks, usually in [0, 1].
    An answer that makes the scorer raise ValueError, TypeError or LookupError is wrong (0), unless it raises on the entry's
    own answer too; then that error passes through. `request.answer["config"]` holds the task's settings where they are not
    its defaults: a few scorers (puzzle24, time_intervals, decimal_arithmetic) read them. Raises ValueError without an entry.
    """
    entry = request.answer.get("entry")
    if not isinstance(entry, Mapping) or "source_dataset" not in entry.get("metadata", {}):
        raise ValueError(
            "the prompt's answer data must hold the task's row under 'entry', with metadata.source_dataset; "
            f"got {sorted(request.answer)}"
        )
    config = json.dumps(request.answer.get("config", {}), sort_keys=True)
    scorer = _scorer(entry["metadata"]["source_dataset"], config)
    text = final_text(request, marker)
    if text is None:
        return 0.0
    marks = _marks(scorer, text, entry)
    if not strict:
        return marks
    if marks >= 1.0 and _marks(scorer, NONSENSE, entry) >= 1.0:
        return float(text == entry["answer"])
    return float(marks >= 1.0)


def _marks(scorer: Scorer, text: str, entry: Mapping[str, Any]) -> float:
    try:
        return float(scorer(text, entry))
    except BAD_TEXT_ERRORS:
        # Not the text's fault if the right answer cannot be scored either; some tasks have none to try.
        scorer(entry.get("answer") or "", entry)
        return 0.0


@lru_cache(maxsize=256)
def _scorer(name: str, config: str) -> Scorer:
    scorer: Scorer = create_dataset(name, **json.loads(config)).score_answer
    return scorer
