r"""Equality of expressions, sets, tuples and intervals by math-verify, with its ways to call different answers equal closed.

math-verify reads LaTeX and knows when `x^2-1` is `(x-1)(x+1)`. It also takes values below about 10⁻¹⁵ for zero, rounds decimals
to six places, ignores capitals, reads a word as a product of letters and a date as a difference, and takes any brackets around
a pair for any other. What it calls equal is therefore evaluated to 40 digits and compared by relative difference, and words,
letters and brackets are compared here. Numbers so large that they cannot be evaluated are refused beforehand: its own alarm
does not always end them.
"""

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from samepath.rewards.characters import in_ascii
from samepath.rewards.number import WrittenNumber, quantity_name
from samepath.rewards.plain_latex import in_plain_latex
from samepath.rewards.spelling import UnreadableError, in_one_spelling

# The one place that needs the extra. This module is imported by path in the children only, before their limits on time and
# memory begin: the import takes half a second.
try:
    import sympy
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "samepath.rewards.math needs math-verify: pip install samepath[math]. "
        "samepath.rewards.exact:number compares plain numbers without it.",
        name=error.name,
    ) from error

TIMEOUT_S = 2
"""math-verify's own alarm for each parse and comparison, whole seconds of wall time: at most four of them in strict mode, which
is less than the runner's limit, and enough on a busy machine for what takes a tenth of a second."""
MAX_BITS = 1_000_000
"""Integers that an expression's evaluation may need; beyond it the answer is wrong."""
MAX_DEPTH = 50
"""Brackets within brackets; deeper ones are not read."""
DIGITS = 40
"""Numbers are evaluated to so many digits,"""
EXACT = 1e-30
"""and exact forms are equal if they differ by no more than this part of the larger one,"""
WITH_DECIMALS = 1e-12
"""expressions that contain decimals, which are kept as doubles, by this part,"""
APPROXIMATE = 1e-6
"""and a decimal answer to an irrational number by this part."""

_WORD = re.compile(r"[a-z][a-z0-9',\- ]*[a-z0-9]")
_SHORT_WORDS = "no on up in it is of or to at an as be by do go he if me my so us we am"
_FUNCTIONS = re.compile(r"sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|min|max|gcd|lcm|arc|pi")
_CHOICE = re.compile(r"\(?\s*([A-Z])\s*(?:\.\s*\)?|\)\s*\.?)?")
_NUMERAL = re.compile(r"[0-9][0-9A-Z.]*\s*_\(.*?\)")
_DATE = re.compile(r"\d{1,4}([-/.:])\d{1,2}(?:\1\d{1,4})|\d{1,2}:\d{2}(?: ?[ap]m)?")


def same_words(gold: str, given: str) -> bool | None:
    """Compare a right answer that is a word, a name, a date or a time letter by letter; None if it is none of these.

    Capitals, a full stop and the typeface do not count.
    """
    right = _as_words(gold)
    if (choice := _choice(gold)) is not None and (other := _choice(given)) is not None:
        return choice == other
    if right is None or not (_is_words(right) or _DATE.fullmatch(right)):
        return None
    return right == _as_words(given)


def _choice(text: str) -> str | None:
    """Return the capital letter that a text is, as `(B)`, `\\text{B}` and `B.` are; None if it is none."""
    try:
        letter = _CHOICE.fullmatch(in_one_spelling(text).replace('"', " ").strip())
    except UnreadableError:
        return None
    return None if letter is None else letter[1]


def _as_words(text: str) -> str | None:
    try:
        spelled = in_one_spelling(text)
    except UnreadableError:
        return None
    words = re.sub(r"\s+", " ", spelled.replace('"', " ")).strip().removesuffix(".").strip().casefold()
    return re.sub(r" ?\b([ap])\.?m\b\.?$", r" \1m", words)


def _is_words(text: str) -> bool:
    if not _WORD.fullmatch(text):
        return False
    words = re.findall(r"[a-z]+", text)
    return any(word in _SHORT_WORDS.split() or (len(word) > 2 and not _FUNCTIONS.search(word)) for word in words)


