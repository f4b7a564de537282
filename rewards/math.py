r"""Equality of the final answer with the right one: exact for written-out numbers, by mathematics for anything else.

[docs/answers.md](../docs/answers.md) lists what counts. What math-verify is kept from here: reading two boxed answers at once
(only the last is given to it), adding up "51 52", and paying an unevaluated copy of the question when the right answer is a
number.
"""

import re
from functools import lru_cache

from samepath.rewards.expression import finds_expression, same_expression, same_words
from samepath.rewards.final_answer import final_text, gold_answer, last_boxed
from samepath.rewards.number import WrittenNumber, quantity_name, read_number, same_number
from samepath.rewards.request import RewardRequest
from samepath.rewards.spelling import UnreadableError, in_one_spelling
from samepath.rewards.unit import changes_number, read_unit

MAX_ANSWER_CHARS = 500
"""A longer final answer that is no number is wrong when strict; otherwise its last characters are read."""
MIN_WORDS = 2
"""A response of so many words is prose, in which the answer may be stated at the end when not strict,"""
MIN_SEARCHED_WORDS = 5
"""and of so many words, anywhere."""

# What math-verify drops or joins, although it leaves another number.
_DROPPED = re.compile(r"\d\s+\d|\w\s*_|\\(?:not|ne|neq|approx|sim|phantom|cancel|mathrm\{[ie]\}|\$.*\\text)")
_OTHER_NUMBER = re.compile(r"~~|\d(?:st|nd|rd|th)\b|[‰‱]|\\[lr](?:floor|ceil)\b|\\\$.*[A-Za-z]")
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{2,}|I\b)")
_DENIED = re.compile(r"\b(?:not|wrong|incorrect|instead|half|pairs?|dozens?|hundreds?|thousands?|[mb]illions?)\b")
_STATED = re.compile(r"\b(?:is|are|equals|get|gives)\b|:\s")


def answer(request: RewardRequest, *, strict: bool = True, marker: str = "") -> float:
    r"""Give 1 if the final answer equals `request.answer["answer"]`, else 0.

    The final answer is the last complete `\boxed{…}` after the last `marker` (anywhere if empty), else all text after it;
    thinking sections do not count (see `final_text`).
    strict: it must stand alone, and for a right answer that is a plain number it must be a written-out number, compared
    exactly: `12+39`, `51 52` and `the answer is 51` are wrong answers to 51. Not strict: sums, products and powers are
    evaluated, and in prose without a box the answer may follow "is" or a colon in the last line, or else stand anywhere.
    Raises ValueError if there is no usable right answer.
    """
    gold = gold_answer(request)
    gold = last_boxed(gold) or gold
    rest = final_text(request, marker)
    if not rest:
        return 0.0
    boxed = last_boxed(rest)
    final = rest if boxed is None else boxed
    right = _is_right(gold, final, evaluate=not strict)
    return float(right or (not strict and boxed is None and _is_told(gold, final)))


def _is_right(gold: str, final: str, *, evaluate: bool) -> bool:
    """Compare all of `final`; evaluate: where the right answer is a number, it need not be one that is written out."""
    expected, given = _gold_number(gold), read_number(final)
    if expected is not None and (given is not None or not evaluate):
        return given is not None and same_number(expected, given)
    words = same_words(gold, final) if expected is None else None
    if words is not None:
        return words
    if len(final) > MAX_ANSWER_CHARS or last_boxed(f"\\boxed{{{final}}}") != final:
        return False
    if expected is not None and (changes_number(final) or _DROPPED.search(final) or not _ends_in_unit(final)):
        return False
    return same_expression(gold, final, expected, given)


def _ends_in_unit(final: str) -> bool:
    """Return whether words in a roman typeface are names or units of a side; math-verify drops them wherever they stand."""
    try:
        sides = in_one_spelling(final).split("=")
    except UnreadableError:
        return False
    if _OTHER_NUMBER.search(final):
        return False
    if len(sides) > 1 and quantity_name(sides[0].strip()) is not None:
        del sides[0]
    parts = [side.partition('"') for side in sides]
    return all(not quote or read_unit(quote + words) is not None for _, quote, words in parts)


def _is_told(gold: str, text: str) -> bool:
    """Look for the answer in prose: at the end of its last line, or else wherever math-verify finds one."""
    num_words = len(_WORD.findall(text))
    if num_words < MIN_WORDS:
        return False
    line = text.splitlines()[-1][-MAX_ANSWER_CHARS:]
    told = _STATED.split(line)[-1].strip(" *.")
    if _is_right(gold, told, evaluate=True):
        return True
    if read_number(told) is not None or num_words < MIN_SEARCHED_WORDS or _DENIED.search(line):
        return False
    return finds_expression(gold, text[-MAX_ANSWER_CHARS:], _gold_number(gold))


@lru_cache(maxsize=1024)
def _gold_number(gold: str) -> WrittenNumber | None:
    """Read once for all samples of a prompt."""
    return read_number(gold)
