r"""Mathematical equality of the final answer with the right one, by math-verify where a number's spelling is not enough.

What math-verify is kept from here: reading two boxed answers at once (only the last is given to it), adding up "51 52", and
paying an unevaluated copy of the question when the right answer is a number.
"""

from functools import lru_cache
from typing import Any

from samepath.rewards.final_answer import after_marker, gold_answer, last_boxed, plain_number
from samepath.rewards.request import RewardRequest

# The one place that needs the extra. This module is imported by path in the children only, before their limits on time and
# memory begin: the import takes half a second.
try:
    from math_verify import parse, verify
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "samepath.rewards.math needs math-verify: pip install samepath[math]. "
        "samepath.rewards.exact:number compares plain numbers without it.",
        name=error.name,
    ) from error

TIMEOUT_S = 1
"""math-verify's own alarm for each parse and comparison, whole seconds: towers of powers or 300 brackets end as a wrong answer
before the runner's limit has to kill the process."""
MAX_ANSWER_CHARS = 500
"""A longer final answer is wrong when strict; otherwise its last characters are read."""


def answer(request: RewardRequest, *, strict: bool = True, marker: str = "") -> float:
    r"""Give 1 if the final answer equals `request.answer["answer"]`, else 0.

    The final answer is the last complete `\boxed{…}` after the last `marker` (anywhere if empty), else all text after it.
    strict: it must stand alone, and for a right answer that is a plain number it must be a written-out number, compared
    exactly: `12+39`, `51 52` and `the answer is 51` are wrong answers to 51. Not strict: math-verify searches the text
    for an expression and evaluates it.
    Either way `x = 5` equals 5, and a percent sign or unit is ignored. Raises ValueError if there is no usable right answer.
    """
    gold = gold_answer(request)
    rest = after_marker(request.response_text, marker)
    if not rest:
        return 0.0
    boxed = last_boxed(rest)
    final = rest if boxed is None else boxed
    expected, given = plain_number(gold), plain_number(final)
    if expected is not None and (strict or given is not None):
        return float(given == expected)
    if strict and (len(final) > MAX_ANSWER_CHARS or last_boxed(_in_box(final)) != final):
        return 0.0
    alone = strict or boxed is not None
    found = parse(_in_box(final) if alone else final[-MAX_ANSWER_CHARS:], parsing_timeout=TIMEOUT_S)
    return float(verify(_parsed_gold(gold), found, timeout_seconds=TIMEOUT_S))


@lru_cache(maxsize=1024)
def _parsed_gold(gold: str) -> list[Any]:
    """Parsed once for all samples of a prompt."""
    inner = last_boxed(gold)
    parsed: list[Any] = parse(_in_box(gold if inner is None else inner), parsing_timeout=TIMEOUT_S)
    if not parsed:
        raise ValueError(f"math-verify cannot read the right answer {gold!r}; use samepath.rewards.exact:text for it")
    return parsed


def _in_box(text: str) -> str:
    # math-verify reads what is in a box as LaTeX and as one answer; without it `\sqrt{2}` is not found at all.
    return f"\\boxed{{{text}}}"