def same_expression(gold: str, given: str, expected: WrittenNumber | None, number: WrittenNumber | None) -> bool:
    """Return whether all of `given` is an expression that math-verify finds equal to `gold`, and evaluation agrees.

    expected, number: what they are if they are written-out numbers; at most one is. All sides of an equation must be equal,
    but for a name in front. Raises ValueError if `gold` cannot be read.
    """
    parsed = parsed_gold(gold) if expected is None else [_rational(expected)]
    if _depth(given) > MAX_DEPTH or _brackets_differ(gold, given) or _letters_differ(gold, given):
        return False
    sides = [given] if "=" in gold else _sides(given)
    return all(_same(parsed, _in_box(side), number) for side in sides)


def finds_expression(gold: str, text: str, expected: WrittenNumber | None) -> bool:
    """Return whether the expression that math-verify finds in a text, wherever it stands, is equal to `gold`."""
    parsed = parsed_gold(gold) if expected is None else [_rational(expected)]
    return _depth(text) <= MAX_DEPTH and _same(parsed, in_ascii(text), None)


def _same(parsed: list[Any], text: str, number: WrittenNumber | None) -> bool:
    if number is not None:
        found = [_rational(number)]
    else:
        found = parse(text, parsing_timeout=TIMEOUT_S)
    if not found or not _bounded(found[0]):
        return False
    try:
        if number is not None and number.digits and timeout(TIMEOUT_S)(_approximates)(parsed[0], found[0]):
            return True
        equal = verify(parsed, found, timeout_seconds=TIMEOUT_S)
        return bool(equal and timeout(TIMEOUT_S)(_agree)(parsed[0], found[0]))
    except TimeoutException:
        return False


def _sides(text: str) -> list[str]:
    """Split an equation; a name in front is left out, and a list of equations stays whole."""
    first, *others = re.split(r"(?<![<>!:\\])=", text)
    if not others or re.search(r",|;|\\text|\bor\b|\band\b|\\not|\\ne|\\begin", text):
        return [text]
    try:
        named = quantity_name(in_one_spelling(first)) is not None
    except UnreadableError:
        named = False
    return others if named else [first, *others]


def _rational(number: WrittenNumber) -> Any:
    return sympy.Rational(number.value.numerator, number.value.denominator)


@lru_cache(maxsize=1024)
def parsed_gold(gold: str) -> list[Any]:
    """Parse a right answer, once for all samples of a prompt. Raises ValueError if it cannot be read or evaluated."""
    parsed: list[Any] = parse(_in_box(gold), parsing_timeout=TIMEOUT_S)
    if not parsed or not _bounded(parsed[0]):
        raise ValueError(f"math-verify cannot read the right answer {gold!r}; use samepath.rewards.exact:text for it")
    return parsed


def _in_box(text: str) -> str:
    # math-verify reads what is in a box as LaTeX and as one answer; without it `\sqrt{2}` is not found at all.
    plain = in_plain_latex(text)
    return f"\\boxed{{{in_ascii(text) if plain is None else plain}}}"


def _depth(text: str) -> int:
    depth, deepest = 0, 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _brackets_differ(gold: str, given: str) -> bool:
    """Tell a set from a pair and an open interval from a closed one; a bare list may be a set, but neither of the others."""
    right, answer = _brackets(gold), _brackets(given)
    if right is None or answer is None or "" in (right, answer):
        return right == "" and answer is not None and answer not in ("", r"\{\}")
    return right != answer


def _brackets(text: str) -> str | None:
    """Return the brackets around a list, empty for a bare one, or None if the text is no list."""
    try:
        spelled = in_one_spelling(text).replace(r"\lbrace ", r"\{").replace(r"\rbrace", r"\}")
    except UnreadableError:
        return None
    around = re.fullmatch(r"(\(|\[|\\\{)[^()\[\]]*,[^()\[\]]*(\)|\]|\\\})", spelled.strip())
    if around is not None:
        return around[1] + around[2]
    return "" if re.fullmatch(r"[^()\[\]{}⁄]+,[^()\[\]{}⁄]+", spelled) else None


def _letters_differ(gold: str, given: str) -> bool:
    """Return whether a variable of the right answer stands in the other case (a single letter may be a choice), or a base differs."""
    if _numerals(gold) != _numerals(given):
        return True
    right, answer = _variables(gold), _variables(given)
    return len(gold.strip()) > 1 and any(letter.swapcase() in right for letter in answer - right)


