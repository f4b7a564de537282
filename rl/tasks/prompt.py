"""From a source's question to the text that the model reads: regular expression, then template."""

import re
from dataclasses import dataclass
from string import Formatter

from samepath.rl.recipe.prompt import PromptRewrite, PromptSettings
from samepath.rl.tasks.row import TaskError


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """A prompt and who wrote what of it.

    Example: of the template `Q: {question}=` and the question `1+1`:
        PromptText(text="Q: 1+1=", written=((0, 3), (6, 7)))
    """

    text: str
    """The question after rewrite and template."""
    written: tuple[tuple[int, int], ...]
    """Places of the template's own characters."""


def prompt_text(settings: PromptSettings, question: str, where: str) -> PromptText:
    """Return the prompt without its chat form; raises TaskError naming `where` if nothing is left or it is no Unicode text."""
    content, text = rewritten(settings.rewrite, question, where), ""
    written: list[tuple[int, int]] = []
    for literal, field, _, _ in Formatter().parse(settings.template):
        # A literal brace ends a part without a field after it.
        start = written.pop()[0] if written and written[-1][1] == len(text) else len(text)
        text += literal
        written.append((start, len(text)))
        text += content if field is not None else ""
    if not text.strip():
        raise TaskError(f"{where}: the prompt must not be empty; got {question!r:.300} as the question.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{where}: the prompt must be Unicode text; got {text!r:.300}: {error.reason}.") from error
    return PromptText(text=text, written=tuple(span for span in written if span[0] < span[1]))


def rewritten(settings: PromptRewrite, text: str, where: str, setting: str = "rewrite") -> str:
    """Return the rewritten text; raises TaskError naming `where` and `setting` if `match` finds nothing."""
    found = re.search(settings.match, text)
    if found is None:
        raise TaskError(
            f"{where}: {setting}.match {settings.match!r} must match every row; it does not match {text!r:.300}. "
            "Change the expression.",
            "no_match",
        )
    numbered = [_without(settings.remove, part) for part in (found.group(), *found.groups(default=""))]
    named = {name: _without(settings.remove, part) for name, part in found.groupdict(default="").items()}
    return settings.template.format(*numbered, **named)


def _without(unwanted: tuple[str, ...], part: str) -> str:
    for text in unwanted:
        part = part.replace(text, "")
    return part
