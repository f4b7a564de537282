"""Marks around a whole answer: Markdown, HTML, quotation marks, and environments of LaTeX that only place it on the page."""

import re

_AROUND = re.compile(
    r"""
    (?P<mark>\*{1,3}|_{1,3}|`{1,3}|["'“‘])(?P<marked>(?:(?!(?P=mark)).)+?)(?:(?<=[^“‘])(?P=mark)|[”’])
    | <(?P<tag>b|strong|i|em|u|span|p)>(?P<tagged>.*)</(?P=tag)>
    """,
    re.VERBOSE | re.DOTALL,
)
_ENVIRONMENT = re.compile(
    r"\\begin\{(?P<name>aligned|align\*?|equation\*?|gathered|gather\*?|split|math|displaymath|center)\}(?P<inside>.*)\\end\{(?P=name)\}",
    re.DOTALL,
)


def without_markup(text: str) -> str:
    """Take the marks off that enclose all of a text; what is struck out (`~~51~~`) is left as it stands.

    Example: `without_markup('**"51"**')` is `51`.
    """
    while (around := _AROUND.fullmatch(text.strip())) is not None:
        text = around["marked"] or around["tagged"] or ""
    placed = _ENVIRONMENT.fullmatch(text.strip())
    if placed is not None:
        text = re.sub(r"(?<!\\)&", "", placed["inside"])
    return re.sub(r"\\\\\s*\Z", "", text)
