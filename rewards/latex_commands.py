"""The LaTeX commands that change only the look of an answer, and those that stand for a sign."""

_COMMANDS = r"""
no_width:  \! \negthinspace \mathstrut \strut \allowbreak
space:     ~ \, \; \: \> \quad \qquad \thinspace \medspace \thickspace \enspace \space \nobreakspace
style:     \left \right \displaystyle \textstyle \scriptstyle \scriptscriptstyle \limits \nolimits \tiny \scriptsize
           \footnotesize \small \normalsize \large \Large \LARGE \huge \Huge \normalfont
           \bf \rm \it \sf \tt \em \sl \bfseries \mdseries \itshape \upshape \slshape \rmfamily \sffamily \ttfamily
           \( \) \[ \] \big \bigl \bigr \Big \Bigl \Bigr \bigg \biggl \biggr \Bigg \Biggl \Biggr \nonumber \notag
typeface:  \mathbf \mathit \mathsf \mathtt \mathcal \mathbb \mathscr \mathfrak \mathnormal \mathord \mathinner \bm \boldsymbol
           \bold \pmb \symbf \symbfit \symit \symrm \symup \symsf \symtt \mathbfit \mathup \mathds \mathbbm \mathclap \boxed
           \fbox \framebox \makebox \bbox \vcenter \ensuremath \underline \uline \emph \smash \num
roman:     \text \textrm \textbf \textit \textsf \texttt \textsc \textsl \textup \textmd \textlf \textnormal \mathrm \mathop
           \mbox \hbox \operatorname \operatorname* \unit
fraction:  \frac \dfrac \tfrac \cfrac \nicefrac \sfrac \xfrac \flatfrac \ifrac
repeated:  \overline \bar \dot
skipped:   \color \hspace \hspace* \phantom \hphantom \vphantom \label
second:    \textcolor \colorbox \raisebox \parbox \enclose
third:     \fcolorbox
generic:   \genfrac
quantity:  \SI \qty
degree:    \circ \deg \degree \degrees \textdegree
escaped:   \% \& \#
"""
"""What to do with a command; others stay as they are."""
_SYMBOLS = r"""
\pounds £ \euro € \yen ¥ \cents ¢ \cent ¢ \textdollar \$ \mathdollar \$ \lbrace \{ \rbrace \} \minus - \slash /
"""
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


KINDS = _command_kinds()
"""What to do with a command, by its name with the backslash."""
STAND_FOR = dict(zip(_SYMBOLS.split()[::2], _SYMBOLS.split()[1::2], strict=True))
"""The sign that a command stands for."""
