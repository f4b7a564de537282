"""Rewards that compare the response with the right answer without any mathematics; no dependencies."""

from samepath.rewards.final_answer import final_text, gold_answer
from samepath.rewards.number import read_number, same_number
from samepath.rewards.request import RewardRequest


def text(request: RewardRequest, *, marker: str = "", ignore_case: bool = False) -> float:
    """Give 1 if the text after the last `marker` (all of it if empty) is the right answer to the letter, else 0.

    White space around either is ignored. Raises ValueError if the prompt has no right answer.
    """
    given = final_text(request, marker)
    gold = gold_answer(request)
    if ignore_case and given is not None:
        return float(given.casefold() == gold.casefold())
    return float(given == gold)


def number(request: RewardRequest, *, marker: str = "") -> float:
    """Give 1 if the text after the last `marker` (all of it if empty) is one number equal to the right answer, else 0.

    Compared exactly: `51`, `51.0` and `+51` are equal; `510`, `-51`, `5.1`, `51 52` and `50+1` are wrong answers to 51.
    Raises ValueError if the right answer is no plain number.
    """
    gold = gold_answer(request)
    expected = read_number(gold)
    if expected is None:
        raise ValueError(f"the right answer must be a plain number; got {gold!r}. Use samepath.rewards.math:answer.")
    given = final_text(request, marker)
    found = None if given is None else read_number(given)
    return float(found is not None and same_number(expected, found))