def _numerals(text: str) -> set[str]:
    """Return the numerals of a stated base, whose subscripts math-verify drops."""
    try:
        spelled = in_one_spelling(text)
    except UnreadableError:
        return set()
    return {re.sub(r"[\s\"]", "", numeral) for numeral in _NUMERAL.findall(spelled)}


def _variables(text: str) -> set[str]:
    try:
        spelled = in_one_spelling(text)
    except UnreadableError:
        return set()
    return set(re.findall(r"[A-Za-z]", re.sub(r'\\[A-Za-z]+|"[^"]*"|[A-Za-z]{3,}', "", spelled)))


def _bounded(parsed: Any) -> bool:
    return not isinstance(parsed, sympy.Basic) or _log2(parsed) <= MAX_BITS


def _log2(expression: Any) -> float:
    """Return an upper bound of the binary logarithm of every number that evaluating the expression needs."""
    if isinstance(expression, sympy.Rational):
        return math.log2(max(abs(expression.p), expression.q, 2))
    if isinstance(expression, sympy.Float):
        return 64.0 + float(abs(expression._mpf_[2]))
    inner = [_log2(part) for part in expression.args]
    if isinstance(expression, sympy.Pow | sympy.exp):
        base, power = (inner[0], inner[1]) if len(inner) > 1 else (2.0, inner[0])
        return base * 2.0 ** min(power, 64.0) if expression.args[-1].is_number else base * 64
    if isinstance(expression, sympy.factorial | sympy.binomial):
        return max(inner) * 2.0 ** min(max(inner), 64.0) if expression.args[0].is_number else 64.0
    return sum(inner) if isinstance(expression, sympy.Mul) else max(inner, default=2.0) + len(inner)


def _agree(gold: Any, given: Any) -> bool:
    """Evaluate what math-verify calls equal; what is no number, list or matrix is left to it."""
    gold, given = _other_side(gold), _other_side(given)
    right, answer = _elements(gold), _elements(given)
    if right is not None and answer is not None:
        if len(right) != len(answer):
            return True
        if not isinstance(gold, sympy.FiniteSet) and not isinstance(given, sympy.FiniteSet):
            return all(map(_agree, right, answer))
        return all(any(_agree(one, other) for other in answer) for one in right)
    if isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr):
        return _relative_difference(gold, given) <= (WITH_DECIMALS if _has_decimals(gold, given) else EXACT)
    return True


def _other_side(parsed: Any) -> Any:
    """Return what stands across from a lone variable; anything else as it is."""
    if isinstance(parsed, sympy.Rel) and isinstance(parsed.lhs, sympy.Symbol):
        return parsed.rhs
    return parsed.lhs if isinstance(parsed, sympy.Rel) and isinstance(parsed.rhs, sympy.Symbol) else parsed


def _elements(parsed: Any) -> list[Any] | None:
    if isinstance(parsed, sympy.Interval):
        return [parsed.start, parsed.end]
    if isinstance(parsed, sympy.FiniteSet | sympy.Tuple | sympy.And | sympy.Union):
        return list(parsed.args)
    return list(parsed.flat()) if isinstance(parsed, sympy.MatrixBase) else None


def _has_decimals(*expressions: Any) -> bool:
    return any(expression.has(sympy.Float) for expression in expressions)


def _relative_difference(gold: Any, given: Any) -> float:
    """Evaluate both at one point and return |a − b|/max(|a|, |b|); 0 if they have no value there."""
    symbols = sorted(gold.free_symbols | given.free_symbols, key=str)
    point = {symbol: sympy.Rational(17 + 4 * index, 13 + index) for index, symbol in enumerate(symbols)}
    a, b = (side.doit().evalf(DIGITS, subs=point) for side in (gold, given))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return 0.0
    return float(abs(a - b) / max(abs(a), abs(b))) if a != b else 0.0


def _approximates(gold: Any, decimal: Any) -> bool:
    """Return whether a decimal stands for an irrational number."""
    gold = _other_side(gold)
    if not isinstance(gold, sympy.Expr) or gold.free_symbols or _has_decimals(gold):
        return False
    value = gold.evalf(DIGITS)
    if not value.is_Float or _relative_difference(value, decimal) > APPROXIMATE:
        return False
    near = Fraction(sympy.Rational(value).p, sympy.Rational(value).q).limit_denominator(10**6)
    return bool(_relative_difference(value, sympy.Rational(near.numerator, near.denominator)) > EXACT)
