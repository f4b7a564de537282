"""Units behind a number: which words and signs are one, and when two units go together.

A unit that only one of two answers carries changes nothing; two different ones do. Nothing is converted: 5 km is not 5000 m.
"""

import re

from samepath.rewards.unit_words import CANONICAL, NO_UNITS, OTHER_NUMBER, SYMBOLS, WORDS

Unit = tuple[tuple[str, int], ...]
"""Names with their exponents, sorted; empty for no unit. Example: `(("m", 1), ("s", -2))` for `m/s^2`."""

MAX_WORDS = 3
"""So many words that are in no table may name what was counted: `5\\text{ blue glass marbles}`."""

_COMPOUND = {
    "mph": "mi/h",
    "kph": "km/h",
    "kmh": "km/h",
    "cc": "cm^3",
    "kwh": "kW h",
    "kWh": "kW h",
    "mpg": "mi/gallon",
    "light[- ]years?": "ly",
    "nautical miles?": "nmi",
    r"fl\.? ?oz|fluid ounces?": "floz",
    r"US dollars?|U\.S\. dollars?": "dollar",
    "o'clock": "oclock",
    "(?<=years|onths|weeks|.days) old": "",
}
_CHANGING = NO_UNITS - {"and"} | {"squared", "cubed"}
_TOKEN = re.compile(
    r"""
    \s*(?:
      (?P<over>/|per\b)
    | (?P<big>(?:square|sq|cubic|cu)\b\.?)
    | (?P<small>(?:squared|cubed)\b)
    | \^(?P<power>-?[1-4])(?![\d.])
    | (?P<times>\\cdot|\*)
    | (?P<word>[ap]\.m\.|[A-Za-zμΩÅ]+?(?:(?P<digit>[23])(?![\w.])|(?![A-Za-zμΩÅ]))|[$€£¥₹¢₽₩%°])\.?
    )
    """,
    re.VERBOSE,
)


_BARE_LETTERS = set("mgslLNJWVhΩÅ")
_ADJACENT = {"cm", "mm", "km", "kg", "ml", "mL", "ft", "lb", "oz", "Hz", "kW", "m/s"}
_ADJACENT_LETTERS = re.compile(r"(?:\s*/\s*)?\(*(m/s(?!\w)|[A-Za-z]{1,2}(?![A-Za-z]))")


def read_unit(text: str) -> Unit | None:
    r"""Return the unit that the whole text is, `()` for an empty one, or None if it is none. The text is in one spelling.

    Words in a roman typeface (`"apples"`) may be any unit that does not change the number; others must be known, and one or two
    letters must stand behind a space or before a bar, because `5m` is a product.
    """
    roman = '"' in text
    adjacent = _ADJACENT_LETTERS.match(text)
    plain = _plain(text)
    product = not roman and adjacent is not None and adjacent[1] not in _ADJACENT
    if product or text.count("(") != text.count(")") or (text.strip() and not plain):
        return None
    letters = roman or "°" in plain or "/" in plain
    factors: list[tuple[str, int]] = []
    side, raised, unknown, at = 1, 1, 0, 0
    while at < len(plain):
        token = _TOKEN.match(plain, at)
        if token is None:
            return None
        at = token.end()
        if token["over"]:
            side = -1
        elif token["big"]:
            raised = 2 if token["big"].startswith("sq") else 3
        elif token["small"] or token["power"]:
            if not factors:
                return None
            power = {"squared": 2, "cubed": 3}.get(token["small"] or "") or int(token["power"])
            factors[-1] = (factors[-1][0], factors[-1][1] * power)
        elif token["word"]:
            word = token["word"].rstrip("23")
            name = _name_of(word, roman=roman, letters=letters)
            if name is None:
                return None
            unknown += name not in CANONICAL
            factors.append((name, side * raised * int(token["digit"] or 1)))
            raised = 1
    repeated = len({name for name, _ in factors}) < len(factors)
    if unknown > MAX_WORDS or raised != 1 or repeated or (plain and not factors):
        return None
    return tuple(sorted(factors))


def changes_number(text: str) -> bool:
    """Return whether a word of the text says another number, so that it must not be dropped as a unit."""
    return any(word.lower() in _CHANGING for word in re.findall(r"(?<!\\)\b[A-Za-z]{2,}", text))


def _plain(text: str) -> str:
    """Write quotes, commands and compounds out."""
    text = re.sub(r'\\mu\s*"\s*', '"μ', re.sub(r'"\s*([kMG])\s*"\s*\\Omega\b', r'"\1Ω"', text))
    text = re.sub(
        r'"-(?=[a-z]{2})',
        '"',
        re.sub(r'^\s*\[("[^"⁄]*"|[^"⁄\]]*)\]$', r"\1", re.sub(r'\[ "', '["', re.sub(r'" \]', '"]', text))),
    )
    plain = re.sub(r"\[([^\[\]⁄]+)⁄([^\[\]⁄]+)\]", r" \1/\2", text.replace('"', " ").replace(r"\$", "$"))
    plain = re.sub(r"[()]", " ", re.sub(r"\^\((-?\d)\)", r"^\1", plain))
    plain = re.sub(r"\\Omega\b ?", "Ω", re.sub(r"\\mu\b ?", "μ", plain)).strip()
    plain = re.sub(r"\bper cent\b", "percent", plain)
    for short, long in _COMPOUND.items():
        plain = re.sub(rf"\b(?:{short})(?![A-Za-z])", long, plain)
    return plain.strip()


def _name_of(word: str, *, roman: bool, letters: bool) -> str | None:
    """Return the canonical name of one word, or None if it names no unit; letters: any single one may be a symbol."""
    if len(word) == 1 and word.isalpha() and not letters and word not in _BARE_LETTERS:
        return None
    known = SYMBOLS.get(word) or WORDS.get(word.lower())
    if known is not None:
        return known
    lower = word.lower()
    # In mathematical letters only a plural is no product of variables.
    shape = len(word) >= 3 if roman else re.fullmatch(r"[a-z]{4,}s", word) is not None
    counted = shape and lower not in NO_UNITS and not OTHER_NUMBER.match(lower)
    return lower.removesuffix("s") if counted else None


def go_together(first: Unit, second: Unit) -> bool:
    """Return whether two answers with these units may be equal: one has none, or both have the same.

    `unit` stands for any of its power, and a degree for one of any scale; K alone may mean thousand, so it is never left out.
    """
    if first == second:
        return True
    names = {name for name, _ in (*first, *second)}
    if (("K", 1),) in (first, second):
        return False
    if not first or not second:
        return True
    if "unit" in names:
        return sorted(power for _, power in first) == sorted(power for _, power in second)
    if (("degree", 1),) in (first, second):
        return bool(names & {"C", "F"})
    return _without_degrees(first) == _without_degrees(second)


def _without_degrees(unit: Unit) -> Unit:
    return tuple(factor for factor in unit if factor[0] != "degree")
