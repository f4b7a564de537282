r"""Numbers that are written out: which texts are one, and when two are the same.

[docs/answers.md](../docs/answers.md) lists the spellings. A sum, a product, a power, a root or two numbers are no written-out
number: where the right answer is one, they would be the question again.
"""

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from samepath.rewards.magnitude import read_magnitude, read_numeral
from samepath.rewards.spelling import UnreadableError, in_one_spelling
from samepath.rewards.unit import Unit, go_together, read_unit

MAX_NUMBER_CHARS = 1000
"""A longer text is not read as a number; it bounds the cost of big integers."""
DOUBLE_DIGITS = (16, 17)
"""So many significant digits, with a point or an exponent, have the doubles that a program prints when they are not round."""
MEANT_DIGITS = 12
"""A number of so few digits, or a fraction with so few above and below the bar together, may be what a printed double stands for."""
DOUBLE_ULPS = 4
"""It does so within so many units in the last place."""
PERCENT: Unit = (("%", 1),)

_STRUCK = re.compile(r"\s*~~.*\S~~")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(r'\s*(?P<quote>"?)\s*(?P<word>hundred|thousand|million|billion|trillion)s?\b\s*(?P<end>"?)')
_CURRENCY = re.compile(r'(?:US\s?)?(\\\$|[€£¥₹₽₩])\s*|"?\s*(USD|EUR|GBP|CHF|INR|Rs)\b\.?\s*"?\s*')
_NAME = re.compile(r"(?:[A-Za-z'\"\s]|‾|\\[A-Za-z]+\s|_\([\w,\"\s]*\)|\([\w,\"\s]*\))+")
_NAME_COMMANDS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi
chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega angle measuredangle triangle ell
"""
_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|cot|log|ln|exp|sqrt|abs|not|base)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenNumber:
    r"""One written-out number.

    Example:
        `WrittenNumber(value=Fraction(5, 2), unit=(("cm", 1),), name="x", digits=2)` for `x = 2.50\text{ cm}`
    """

    value: Fraction
    """Exact; a percent sign does not divide it."""
    unit: Unit = ()
    """Canonical unit, empty if there is none."""
    base: int = 10
    """Base in which the digits stand."""
    name: str = ""
    """What stood before an equals sign."""
    digits: int = 0
    """Significant digits if written with a decimal point or an exponent; 0 for whole numbers and fractions, which are exact."""


def read_number(text: str) -> WrittenNumber | None:
    r"""Read a text that is one written-out number, in any spelling; None for anything else.

    Several sides that are equal (`x = \frac{1}{2} = 0.5`) are one number; the first may be a name.
    """
    if len(text) > MAX_NUMBER_CHARS or _STRUCK.match(text):
        return None
    try:
        spelled = in_one_spelling(text)
    except UnreadableError:
        return None
    spelled = spelled.removesuffix(".").strip()
    first, *others = (side.strip() for side in spelled.split("="))
    name = quantity_name(first) if others else None
    sides = [_side(side) for side in (others if name is not None else [first, *others])]
    number = sides[0]
    if number is None or any(side is None or not same_number(number, side) for side in sides):
        return None
    return replace(number, name=name or "")


def same_number(gold: WrittenNumber, given: WrittenNumber) -> bool:
    """Return whether the given number is the right one: exactly, whatever the spelling, but see below.

    Bases must agree, and names and units if both have one. A percent sign that only one of them has is taken as a unit or as
    "of a hundred", whichever fits: 50% answers 50 and 0.5. A right answer of 16 or 17 significant digits is a printed double:
    a number of up to 12 digits, or a small fraction, is equal to it within 4 units in the last place.
    """
    if gold.base != given.base or (gold.name and given.name and gold.name != given.name):
        return False
    if (gold.unit == PERCENT) != (given.unit == PERCENT):
        percent, other = (gold, given) if gold.unit == PERCENT else (given, gold)
        return not other.unit and (_equal(gold, given) or percent.value == 100 * other.value)
    return go_together(gold.unit, given.unit) and _equal(gold, given)


def _equal(gold: WrittenNumber, given: WrittenNumber) -> bool:
    if gold.value == given.value:
        return True
    meant = _digits(given) <= MEANT_DIGITS and gold.digits in DOUBLE_DIGITS
    if not meant or abs(gold.value) >= Fraction(2) ** 1023:
        return False
    return abs(gold.value - given.value) <= DOUBLE_ULPS * Fraction(math.ulp(float(gold.value)))


def _digits(number: WrittenNumber) -> int:
    if number.digits:
        return number.digits
    top, bottom = str(abs(number.value.numerator)), str(number.value.denominator)
    return len(top.strip("0")) + (len(bottom) if bottom != "1" else 0)


def quantity_name(side: str) -> str | None:
    """Return what names a quantity (in one spelling), without spaces and quotes; None if it does more, as `2x` and `I get x` do."""
    if not side:
        return ""
    commands = set(re.findall(r"\\([A-Za-z]+)", side))
    pieces = re.findall(r"[A-Za-z]+", re.sub(r"\\[A-Za-z]+|\([^)]*\)", " ", side))
    sentence = len(pieces) > 1 and any(len(piece) > 1 and piece[1:].islower() for piece in pieces)
    if not _NAME.fullmatch(side + " ") or sentence or _FUNCTIONS.search(side) or commands - set(_NAME_COMMANDS.split()):
        return None
    return re.sub(r"[\s\"]", "", side)


def _side(text: str) -> WrittenNumber | None:
    """Read one side of an equation: a numeral of a stated base, or a number with its unit."""
    sign, currency, rest = _lead(text)
    numeral = read_numeral(rest.replace('"', "").strip())
    if numeral is not None and not currency:
        return WrittenNumber(value=sign * numeral[0], base=numeral[1])
    if re.fullmatch(r"\([^(),]*\)", text):
        return _side(text[1:-1].strip())
    found = read_magnitude(rest)
    # `-(-5)` is a question.
    if found is None or (rest != text and re.match(r"\(\s*[-+]", rest)):
        return None
    value, rest = _scaled(found[0].value, found[1])
    if currency:
        if rest and not re.match(r'[\s"]*(?:/|per\b)', rest):
            return None
        rest = f"{currency}{rest}"
    unit = read_unit(rest)
    return None if unit is None else WrittenNumber(value=sign * value, unit=unit, digits=found[0].digits)


def _lead(text: str) -> tuple[int, str, str]:
    """Return sign, currency and the rest; the sign may stand on either side of the currency."""
    sign, currency = "", ""
    for _ in range(2):
        if not sign and text.startswith(("+", "-")):
            sign, text = text[0], text[1:].lstrip()
        money = _CURRENCY.match(text)
        if not currency and money is not None:
            currency, text = money[1] or f'"{money[2]}"', text[money.end() :]
    return (-1 if sign == "-" else 1), currency, text


def _scaled(value: Fraction, rest: str) -> tuple[Fraction, str]:
    """Take `million` and its like into the value; what follows is a unit."""
    scale = _SCALE.match(rest)
    if scale is None:
        return value, rest
    # `"million dollars"` is one piece in a roman typeface.
    unit = rest[scale.end() :]
    unit = f' "{unit}' if scale["quote"] and not scale["end"] else f" {unit}"
    return value * _SCALES[scale["word"]], unit if unit.strip() else ""
