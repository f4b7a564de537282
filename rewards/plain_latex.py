r"""LaTeX with all taken off that only changes its look, for math-verify, which reads few commands: `\frac\pi6`, `\mathbf{x^2}`."""

import re

from samepath.rewards.latex_commands import STAND_FOR
from samepath.rewards.spelling import Reader, UnreadableError, kind_of, tokens_of, without_unit_commands

_KEPT_TYPEFACES = (r"\mathbb", r"\mathcal", r"\mathscr", r"\mathfrak")
_KEPT_ROMAN = (r"\mathrm", r"\operatorname", r"\mathop")


def in_plain_latex(text: str) -> str | None:
    r"""Write an expression without typefaces, colours, sizes and spacing, with braces around arguments; None if it is no LaTeX.

    Example: `in_plain_latex(r"\mathbf{\dfrac\pi6}\,x^23")` is `\frac{\pi}{6} x^{23}`.
    """
    try:
        return re.sub(r"\s+", " ", _LatexReader(tokens_of(text)).until("")).strip()
    except UnreadableError:
        return None


class _LatexReader(Reader):
    """Returns LaTeX where its parent returns the short form."""

    def fraction(self, top: str, bottom: str) -> str:
        return rf"\frac{{{_unbraced(top)}}}{{{_unbraced(bottom)}}}"

    def group(self, inside: str) -> str:
        return f"{{{inside}}}" if inside.strip() else ""

    def command(self, token: str) -> str:
        if token in ("^", "_"):
            return f"{token}{{{_unbraced(self.raised())}}}"
        if token in STAND_FOR:
            return STAND_FOR[token]
        match kind_of(token):
            case "repeated":
                return f"{token}{{{_unbraced(self.argument())}}}"
            case "typeface":
                self.skip(0)
                return self._in_typeface(token, _unbraced(self.argument()))
            case "roman":
                return _in_roman(token, _unbraced(self.argument()))
            case "quantity":
                self.skip(0)
                number, unit = _unbraced(self.argument()), _unbraced(self.argument())
                return rf"{number}\text{{ {without_unit_commands(unit)}}}"
            case "" | "degree" | "escaped":
                return self._kept(token)
            case kind:
                return _unbraced(self.of_any_form(kind))

    def _in_typeface(self, token: str, inside: str) -> str:
        if token in _KEPT_TYPEFACES and inside.isalpha():
            return rf"{token}{{{inside}}}"
        return f"{{{inside}}}" if self.next_is("^", "_") else inside

    def _kept(self, token: str) -> str:
        if token == r"\sqrt" and not self.next_is("["):
            return rf"\sqrt{{{_unbraced(self.argument())}}}"
        letter_next = self.at < len(self.tokens) and self.tokens[self.at].isalpha()
        return f"{token} " if token[1:].isalpha() and (letter_next or self.at == len(self.tokens)) else token


def _unbraced(inside: str) -> str:
    r"""Take the braces of one group off, as in the argument of `\frac{a}{b}`."""
    return inside[1:-1] if re.fullmatch(r"\{[^{}]*\}", inside) or _one_group(inside) else inside


def _one_group(text: str) -> bool:
    depth = 0
    for at, char in enumerate(text):
        escaped = at > 0 and text[at - 1] == "\\"
        depth += 0 if escaped else (char == "{") - (char == "}")
        if depth == 0:
            return at == len(text) - 1 and at > 0
    return False


def _in_roman(token: str, inside: str) -> str:
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", inside)):
        return inside
    command = token if token in _KEPT_ROMAN else r"\text"
    return f"{command}{{{inside}}}"
