"""Reads a block of DeepSeek-V3.2's calls from drawn text: up to the first problem, or past those whose meaning is plain."""

import re
from dataclasses import dataclass

from samepath.model.text.conversation import JsonValue, Problem, ProblemKind, ToolCall
from samepath.model.text.encodings.flat import FlatText
from samepath.model.text.encodings.json_value import read_json_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag as the form writes it, and as it may be meant."""

    exact: re.Pattern[str]
    """The line break before it and the tag."""
    loose: re.Pattern[str]
    """Other blanks, quotation marks or none; groups as in `exact`."""
    kind: ProblemKind
    """What is wrong where it is only meant."""


class Tags:
    """Tags of a block of calls, with the character that stands for their mark."""

    def __init__(self, dsml: str) -> None:
        name = r'([^"\n\ud800-\udfff]+)'
        # Bounded, so that no run of blanks or bars takes long.
        quoted = r"""\s*=\s*["']?([^"'\n<>\ud800-\udfff]{1,200}?)["']?"""
        flag = r"""(?:\s+string\s*=\s*["']?(true|false)["']?)?"""
        self.any = re.compile(f"</?{dsml}")
        self.open = re.compile(f"<{dsml}function_calls>")
        self.close = _tag(f"</{dsml}function_calls>", r"</\Dfunction_calls\s*>", dsml, "invoke_form")
        self.invoke = _tag(f'<{dsml}invoke name="{name}">', rf"<\Dinvoke\s+name{quoted}\s*>", dsml, "invoke_form")
        self.invoke_close = _tag(f"</{dsml}invoke>", r"</\Dinvoke\s*>", dsml, "invoke_form")
        self.empty_close = _tag(f"\n</{dsml}invoke>", r"</\Dinvoke\s*>", dsml, "invoke_form")
        self.parameter = _tag(
            f'<{dsml}parameter name="{name}" string="(true|false)">',
            rf"<\Dparameter\s+name{quoted}{flag}\s*>",
            dsml,
            "parameter_form",
        )
        self.parameter_close = f"</{dsml}parameter>"
        bars = r"[\s|｜]{0,3}"
        self.misspelt = re.compile(
            rf"<\s{{0,3}}(/?){bars}(?:DSML|dsml|{dsml})?{bars}(functions?_?calls?|tool_calls?|invoke|parameter)(?=[\s>])"
        )
        self._known = re.compile(f"</?{dsml}(?:function_calls|invoke|parameter)(?=[\\s>])")
        self._dsml = dsml

    def is_misspelt(self, text: str) -> bool:
        """True if the text begins with a tag that has none of the form's names, or has it written otherwise."""
        return not self._known.match(text) and bool(self.misspelt.match(text) or self.any.match(text))

    def corrected(self, text: str) -> str:
        """The text with every tag that is nearly one of the form's made one."""
        return self.misspelt.sub(self._correct, text)

    def _correct(self, match: re.Match[str]) -> str:
        word = "function_calls" if "call" in match[2] else match[2]
        return f"<{match[1]}{self._dsml}{word}"


def _tag(exact: str, loose: str, dsml: str, kind: ProblemKind) -> Tag:
    return Tag(exact=re.compile(f"\n{exact}"), loose=re.compile(rf"\s*{loose}".replace(r"\D", dsml)), kind=kind)


class Stopped(Exception):  # noqa: N818
    """Nothing is read behind this place."""


class CallReader:
    """One reading of one block; `calls` and `problems` hold what was read so far."""

    def __init__(self, flat: FlatText, text: str, tags: Tags, *, ended: bool, strict: bool) -> None:
        """`ended`: an end token stood behind `text`, else a tag may have been cut."""
        self._flat, self._text, self._tags, self._ended, self._strict = flat, text, tags, ended, strict
        self._place = 0
        self.calls: list[ToolCall] = []
        self.problems: list[Problem] = []

    def read(self, place: int) -> int | None:
        """Read the block whose opening tag ends at `place`; the place behind it, or None if it could not be read to its end."""
        self._place = place
        tags = self._tags
        try:
            empty = True
            while not self._take(tags.close):
                if invoke := self._take(tags.invoke):
                    self._read_invoke(self._flat.said(invoke[1]))
                else:
                    self._skip("invoke_form")
                empty = False
            if empty:
                self._problem("block_empty", "no call between the tags")
        except Stopped:
            return None
        return self._place

    def _read_invoke(self, name: str) -> None:
        arguments: dict[str, JsonValue] = {}
        tags = self._tags
        given = False
        while not self._take(tags.invoke_close if given else tags.empty_close):
            if parameter := self._take(tags.parameter):
                self._read_value(name, parameter, arguments)
            elif any(tag.loose.match(self._text, self._place) for tag in (tags.invoke, tags.close)):
                self._problem("call_unclosed", f"{name!r} is not closed")
                break
            else:
                self._skip("parameter_form")
            given = True
        self.calls.append(ToolCall(name=name, arguments=arguments, call_id=f"call-{len(self.calls)}"))

    def _read_value(self, name: str, parameter: re.Match[str], arguments: dict[str, JsonValue]) -> None:
        key, flag = self._flat.said(parameter[1]), parameter[2]
        where = f"{key!r} of {name!r}"
        end = self._tags.any.search(self._text, self._place)
        if end is None:
            self._problem("call_unclosed", f"{where} is not closed")
            raise Stopped
        raw = self._text[self._place : end.start()]
        self._place = end.start()
        if self._text.startswith(self._tags.parameter_close, self._place):
            self._place += len(self._tags.parameter_close)
        else:
            self._problem("parameter_form", f"{where}: a tag stands in its value")
        if marks := self._flat.marks_in(raw):
            self._problem("special_in_text", f"{where} holds {', '.join(marks)}")
        text = self._flat.said(raw)
        if key in arguments:
            self._problem("duplicate_parameter", where)
        else:
            arguments[key] = self._value(text, flag, where)

    def _value(self, text: str, flag: str | None, where: str) -> JsonValue:
        if flag == "true":
            return text
        try:
            value = read_json_text(text)
        except ValueError as error:
            if flag == "false":
                self._problem("value_not_json", f"{where}: {error}; got {text!r:.80}")
            return text
        if flag == "false" and isinstance(value, str):
            self._problem("parameter_form", f'{where} is text and says string="false"')
        return value

    def _take(self, tag: Tag) -> re.Match[str] | None:
        """Go past the tag if it stands here."""
        match = tag.exact.match(self._text, self._place)
        if match is None and (match := tag.loose.match(self._text, self._place)):
            self._problem(tag.kind, f"{self._flat.said(match[0])!r:.80}")
        if match is not None:
            self._place = match.end()
        return match

    def _skip(self, kind: ProblemKind) -> None:
        """Report what stands here instead of a tag, and go to the next tag."""
        rest = self._text[self._place :]
        bare = rest.lstrip()
        if not bare or (not self._ended and ">" not in bare):
            self._problem("call_unclosed", f"the block ends with {self._flat.said(rest)!r:.80}")
            raise Stopped
        shown = f"{self._flat.said(bare)!r:.80}"
        self._problem("tag_misspelt" if self._tags.is_misspelt(bare) else kind, shown)
        following = self._tags.any.search(self._text, self._place + len(rest) - len(bare) + 1)
        if following is None:
            self._problem("call_unclosed", "no tag follows")
            raise Stopped
        # The line break before it belongs to it.
        self._place = following.start() - (self._text[following.start() - 1] == "\n")

    def _problem(self, kind: ProblemKind, detail: str) -> None:
        self.problems.append(Problem(kind=kind, detail=detail))
        if self._strict:
            raise Stopped
