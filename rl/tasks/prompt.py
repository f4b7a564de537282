"""From a source's question to the text that the model reads: regular expression, then template."""

import re

from samepath.rl.recipe.prompt import PromptRewrite, PromptSettings
from samepath.rl.tasks.row import TaskError


def prompt_text(settings: PromptSettings, question: str, where: str) -> str:
    """Return the prompt without its chat form; raises TaskError naming `where` if nothing is left or it is no Unicode text."""
    text = settings.template.format(question=rewritten(settings.rewrite, question, where))
    if not text.strip():
        raise TaskError(f"{where}: the prompt must not be empty; got {question!r:.300} as the question.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{where}: the prompt must be Unicode text; got {text!r:.300}: {error.reason}.") from error
    return text


def rewritten(settings: PromptRewrite, text: str, where: str, setting: str = "rewrite") -> str:
    """Return the rewritten text; raises TaskError naming `where` and `setting` if `match` finds nothing."""
    found = re.search(settings.match, text)
    if found is None:
        raise TaskError(
            f"{where}: {setting}.match {settings.match!r} must match every row; it does not match {text!r:.300}. "
            "Change the expression."
        )
    numbered = [_without(settings.remove, part) for part in (found.group(), *found.groups(default=""))]
    named = {name: _without(settings.remove, part) for name, part in found.groupdict(default="").items()}
    return settings.template.format(*numbered, **named)


def _without(unwanted: tuple[str, ...], part: str) -> str:
    for text in unwanted:
        part = part.replace(text, "")
    return part
