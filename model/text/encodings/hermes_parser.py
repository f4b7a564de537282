"""Reads calls of the Hermes form, which Qwen's and other chat templates use: JSON between `<tool_call>` and `</tool_call>`."""

import re
from collections.abc import Sequence
from typing import Literal

from samepath.model.text.conversation import Completion, JsonValue, Problem, ProblemKind, ToolCall, ToolSchema
from samepath.model.text.encodings.dsml_text import THINK, THOUGHT
from samepath.model.text.encodings.flat import Flattener, FlatText
from samepath.model.text.encodings.hermes_text import CALL_CLOSE, CALL_OPEN
from samepath.model.text.encodings.json_value import read_json_text
from samepath.model.text.encodings.schema_check import schema_problems
from samepath.model.text.tokenizer import Tokenizer

Opening = Literal["open", "closed", "free"]
"""Where a drawn message begins: inside reasoning, behind it, or before it, if there is any."""
MISSPELT = re.compile(r"^[ \t]*</?[\s|]{0,3}(?:tools?[_-]?calls?|function_calls?)[\s|]{0,3}>", re.MULTILINE)


class HermesParser:
    """Reads drawn ids. Marks that the tokenizer has as control tokens count only where they were drawn as such."""

    def __init__(self, tokenizer: Tokenizer, *, opening: Opening) -> None:
        ends = sorted(tokenizer.text([id_]) for id_ in tokenizer.end_ids)
        self._flattener = Flattener(tokenizer, (THINK, THOUGHT, CALL_OPEN, CALL_CLOSE, *ends))
        self._opening = opening
        characters = self._flattener.characters
        self._think, self._thought = characters[THINK], characters[THOUGHT]
        self._call, self._closed = characters[CALL_OPEN], characters[CALL_CLOSE]
        self._ends = re.compile("|".join(characters[name] for name in ends))

    def __call__(self, ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion:
        """See `Renderer.parse`."""
        flat = self._flattener.flat(ids)
        text, *after = self._ends.split(flat.text, maxsplit=1)
        problems: list[Problem] = []
        reasoning, body = self._reasoning(flat, text, problems)
        content, calls = "", list[ToolCall]()
        if body is not None:
            before, *blocks = body.split(self._call)
            content = before.removesuffix("\n") if blocks else before
            if blocks and content and content == before:
                problems.append(Problem(kind="block_separator", detail=f"calls follow {flat.said(before[-20:])!r}"))
            if self._closed in content or MISSPELT.search(content):
                problems.append(Problem(kind="tag_misspelt", detail=f"{flat.said(content)!r:.80}"))
            elif marks := flat.marks_in(content):
                problems.append(Problem(kind="special_in_text", detail=f"content holds {', '.join(marks)}"[:200]))
            content = flat.said(content)
            calls = self._calls(flat, blocks, problems, ended=bool(after), strict=strict)
            if not after and not any(problem.kind == "call_unclosed" for problem in problems):
                problems.append(Problem(kind="answer_unclosed", detail="no end token"))
        if after and after[0]:
            problems.append(Problem(kind="text_after_end", detail=f"{flat.said(after[0])!r:.80}"))
        if tools:
            problems += schema_problems(calls, tools)
        return Completion(reasoning=reasoning, content=content, calls=tuple(calls), problems=tuple(problems))

    def _reasoning(self, flat: FlatText, text: str, problems: list[Problem]) -> tuple[str, str | None]:
        """Reasoning without the line breaks around it, and what stands behind it: None if it is not closed."""
        bare = text.lstrip("\n")
        if self._opening == "closed" or (self._opening == "free" and not bare.startswith(self._think)):
            return "", text
        reasoning, closed, body = (text if self._opening == "open" else bare[1:]).partition(self._thought)
        if self._call in reasoning:
            problems.append(Problem(kind="call_before_close", detail="a call stands in the reasoning"))
        elif marks := flat.marks_in(reasoning):
            problems.append(Problem(kind="special_in_text", detail=f"reasoning holds {', '.join(marks)}"[:200]))
        reasoning = flat.said(reasoning.strip("\n"))
        if not closed:
            problems.append(Problem(kind="reasoning_unclosed", detail=f"no {THOUGHT}"))
        elif not reasoning:
            problems.append(Problem(kind="empty_reasoning", detail=f"{THOUGHT} stands first"))
        return reasoning, body.lstrip("\n") if closed else None

    def _calls(
        self, flat: FlatText, blocks: Sequence[str], problems: list[Problem], *, ended: bool, strict: bool
    ) -> list[ToolCall]:
        """Calls of the texts that follow each opening mark; in strict reading those before the first problem."""
        calls: list[ToolCall] = []
        for index, block in enumerate(blocks):
            if strict and any(problem.kind != "empty_reasoning" for problem in problems):
                break
            last = index == len(blocks) - 1
            inner, closed, behind = block.partition(self._closed)
            if not closed:
                detail = f"the call ends with {flat.said(inner[-40:])!r}"
                problems.append(Problem(kind="call_unclosed", detail=detail))
                if strict or (last and not ended):
                    break
            call, found = _read_call(flat, inner, len(calls))
            problems += found
            if call is not None and not (strict and found):
                calls.append(call)
            if closed and behind != ("" if last else "\n"):
                kind: ProblemKind = "text_after_calls" if last else "block_separator"
                problems.append(Problem(kind=kind, detail=f"{flat.said(behind)!r:.80}"))
        return calls


def _read_call(flat: FlatText, inner: str, place: int) -> tuple[ToolCall | None, list[Problem]]:
    """The call between its marks, None if it is none, and what is wrong."""
    problems: list[Problem] = []
    text = flat.said(inner)
    if not inner.strip():
        return None, [Problem(kind="block_empty", detail="no call between the tags")]
    if marks := flat.marks_in(inner):
        problems.append(Problem(kind="special_in_text", detail=f"a call holds {', '.join(marks)}"[:200]))
    if not (inner.startswith("\n") and inner.endswith("\n")):
        problems.append(Problem(kind="invoke_form", detail="a call must stand on a line of its own"))
    try:
        value = read_json_text(text)
    except ValueError as error:
        return None, [*problems, Problem(kind="value_not_json", detail=f"{error}; got {text!r:.80}")]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or not name:
        return None, [*problems, Problem(kind="invoke_form", detail=f"no name in {text!r:.80}")]
    if set(value) - {"name", "arguments"}:
        problems.append(Problem(kind="invoke_form", detail=f"more than name and arguments in {text!r:.80}"))
    arguments, detail = _arguments(value)
    if detail:
        problems.append(Problem(kind="parameter_form", detail=f"{detail}: {text!r:.80}"))
    return ToolCall(name=name, arguments=arguments, call_id=f"call-{place}"), problems


def _arguments(value: dict[str, JsonValue]) -> tuple[dict[str, JsonValue], str]:
    """The arguments as they are meant, and what is wrong with them."""
    given = value.get("arguments", value.get("parameters"))
    wrong = "" if "arguments" in value else "no arguments"
    if isinstance(given, str):
        wrong = "arguments are JSON within text"
        try:
            given = read_json_text(given)
        except ValueError as error:
            wrong = f"arguments are text: {error}"
    if isinstance(given, dict):
        return given, wrong
    return {}, wrong or "arguments are no object"
