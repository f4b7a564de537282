"""Unicode's many characters for the same sign, written in ASCII and LaTeX: digits of every script, typefaces, signs and spaces."""

import re
import unicodedata

_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ", "0123456789+-=()n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()", strict=True))
_SIGNS = {
    **dict.fromkeys("−–—‒‐‑﹣➖˗", "-"),
    **dict.fromkeys("➕﹢", "+"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙‧", r"\cdot "),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("﹪٪", "%"),
    **dict.fromkeys("٫。", "."),
    **dict.fromkeys("٬﹐", ","),
    **dict.fromkeys("’‘ʼ", "'"),
    "÷": r"\div ",
    "±": r"\pm ",
    "√": r"\sqrt ",
    "∞": r"\infty ",
    "∅": r"\emptyset ",
    "π": r"\pi ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "∪": r"\cup ",
    "℃": r"^\circ C",
    "℉": r"^\circ F",
    "＄": r"\$",
}
# Joiners, direction marks, soft hyphens and the parts of keycap digits take no room on paper. Marks that reverse the order do.
_UNSEEN = set("\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\u2066\u2067\u2068\u2069\ufe0e\ufe0f\ufeff\u20e3")
_RAISED_RUN = re.compile(f"[{''.join(map(re.escape, _RAISED))}]+")
_LOWERED_RUN = re.compile(f"[{''.join(map(re.escape, _LOWERED))}]+")
_RAISED_FRACTION = re.compile(f"({_RAISED_RUN.pattern})[⁄/]({_LOWERED_RUN.pattern})")


def in_ascii(text: str) -> str:
    r"""Write Unicode's typefaces, digits, signs and spaces in ASCII and LaTeX; other characters stay.

    Example: `in_ascii("−１½ ×10⁻³")` is `-1\frac{1}{2} \times 10^{-3}`.
    """
    if text.isascii():
        return text
    text = _RAISED_FRACTION.sub(_raised_fraction, text)
    text = _RAISED_RUN.sub(lambda run: "^{" + "".join(_RAISED[c] for c in run[0]) + "}", text)
    text = _LOWERED_RUN.sub(lambda run: "_{" + "".join(_LOWERED[c] for c in run[0]) + "}", text)
    return "".join(c if c.isascii() else _character(c) for c in text)


def _raised_fraction(match: re.Match[str]) -> str:
    top, bottom = ("".join((_RAISED | _LOWERED)[char] for char in part) for part in match.groups())
    return rf"\frac{{{top}}}{{{bottom}}}"


def _character(char: str) -> str:
    if char in _SIGNS:
        return _SIGNS[char]
    if char in _UNSEEN:
        return ""
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    category = unicodedata.category(char)
    if category[0] == "Z":
        return " "
    kind, _, points = unicodedata.decomposition(char).partition(" ")
    if kind == "<fraction>":
        top, _, bottom = "".join(chr(int(point, 16)) for point in points.split()).partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else f"{top}/"
    if kind == "<square>":  # units such as ㎡
        return " " + re.sub(r"(?<=[A-Za-zμ])([23])$", r"^\1 ", unicodedata.normalize("NFKC", char).replace("∕", "/"))
    if "\uff01" <= char <= "\uff5e" or category[0] == "L":
        return unicodedata.normalize("NFKC", char)
    return char
