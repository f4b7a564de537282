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

MAX_DEPTH = 30
"""Groups within groups; a text that goes deeper is not read."""

_TOKEN = re.compile(r"\{,\}|\\[A-Za-z]+\*?|\\.|.", re.DOTALL)
_COMMANDS = r"""
no_width:  \! \negthinspace \mathstrut \strut \allowbreak
space:     ~ \, \; \: \> \quad \qquad \thinspace \medspace \thickspace \enspace \space \nobreakspace
style:     \left \right \displaystyle \textstyle \scriptstyle \limits \tiny \small \normalsize \large \Large \LARGE \huge \Huge
           \bf \rm \it \sf \tt \bfseries \( \) \[ \] \big \bigl \bigr \Big \Bigl \Bigr \bigg \biggl \biggr \Bigg \Biggl \Biggr
typeface:  \mathbf \mathit \mathsf \mathtt \mathcal \mathbb \mathscr \mathfrak \mathnormal \mathord \bm \boldsymbol \pmb \boxed
           \fbox \ensuremath \underline \emph \smash
roman:     \text \textrm \textbf \textit \textsf \texttt \textsc \textsl \textup \textmd \textnormal \mathrm \mathop \mbox \hbox
           \operatorname \operatorname* \unit
fraction:  \frac \dfrac \tfrac \cfrac \nicefrac \sfrac \xfrac \flatfrac
repeated:  \overline \bar \dot
skipped:   \color \hspace \hspace* \phantom \hphantom \vphantom \label
coloured:  \textcolor \colorbox
degree:    \circ \degree \degrees \textdegree
escaped:   \% \& \#
"""
"""What to do with a command; others stay as they are."""
_SYMBOLS = r"\pounds £ \euro € \yen ¥ \cents ¢ \cent ¢ \textdollar \$ \mathdollar \$ \lbrace \{ \rbrace \} \minus -"
"""Commands and what they stand for."""


def _command_kinds() -> dict[str, str]:
    kinds = {"\\ ": "space", "\\\n": "space"}
    kind = ""
    for word in _COMMANDS.split():
        if word.endswith(":") and word != "\\:":
            kind = word[:-1]
        else:
            kinds[word] = kind
    return kinds


_KINDS = _command_kinds()
_STAND_FOR = dict(zip(_SYMBOLS.split()[::2], _SYMBOLS.split()[1::2], strict=True))


class UnreadableError(ValueError):
    """The text is no well-formed LaTeX, or nested too deeply."""


def in_one_spelling(text: str) -> str:
    r"""Write an answer in the short form of this file's table, with single spaces. Raises UnreadableError.

    Example: `in_one_spelling(r"$-\mathbf{1}\tfrac12\,\text{cm}^2$")` is `-1[1⁄2] "cm" ^(2)`.
    """
    tokens = _TOKEN.findall(_without_dollars(in_ascii(text)))
    reader = _Reader(tokens)
    spelled = reader.until("")
    return re.sub(r"\s+", " ", spelled).strip()


def _without_dollars(text: str) -> str:
    """Drop the dollar signs that enclose mathematics; a lone one in front is money and stays, as `\\$`."""
    lone = re.sub(r"\\.", "", text, flags=re.DOTALL).count("$") == 1
    if lone:
        return re.sub(r"^(\s*[-+]?\s*(?:US\s?)?)\$", r"\1\\$", text)
    return re.sub(r"(\\.)|\$", lambda match: match[1] or "", text, flags=re.DOTALL)


class _Reader:
    """Walks over the tokens once; each method returns the short form of what it has read."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def until(self, end: str) -> str:
        """Read to `end` (empty: the end of the text), which is taken too."""
        parts: list[str] = []
        over: int | None = None
        while True:
            if self._at == len(self._tokens):
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
        return f"[{''.join(parts[:over]).strip()}⁄{''.join(parts[over:]).strip()}]"

    def _take(self) -> str:
        if self._at == len(self._tokens):
            raise UnreadableError("a command has no argument")
        self._at += 1
        return self._tokens[self._at - 1]

    def _argument(self) -> str:
        """Read a group or the next single piece, as TeX does."""
        token = " "
        while token.isspace():
            token = self._take()
        return self._piece(token).strip()

    def _raised(self) -> str:
        """Read what stands behind `^` or `_`: an argument, a signed run of digits, or a bracket."""
        inside = self._argument()
        if inside == "(":
            return self.until(")").strip()
        if inside in tuple("+-0123456789"):
            while self._at < len(self._tokens) and self._tokens[self._at] in tuple("0123456789"):
                inside += self._take()
        return inside

    def _piece(self, token: str) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError(f"more than {MAX_DEPTH} groups in each other")
        try:
            return self._group() if token == "{" else self._command(token)
        finally:
            self._depth -= 1

    def _group(self) -> str:
        inside = self.until("}")
        # `{,}` is the comma that TeX sets without a space behind it.
        return ";," if inside.strip() == "," else inside

    def _command(self, token: str) -> str:
        if token == "{,}":
            return ";,"
        if token in ("^", "_"):
            inside = self._raised()
            return "°" if token == "^" and inside in ("°", "o", '"o"') else f"{token}({inside})"
        if token in _STAND_FOR:
            return _STAND_FOR[token]
        match "space" if token.isspace() else _KINDS.get(token):
            case "no_width" | "style":
                return ""
            case "space":
                return " "
            case "degree":
                return "°"
            case "escaped":
                return token[1:]
            case "fraction":
                return f"[{self._argument()}⁄{self._argument()}]"
            case "repeated":
                return f"‾({self._argument()})"
            case "typeface":
                return self._argument()
            case "roman":
                return _roman(self._argument())
            case "skipped":
                self._argument()
                return ""
            case "coloured":
                self._argument()
                return self._argument()
            case _:
                return f"{token} " if re.fullmatch(r"\\[A-Za-z]+\*?", token) else token


def _roman(inside: str) -> str:
    """Mark words as words; numbers in a roman typeface are numbers."""
    if '"' in inside or not re.search(r"[A-Za-z]", inside):
        return inside
    if re.search(r"[\d°%^$]", inside):
        return re.sub(r"(?<![\w\\\"])[A-Za-z]{2,}", r'"\g<0>"', inside)
    return f' "{inside}" '
