"""Where the answer stands in a response, what the right one is, and which answers are plain numbers."""

import re
from fractions import Fraction

from samepath.rewards.request import RewardRequest

MAX_NUMBER_CHARS = 100
"""A longer text is not read as a number; it bounds the cost of big integers."""

_BRACES = re.compile(r"\\boxed\s*\{|\{|\}")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"""
    (?:[A-Za-z]\s*=\s*)?                                   # x = 5
    (?P<sign>[+-]?)\s*
    (?:
        (?P<value>{_DECIMAL})(?:\s*/\s*(?P<divisor>{_DECIMAL}))?
      | \\[dt]?frac\s*\{{\s*(?P<minus>-?)(?P<top>{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>{_DECIMAL})\s*\}}
    )
    \s*(?:%|°|\^\\circ|\^\{{\\circ\}}|\\(?:text|mathrm|mbox)\s*\{{[^{{}}]*\}})?  # a unit changes nothing
    \s*\.?
    """,
    re.VERBOSE,
)


def gold_answer(request: RewardRequest) -> str:
    """Return the right answer as text. Raises ValueError if the request carries none."""
    if "answer" not in request.answer:
        raise ValueError(
            f"the prompt's answer data must hold the right answer under 'answer'; got {sorted(request.answer)}. "
            "Name the task's answer column so."
        )
    return str(request.answer["answer"]).strip()


def after_marker(text: str, marker: str) -> str | None:
    """Return what follows the last `marker`, stripped; the whole text if `marker` is empty; None if it does not occur.

    Example: `after_marker("17+34=51 #51", "#")` is `"51"`.
    """
    if not marker:
        return text.strip()
    _, found, rest = text.rpartition(marker)
    return rest.strip() if found else None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the complete `\boxed{…}` that begins last, or None if there is none.

    Example: `last_boxed(r"\boxed{4}, no, \boxed{\frac{1}{2}}")` is `r"\frac{1}{2}"`.
    """
    opened: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match[0] != "}":
            opened.append((len(match[0]) > 1, match.end()))
        elif opened:
            boxed, start = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else text[last[0] : last[1]].strip()


def plain_number(text: str) -> Fraction | None:
    r"""Return the exact value of a number that is written out, or None for anything else (sums, powers, words, two numbers).

    Read are integers, decimals, thousands commas, fractions (`1/2`, `\frac{1}{2}`), one variable before (`x = 5`), and a
    unit behind (`%`, degrees, `\text{…}`) which changes nothing.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    # Dollar signs, inline mathematics and thin spaces are spelling, not value.
    cleaned = re.sub(r"\\?\$|\\[!,;() ]", "", text.replace("{,}", ",").replace("−", "-")).strip()
    match = _NUMBER.fullmatch(cleaned)
    if match is None:
        return None
    top = _fraction(match["value"] or match["top"])
    bottom = _fraction(match["divisor"] or match["bottom"] or "1")
    if bottom == 0:
        return None
    negative = (match["sign"] == "-") != (match["minus"] == "-")
    return -top / bottom if negative else top / bottom


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").rstrip("."))
