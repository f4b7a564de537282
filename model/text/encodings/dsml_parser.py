"""Reads what the model drew in DeepSeek-V3.2's form: reasoning, answer, calls, and everything that is wrong with them."""

import re
from collections.abc import Sequence
from dataclasses import replace

from samepath.model.text.conversation import Completion, Problem, ToolCall, ToolSchema
from samepath.model.text.encodings.dsml_calls import CallReader, Tags
from samepath.model.text.encodings.dsml_text import DSML, END, MARKS, THOUGHT
from samepath.model.text.encodings.flat import Flattener, FlatText
from samepath.model.text.encodings.schema_check import schema_problems
from samepath.model.text.tokenizer import Tokenizer

SEPARATOR = "\n\n"
"""Between the content, which may be empty, and the calls."""


class DsmlParser:
    """Reads drawn ids. A control token counts only where it was drawn as one; its name in letters is text."""

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool) -> None:
        self._flattener = Flattener(tokenizer, (*MARKS, DSML))
        characters = self._flattener.characters
        self._end, self._thought, self._dsml = characters[END], characters[THOUGHT], characters[DSML]
        self._tags, self._thinking = Tags(self._dsml), thinking

    def __call__(self, ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion:
        """See `Renderer.parse`."""
        flat = self._flattener.flat(ids)
        text, found, after = flat.text.partition(self._end)
        problems: list[Problem] = []
        reasoning, body = self._reasoning(flat, text, problems) if self._thinking else ("", text)
        content, calls = "", list[ToolCall]()
        if body is not None:
            content, calls = self._answer(flat, body, problems, ended=bool(found), strict=strict)
            if not found and not any(problem.kind == "call_unclosed" for problem in problems):
                problems.append(Problem(kind="answer_unclosed", detail="no end token"))
        if after:
            problems.append(Problem(kind="text_after_end", detail=f"{flat.said(after)!r:.80}"))
        if tools:
            if not strict:
                calls = [_unwrapped(call, tools, problems) for call in calls]
            problems += schema_problems(calls, tools)
        return Completion(reasoning=reasoning, content=content, calls=tuple(calls), problems=tuple(problems))

    def _reasoning(self, flat: FlatText, text: str, problems: list[Problem]) -> tuple[str, str | None]:
        """Reasoning, and what stands behind it: None if it is not closed."""
        reasoning, closed, body = text.partition(self._thought)
        if self._dsml in reasoning and self._tags.misspelt.search(reasoning):
            problems.append(Problem(kind="call_before_close", detail="a call stands in the reasoning"))
        elif marks := flat.marks_in(reasoning):
            problems.append(special("reasoning", marks))
        if not closed:
            problems.append(Problem(kind="reasoning_unclosed", detail=f"no {THOUGHT}"))
        elif not reasoning:
            problems.append(Problem(kind="empty_reasoning", detail=f"{THOUGHT} stands first"))
        return flat.said(reasoning), body if closed else None

    def _answer(
        self, flat: FlatText, body: str, problems: list[Problem], *, ended: bool, strict: bool
    ) -> tuple[str, list[ToolCall]]:
        """Content and calls."""
        tags = self._tags
        opening = tags.open.search(body)
        if opening is None and (near := _misspelt_block(tags, body, anywhere=self._dsml in body)):
            problems.append(Problem(kind="tag_misspelt", detail=f"{flat.said(body[near.start() :])!r:.80}"))
            if not strict:
                body = body[: near.start()] + tags.corrected(body[near.start() :])
                opening = tags.open.search(body)
        if opening is None:
            if not problems or problems[-1].kind != "tag_misspelt":
                problems += [special("content", marks) for marks in [flat.marks_in(body)] if marks]
            return flat.said(body), []
        if not strict and (corrected := body[: opening.start()] + tags.corrected(body[opening.start() :])) != body:
            problems.append(Problem(kind="tag_misspelt", detail="in the block of calls"))
            body = corrected
        before = body[: opening.start()]
        content = before.removesuffix(SEPARATOR)
        if not before.endswith(SEPARATOR):
            content = before.rstrip("\n")
            problems.append(Problem(kind="block_separator", detail=f"calls follow {flat.said(before[-20:])!r}"))
        if marks := flat.marks_in(content):
            problems.append(special("content", marks))
        if strict and any(problem.kind != "empty_reasoning" for problem in problems):
            return flat.said(content), []
        reader = CallReader(flat, body, tags, ended=ended, strict=strict)
        end = reader.read(opening.end())
        problems += reader.problems
        if end is not None and end < len(body):
            problems.append(Problem(kind="text_after_calls", detail=f"{flat.said(body[end:])!r:.80}"))
        return flat.said(content), reader.calls


def special(where: str, marks: Sequence[str]) -> Problem:
    """The problem of control tokens inside a text."""
    return Problem(kind="special_in_text", detail=f"{where} holds {', '.join(marks)}"[:200])


def _misspelt_block(tags: Tags, body: str, *, anywhere: bool) -> re.Match[str] | None:
    """Where a block of calls seems to be meant: a tag at the head of a line, or, with the mark of tags, anywhere."""
    for match in tags.misspelt.finditer(body):
        head = body[body.rfind("\n", 0, match.start()) + 1 : match.start()]
        if anywhere or ("call" in match[2] and not head.strip()):
            return match
    return None


def _unwrapped(call: ToolCall, tools: Sequence[ToolSchema], problems: list[Problem]) -> ToolCall:
    """The call without an object `arguments` around its arguments, which no tool of that name declares."""
    inner = call.arguments.get("arguments")
    declared = {tool.name: tool.parameters.get("properties") for tool in tools}.get(call.name)
    if list(call.arguments) != ["arguments"] or not isinstance(inner, dict):
        return call
    if isinstance(declared, dict) and "arguments" in declared:
        return call
    problems.append(
        Problem(kind="parameter_form", detail=f"arguments of {call.name!r} stand in an object of their own")
    )
    return replace(call, arguments=inner)
