"""Texts of DeepSeek-V3.2's form: how tools, response formats and calls are written (encoding published with arXiv:2512.02556)."""

import json
from collections.abc import Iterator, Sequence

from samepath.model.text.conversation import JsonValue, ToolCall, ToolSchema
from samepath.model.text.renderer import Part, said, scaffold

START, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THOUGHT = "<think>", "</think>"
DSML = "｜DSML｜"
MARKS = (START, END, USER, ASSISTANT, THINK, THOUGHT)
"""Control tokens that the form cannot do without. `DSML` may be one more; a tokenizer without it spells the tags of calls in letters."""
CALLS_OPEN, CALLS_CLOSE = f"<{DSML}function_calls>", f"</{DSML}function_calls>"
INVOKE_CLOSE, PARAMETER_CLOSE = f"</{DSML}invoke>", f"</{DSML}parameter>"
RESULTS_OPEN, RESULTS_CLOSE = "\n\n<function_results>", "\n</function_results>\n\n"
USER_MESSAGE = "\n\n# The user's message is: "
FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
TOOLS_HEAD = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "{CALLS_OPEN}" block like the following as part of your reply to the user:
{CALLS_OPEN}
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{PARAMETER_CLOSE}
...
{INVOKE_CLOSE}
<{DSML}invoke name="$FUNCTION_NAME2">
...
{INVOKE_CLOSE}
{CALLS_CLOSE}

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. \
The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

{CALLS_OPEN}
...
{CALLS_CLOSE}

<function_results>
...
</function_results>

{THINK}...thinking about results{THOUGHT}

Here are the functions available in JSONSchema format:
<functions>
"""
TOOLS_TAIL = "</functions>\n"


def json_text(value: JsonValue) -> str:
    """The value as the form writes JSON. Raises ValueError for NaN and infinity, which JSON cannot say."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def tools_parts(tools: Sequence[ToolSchema]) -> list[Part]:
    """The paragraph that declares tools: one a line."""
    lines = [part for tool in tools for part in (said(json_text(dict(tool.function))), scaffold("\n"))]
    return [scaffold(TOOLS_HEAD), *lines, scaffold(TOOLS_TAIL)]


def format_parts(schema: JsonValue) -> list[Part]:
    """The paragraph that asks for an answer of a schema."""
    return [scaffold(FORMAT), said(json_text(schema))]


def calls_parts(calls: Sequence[ToolCall]) -> list[Part]:
    """The block of calls. Raises ValueError if a name cannot be written, or a value is no JSON."""
    parts = [scaffold(f"{CALLS_OPEN}\n")]
    for call in calls:
        parts += [scaffold(f'<{DSML}invoke name="'), said(_name(call.name)), scaffold('">\n')]
        for index, (key, value) in enumerate(call.arguments.items()):
            parts += [scaffold("\n" if index else ""), *_parameter(key, value)]
        parts.append(scaffold(f"\n{INVOKE_CLOSE}\n"))
    return [*parts, scaffold(CALLS_CLOSE)]


def _parameter(key: str, value: JsonValue) -> Iterator[Part]:
    text = isinstance(value, str)
    yield scaffold(f'<{DSML}parameter name="')
    yield said(_name(key))
    yield scaffold(f'" string="{"true" if text else "false"}">')
    yield said(value if isinstance(value, str) else json_text(value))
    yield scaffold(PARAMETER_CLOSE)


def _name(name: str) -> str:
    if not name or '"' in name or "\n" in name:
        raise ValueError(f"the name of a tool or parameter must be one line without quotation marks; got {name!r:.80}")
    return name
