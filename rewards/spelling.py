r"""One spelling for many: what Unicode and LaTeX do to the look of an answer is taken off, and its meaning stays.

`in_one_spelling` takes LaTeX apart: it drops what only moves or styles, and writes what is left in a short form of its own that
[number.py](number.py) reads:

| form | written for |
|---|---|
| `[a⁄b]` | `\frac{a}{b}`, `\dfrac ab`, `{a \over b}` |
| `^(a)`, `_(a)` | `^{a}`, `^a`, `_{a}`; `^-12` is read as `^{-12}`, as everyone but TeX does |
| `‾(a)` | `\overline{a}`, `\dot{a}`: digits that repeat |
| `"a"` | `\text{a}`, `\mathrm{a}` without digits: words and units, not variables |
| `°` | `^\circ`, `\degree` |
| `;,` | `{,}`, a comma between digits, never one between two answers |
| `\name ` | any other command |
"""

import re

from samepath.rewards.characters import in_ascii
from samepath.rewards.latex_commands import KINDS, STAND_FOR
from samepath.rewards.markup import without_markup

MAX_DEPTH = 30
"""Groups within groups; a text that goes deeper is not read."""

_TOKEN = re.compile(r"\{,\}|\\[A-Za-z]+\*?|\\.|.", re.DOTALL)
_RAISED_FRACTION = re.compile(r"(?<![\w)])\s*\^\(([0-9]+)\)/_\(([0-9]+)\)")


class UnreadableError(ValueError):
    """The text is no well-formed LaTeX, or nested too deeply."""


def in_one_spelling(text: str) -> str:
    r"""Write an answer in the short form of this file's table, with single spaces. Raises UnreadableError.

    Example: `in_one_spelling(r"$-\mathbf{1}\tfrac12\,\text{cm}^2$")` is `-1[1⁄2] "cm" ^(2)`.
    """
    spelled = Reader(tokens_of(text)).until("")
    spelled = _RAISED_FRACTION.sub(r"[\1⁄\2]", spelled)
    return re.sub(r"\s+", " ", spelled).strip()


def tokens_of(text: str) -> list[str]:
    """Take marks around the answer, other alphabets and dollar signs off, and cut the rest into the pieces that TeX sees."""
    bare = re.sub(r"\\(?:left|right)\s*\.", "", in_ascii(without_markup(text)))
    return _TOKEN.findall(_without_dollars(bare))


def _without_dollars(text: str) -> str:
    """Drop the dollar signs that enclose mathematics; a lone one in front is money and stays, as `\\$`."""
    lone = re.sub(r"\\.", "", text, flags=re.DOTALL).count("$") == 1
    if lone:
        return re.sub(r"^(\s*[-+]?\s*(?:US\s?)?)\$", r"\1\\$", text)
    return re.sub(r"(\\.)|\$", lambda match: match[1] or "", text, flags=re.DOTALL)


