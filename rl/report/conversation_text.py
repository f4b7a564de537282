"""A conversation for a terminal: what was said, and what the model read and drew, token by token."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby

from rich.text import Text

from samepath.model.text.conversation import Message
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.types import TOKEN_KINDS, Rollout, Segment, ToolRecord

STYLES = {"scaffold": "dim", "content": "blue", "sampled": "cyan", "trained": "bold green"}
"""Of each kind of token."""
NAMES = {"sampled": "read again"}
"""What people are told, where it is not the kind's own name."""
SHORT_S = 0.01
"""Less than this is said in milliseconds."""
CONTROLS: Mapping[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(127, 160), "�"),
}
"""What stands for a character that could steer a terminal."""


def conversation_text(rollout: Rollout, tokenizer: Tokenizer, *, ids: bool) -> Iterator[Text]:
    """Lines: the messages, how it ended, then the tokens of each segment, a line for each run of one kind; with `ids` each with its id."""
    yield from _said(rollout)
    score = "" if rollout.environment_score is None else f", score {rollout.environment_score.total:.4g}"
    problems = f", problems: {', '.join(rollout.problems)}" if rollout.problems else ""
    yield Text(f"ended by {rollout.ended}{score}{problems}, {rollout.num_trained} tokens drawn", "bold")
    for number, segment in enumerate(rollout.segments):
        calls = ", ".join(f"{span.index}{' (edit)' if span.kind == 'edit' else ''}" for span in segment.calls)
        yield Text(
            f"segment {number + 1}, epoch {segment.epoch}: {len(segment.token_ids)} tokens, {segment.num_trained} trained, calls {calls}",
            "bold",
        )
        yield from _tokens(segment, tokenizer, ids=ids)


def _said(rollout: Rollout) -> Iterator[Text]:
    """Each message behind its role; a tool's with what is known of its call, which a message of the model made before."""
    records, drawn = iter(rollout.tool_calls), False
    for message in rollout.messages:
        drawn = drawn or bool(message.sampled)
        record = next(records, None) if drawn and message.role == "tool" else None
        yield Text(message.role if record is None else _of_tool(record), "bold")
        yield from _parts(message)


def _of_tool(record: ToolRecord) -> str:
    took = f"{1000 * record.seconds:.3g} ms" if record.seconds < SHORT_S else f"{record.seconds:.3g} s"
    return f"tool {record.name}, {took}{', ' + record.error if record.error else ''}"


def _parts(message: Message) -> Iterator[Text]:
    if message.reasoning:
        yield Text(_shown(message.reasoning), "italic dim")
    if message.content:
        yield Text(_shown(message.content))
    for call in message.calls:
        yield Text(_shown(f"{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}"), "magenta")


def _tokens(segment: Segment, tokenizer: Tokenizer, *, ids: bool) -> Iterator[Text]:
    """One line a run of tokens of one kind; a token is quoted, so that its borders and what cannot be seen are plain."""
    assert segment.kinds is not None
    places = enumerate(zip(segment.token_ids.tolist(), segment.kinds.tolist(), strict=True))
    for number, run in groupby(places, key=lambda place: place[1][1]):
        kind = TOKEN_KINDS[number]
        tokens = [token_id for _, (token_id, _) in run]
        shown = [
            f"{text!r}:{token_id}" if ids else repr(text)
            for text, token_id in zip(tokenizer.token_texts(tokens), tokens, strict=True)
        ]
        yield Text.assemble((f"{NAMES.get(kind, kind):>10}  ", "dim"), (" ".join(shown), STYLES[kind]))


def _shown(text: str) -> str:
    """Text that cannot steer a terminal."""
    return text.translate(CONTROLS)
