"""The page's conversation is printed by the renderer: `python -m tests.model.text.encodings.test_page` prints it anew."""

from pathlib import Path

from samepath.model.text.conversation import Message, ToolCall
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.renderer import Pieces
from tests.marked_conversations import marked_tokenizer

PAGE = Path(__file__).resolve().parents[4] / "docs/conversations.md"
TOKENIZER = marked_tokenizer(merges=True)
COLUMNS = 118


def drawn(text: str) -> tuple[int, ...]:
    return TOKENIZER.encode_continuation(text, [(0, len(text))])


def conversation() -> list[tuple[str, list[tuple[str, int]]]]:
    """(heading, tokens with their kinds) of everything that enters the context, in order."""
    renderer = DeepSeekV32Renderer(TOKENIZER)
    asked = [Message(role="user", content="C<think>?")]
    call = ToolCall(name="get", arguments={"key": "C"}, call_id="call-0")
    first = drawn(
        "Look.</think>\n\n<｜DSML｜function_calls>\n"
        '<｜DSML｜invoke name="get">\n<｜DSML｜parameter name="key" string="true">C</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls><｜end▁of▁sentence｜>"
    )
    second = drawn("17.</think>17<｜end▁of▁sentence｜>")
    assert renderer.parse(first).calls == (call,)
    result = Message(role="tool", content="17", call_id="call-0")
    opened, bridge = renderer.open(asked), renderer.bridge((call,), [result])
    assert bridge is not None
    assert renderer.reply("D?") is None
    told = [*asked, renderer.parse(first).message(first), result, renderer.parse(second).message(second)]
    again = renderer.open([*told, Message(role="user", content="D?")])
    steps = [("open", opened), ("drawn, call 1", first), ("bridge", bridge), ("drawn, call 2", second)]
    return [(head, listed(ids)) for head, ids in [*steps, ("open again: a new epoch, the user has asked", again)]]


def listed(ids: Pieces | tuple[int, ...]) -> list[tuple[str, int]]:
    """Marks of the kinds and ids; `.` trained, `s` scaffold, `c` content, `r` reused."""
    if isinstance(ids, Pieces):
        signs = {"scaffold": "s", "content": "c", "sampled": "r"}
        return [(signs[kind], id_) for id_, kind in zip(ids.ids, ids.kinds, strict=True)]
    return [(".", id_) for id_ in ids]


def printed() -> str:
    """The conversation, each token between bars behind the sign of its kind."""
    lines = []
    for head, tokens in conversation():
        lines.append(f"── {head}: {len(tokens)} tokens")
        line = ""
        for sign, id_ in tokens:
            token = f" {sign}{TOKENIZER.text([id_])!r}"
            if len(line) + len(token) > COLUMNS:
                lines.append(line)
                line = ""
            line += token
        lines.append(line)
    return "\n".join(lines)


def test_page_shows_the_conversation_that_the_renderer_makes() -> None:
    assert printed() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(printed())