class Reader:
    """Walks over the tokens once; each method returns the short form of what it has read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self._depth = 0

    def until(self, end: str) -> str:
        """Read to `end` (empty: the end of the text), which is taken too."""
        parts: list[str] = []
        over: int | None = None
        while True:
            if self.at == len(self.tokens):
                if end:
                    raise UnreadableError("a brace stays open")
                break
            token = self._take()
            if token == end:
                break
            if token == "}":
                raise UnreadableError("a brace was never opened")
            if token == r"\over" and over is None:
                over = len(parts)
            else:
                parts.append(self._piece(token))
        if over is None:
            return "".join(parts)
        return self.fraction("".join(parts[:over]).strip(), "".join(parts[over:]).strip())

    def argument(self) -> str:
        """Read a group or the next single piece, as TeX does."""
        token = " "
        while token.isspace():
            token = self._take()
        return self._piece(token).strip()

    def next_is(self, *tokens: str) -> bool:
        """Return whether one of these comes next."""
        return self.at < len(self.tokens) and self.tokens[self.at] in tokens

    def skip(self, num_arguments: int) -> None:
        """Leave out `[…]`, the settings of a command, if there are any, and so many arguments."""
        if self.next_is("["):
            while self._take() != "]":
                pass
        for _ in range(num_arguments):
            self.argument()

    def raised(self) -> str:
        """Read what stands behind `^` or `_`: an argument, a signed run of digits, or a bracket."""
        inside = self.argument()
        if inside == "(":
            return self.until(")").strip()
        if inside in tuple("+-0123456789"):
            while self.next_is(*"0123456789"):
                inside += self._take()
        return inside

    def generic_fraction(self) -> str:
        r"""Read the six arguments of `\genfrac`: with brackets, or a bar without thickness, it is no fraction."""
        left, right, bar, _ = (self.argument() for _ in range(4))
        top, bottom = self.argument(), self.argument()
        if left or right or bar.startswith("0"):
            raise UnreadableError(r"this \genfrac is no fraction")
        return self.fraction(top, bottom)

    def fraction(self, top: str, bottom: str) -> str:
        return f"[{top}⁄{bottom}]"

    def group(self, inside: str) -> str:
        # `{,}` is the comma that TeX sets without a space behind it.
        return ";," if inside.strip() == "," else inside

    def command(self, token: str) -> str:
        if token == "{,}":
            return ";,"
        if token in ("^", "_"):
            inside = self.raised()
            return "°" if token == "^" and inside in ("°", "o", '"o"') else f"{token}({inside})"
        if token in STAND_FOR:
            return STAND_FOR[token]
        match kind_of(token):
            case "degree":
                return "°"
            case "escaped":
                return token[1:]
            case "repeated":
                return f"‾({self.argument()})"
            case "typeface":
                self.skip(0)
                return self.argument()
            case "roman":
                return _roman(self.argument())
            case "quantity":
                self.skip(0)
                number, unit = self.argument(), self.argument()
                return f"{number} {_roman(without_unit_commands(unit))}"
            case "":
                return f"{token} " if re.fullmatch(r"\\[A-Za-z]+\*?", token) else token
            case kind:
                return self.of_any_form(kind)

    def of_any_form(self, kind: str) -> str:
        """Read what is the same in every form: fractions, space, and arguments that are not shown."""
        match kind:
            case "fraction":
                return self.fraction(self.argument(), self.argument())
            case "generic":
                return self.generic_fraction()
            case "space":
                return " "
            case "skipped" | "second" | "third":
                self.skip({"skipped": 1, "second": 1, "third": 2}[kind])
                return "" if kind == "skipped" else self.argument()
        return ""

    def _take(self) -> str:
        if self.at == len(self.tokens):
            raise UnreadableError("a command has no argument")
        self.at += 1
        return self.tokens[self.at - 1]

    def _piece(self, token: str) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError(f"more than {MAX_DEPTH} groups in each other")
        try:
            return self.group(self.until("}")) if token == "{" else self.command(token)
        finally:
            self._depth -= 1


def kind_of(token: str) -> str:
    """Return what to do with a token; empty if it stays as it is."""
    return "space" if token.isspace() else KINDS.get(token, "")


def without_unit_commands(unit: str) -> str:
    r"""Write the unit of `\SI{5}{\kilo\metre\per\second}`, whose commands are read as `\kilo \metre …`, in words."""
    words = re.sub(r"\\([A-Za-z]+) ?", r"\1 ", unit)
    return re.sub(r"\b(kilo|centi|deci|milli|micro|nano|mega|giga) ", r"\1", words).strip()


def _roman(inside: str) -> str:
    """Mark words as words; numbers in a roman typeface are numbers."""
    if '"' in inside or not re.search(r"[A-Za-z]", inside):
        return inside
    if re.search(r"[\d°%^$]", inside):
        return re.sub(r"(?<![\w\\\"])[A-Za-z]{2,}", r'"\g<0>"', inside)
    return f' "{inside}" '
