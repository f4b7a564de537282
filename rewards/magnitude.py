r"""The values that digits stand for: decimals, groups of thousands, repeating decimals, fractions, mixed numbers, powers of ten, bases.

Everything here reads the short form of [spelling.py](spelling.py) from the left and returns what follows.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

MAX_EXPONENT = 10_000
"""A power of ten beyond it, up or down, is not read as a number."""
MAX_BRACKETS = 10
"""Brackets within brackets around a number; deeper ones are not read."""

_DECIMAL = re.compile(
    r"""
    (?:
        (?P<whole>[1-9]\d{0,2}(?P<comma>,|;,|'|\ )\d{3}(?:(?P=comma)\d{3})*(?!\d)|\d+)
        (?:
            (?P<point>\.|;,(?=\d))
            (?P<part>\d{3}(?:\ \d{3})+(?:\ \d{1,2})?(?!\d)|\d*)
            (?P<repeated>‾\(\d+\)(?:\d*‾\(\d+\))?|\(\d+\))?
        )?
      | \.(?=[\d‾])(?P<bare>\d*)(?P<bare_repeated>‾\(\d+\)(?:\d*‾\(\d+\))?)?
    )
    """,
    re.VERBOSE,
)
_TIMES_TEN = re.compile(r"\s*(?:\\times|\\cdot|\\ast|\*|[xX])\s*10\s*(?:\^\(\(?([+-]?\d+)\)?\)|\*\*\s*([+-]?\d+))")
_E = re.compile(r'(?:[eE]|\s?"[eE]"\s?)([+-]?\d+)')
_TEN_TO = re.compile(r"10\s*(?:\^\(\(?([+-]?\d+)\)?\)|\*\*\s*([+-]?\d+))")
_MIXED = re.compile(r"\s*\[([1-9]\d*)⁄([1-9]\d*)\]|\s([1-9]\d*)/([1-9]\d*)(?!\d)")
_BAR = re.compile(r"\s*/\s*(?=[\d.(+-])")

_BASE_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
}
_BASE_WORDS |= {"sixteen": 16, "binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16}
_IN_BASE = re.compile(
    r"""
    \(?\s*(?P<digits>[0-9A-Za-z]+(?:\ [0-9A-Za-z]+)*?(?:\.[0-9A-Za-z]+)?)\s*\)?\s*
    (?:_\(\s*\(?\s*(?:base\s*)?(?P<low>\w+)\s*\)?\s*\)|\(?\b(?:in\s)?(?:base\s*(?P<named>\w+)|(?P<word>binary|octal|decimal|hexadecimal|hex))\)?)
    """,
    re.VERBOSE,
)
_PREFIXED = re.compile(r"0(?P<kind>[xXbBoO])_?(?P<digits>[0-9A-Fa-f]+(?:_[0-9A-Fa-f]+)*)")
_PREFIX_BASES = {"x": 16, "b": 2, "o": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """A value and how it was written. Example: `Magnitude(value=Fraction(5, 2), digits=2)` for `2.50`."""

    value: Fraction
    """Exact."""
    digits: int = 0
    """Significant digits if written with a decimal point or an exponent; 0 for whole numbers and fractions, which are exact."""
    divided: bool = False
    """A fraction or mixed number; a fraction of fractions would be a question."""


class _Read(Protocol):
    def __call__(self, text: str, *, depth: int) -> tuple[Magnitude, str] | None: ...


def read_magnitude(text: str, *, depth: int = 0) -> tuple[Magnitude, str] | None:
    """Return the unsigned number that begins the text, and what follows it; None if none begins there.

    depth: how many brackets are open around it.
    """
    found = _operand(text, depth=depth)
    if found is None:
        return None
    number, rest = found
    mixed = _MIXED.match(rest)
    if mixed is not None and text[0].isdigit() and number.digits == 0:
        over, under = (int(part) for part in mixed.groups() if part)
        if over >= under:
            return None
        return Magnitude(value=number.value + Fraction(over, under), divided=True), rest[mixed.end() :]
    bar = _BAR.match(rest)
    if bar is None:
        return found
    bottom = _signed(rest[bar.end() :], depth, _operand)
    # `1 200/300` may be a mixed number or a quotient.
    if bottom is None or re.match(r"\d+ \d", text):
        return None
    quotient = _quotient(number, bottom[0])
    return None if quotient is None else (quotient, bottom[1])


def read_numeral(text: str) -> tuple[Fraction, int] | None:
    """Return value and base if the whole text is a numeral of a stated base: `1101_(2)`, `0xFF`, `ff base 16`; else None."""
    prefixed = _PREFIXED.fullmatch(text)
    if prefixed is not None:
        base, digits = _PREFIX_BASES[prefixed["kind"].lower()], prefixed["digits"].replace("_", "")
    else:
        match = _IN_BASE.fullmatch(text)
        if match is None:
            return None
        low = match["low"] or match["named"] or match["word"]
        base = _BASE_WORDS.get(low.lower()) or (int(low) if re.fullmatch(r"[0-9]{1,2}", low) else 0)
        digits = match["digits"].replace(" ", "")
    whole, _, part = digits.partition(".")
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in whole + part):
        return None
    return Fraction(int(whole + part, base), base ** len(part)), base


def _signed(text: str, depth: int, read: _Read) -> tuple[Magnitude, str] | None:
    sign = re.match(r"[+-]\s*", text)
    found = read(text if sign is None else text[sign.end() :], depth=depth)
    if found is None or not text.startswith("-"):
        return found
    return replace(found[0], value=-found[0].value), found[1]


def _operand(text: str, *, depth: int) -> tuple[Magnitude, str] | None:
    """Read a decimal, a fraction, or a number in parentheses."""
    if depth > MAX_BRACKETS:
        return None
    if text.startswith("("):
        within = _signed(text[1:].lstrip(), depth + 1, read_magnitude)
        # `(1,234)` is a pair.
        if within is None or not within[1].lstrip().startswith(")") or re.match(r"\([^)]*(?<!;),", text):
            return None
        return within[0], within[1].lstrip()[1:]
    if not text.startswith("["):
        return _decimal(text)
    top = _signed(text[1:].lstrip(), depth + 1, _operand)
    if top is None or not top[1].startswith("⁄"):
        return None
    bottom = _signed(top[1][1:].lstrip(), depth + 1, _operand)
    if bottom is None or not bottom[1].startswith("]"):
        return None
    quotient = _quotient(top[0], bottom[0])
    return None if quotient is None else (quotient, bottom[1][1:])


def _quotient(top: Magnitude, bottom: Magnitude) -> Magnitude | None:
    if top.divided or bottom.divided or bottom.value == 0:
        return None
    return Magnitude(value=top.value / bottom.value, divided=True)


def _decimal(text: str) -> tuple[Magnitude, str] | None:
    power = _TEN_TO.match(text)
    if power is not None:
        scaled = _times_ten_to(Fraction(1), power)
        return None if scaled is None else (Magnitude(value=scaled), text[power.end() :])
    match = _DECIMAL.match(text)
    if match is None:
        return None
    whole = re.sub(r"\D", "", match["whole"] or "")
    part = (match["part"] or match["bare"] or "").replace(" ", "")
    value = Fraction(int((whole + part) or "0"), 10 ** len(part))
    rest = text[match.end() :]
    repeated = match["repeated"] or match["bare_repeated"]
    if repeated:
        period = re.sub(r"\D", "", repeated)
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(part))
        return Magnitude(value=value), rest
    exponent = _E.match(rest) or _TIMES_TEN.match(rest)
    written = match["point"] or match["whole"] is None or exponent
    digits = len((whole + part).strip("0")) if written else 0
    if exponent is None:
        return Magnitude(value=value, digits=digits), rest
    scaled = _times_ten_to(value, exponent)
    return None if scaled is None else (Magnitude(value=scaled, digits=digits), rest[exponent.end() :])


def _times_ten_to(value: Fraction, match: re.Match[str]) -> Fraction | None:
    exponent = int(next(group for group in match.groups() if group))
    return value * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
