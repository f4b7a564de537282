"""Where the final answer stands in a response, and what the right one is."""

import math
import re

from samepath.rewards.request import RewardRequest

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_NAMES = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis|inner_monologue)"
_TAG = re.compile(
    rf"""
    <\s*(?P<closing>/?)\s*{_NAMES}(?:\s[^<>]*)?> | \[(?P<closing_bracket>/?)(?:THINK|think)\] | ◁(?P<closing_arrow>/?)think▷
    | <\|(?:begin_of_thought|think|channel\|>(?:analysis|commentary)(?:<\|message)?)\|>
    | <\|(?P<closing_token>end_of_thought|/think|channel\|>final(?:<\|message)?)\|>
    """,
    re.IGNORECASE | re.VERBOSE,
)


_ANSWER_TAGS = re.compile(r"\A\s*<answer>|</answer>\s*\Z", re.IGNORECASE)


def gold_answer(request: RewardRequest) -> str:
    """Return the right answer as text. Raises ValueError if the request carries none, or a number that is not finite."""
    if request.answer.get("answer") is None:
        raise ValueError(
            f"the prompt's answer data must hold the right answer under 'answer'; got {sorted(request.answer)}. "
            "Name the task's answer column so."
        )
    gold = request.answer["answer"]
    text = str(gold).strip()
    if (isinstance(gold, float) and not math.isfinite(gold)) or re.fullmatch(r"[+-]?(?:nan|inf)", text, re.IGNORECASE):
        raise ValueError(f"the right answer must be a finite number; got {text}. Mend or drop that row.")
    return text


def final_text(request: RewardRequest, marker: str) -> str | None:
    """Return the part of the response that may hold the final answer, stripped; None if `marker` is given and missing.

    What a model thinks to itself is no answer: sections between `<think>` and `</think>` (and the other tags of `_TAG`) are left
    out, with all before a closing tag that was opened in the prompt, and all behind a tag that stays open. `<answer>` in front and
    `</answer>` at the end are taken off. Of what is left the text after the last marker counts; a marker that is a tag itself is
    looked for first.
    """
    response = request.response_text
    if _TAG.search(marker):
        rest = after_marker(response, marker)
        return None if rest is None else _ANSWER_TAGS.sub("", without_thinking(rest)).strip()
    rest = after_marker(without_thinking(_opened(request.prompt_text) + response), marker)
    return None if rest is None else _ANSWER_TAGS.sub("", rest).strip()


def without_thinking(text: str) -> str:
    """Leave out thinking sections; see `final_text`. A closing tag ends every section that is open.

    Example: `without_thinking("so</think>A <think>B</think> C <think> D")` is `"A \\n C "`.
    """
    pieces: list[str] = []
    thinking, start = False, 0
    for tag in _TAG.finditer(text):
        closing = any(tag.groupdict().values())
        if closing and not thinking:
            pieces.clear()
        elif not closing and not thinking:
            pieces.append(text[start : tag.start()])
        thinking, start = not closing, tag.end()
    if not thinking:
        pieces.append(text[start:])
    return "\n".join(pieces)


def _opened(prompt: str) -> str:
    """Return the tag with which a prompt ends, if it opens a thinking section; else nothing."""
    last = max(_TAG.finditer(prompt), key=re.Match.start, default=None)
    if last is None or any(last.groupdict().values()) or prompt[last.end() :].strip():
        return ""
    return last[0]


def after_marker(text: str, marker: str) -> str | None:
    """Return what follows the last `marker`, stripped; the whole text if `marker` is empty; None if it does not occur.

    Example: `after_marker("17+34=51 #51", "#")` is `"51"`.
    """
    if not marker:
        return text.strip()
    _, found, rest = text.rpartition(marker)
    return rest.strip() if found else None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the complete `\boxed{…}` or `\fbox{…}` that begins last, or None if there is none.

    Example: `last_boxed(r"\boxed{4}, no, \boxed{\frac{1}{2}}")` is `r"\frac{1}{2}"`.
    """
    opened: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match["box"] or match[0] == "{":
            opened.append((bool(match["box"]), match.end()))
        elif match[0] == "}" and opened:
            boxed, start = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else text[last[0] : last[1]].strip()
