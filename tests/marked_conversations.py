"""Tokenizers that know the marks of conversations, and a conversation with a store, for tests."""

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from samepath.model.text.conversation import Message, ToolCall, ToolSchema
from samepath.model.text.encodings import dsml_text as form
from samepath.model.text.tokenizer import Tokenizer

SCAFFOLD = [
    *(
        "</result>\n<result>",
        "\n\n<function_results>\n",
        "</function_results>\n\n",
        "function_calls>\n<",
        "invoke name=",
    ),
    *("parameter name=", ' string="true">', ' string="false">', "17</result>", "</parameter>", "a\n\n", 'get">\n<'),
]
"""What merges are learned from: they reach over the seams of scaffold and content."""


def marked_tokenizer(*, dsml: bool = True, merges: bool = True) -> Tokenizer:
    """Bytes with merges over every seam; DeepSeek's marks, of which the file flags only two as special."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400 if merges else 258,
        special_tokens=[form.START, form.END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(SCAFFOLD * 3, trainer)
    fast.add_tokens([AddedToken(mark, normalized=False) for mark in [*form.MARKS[2:], *([form.DSML] if dsml else [])]])
    return Tokenizer(fast, form.END, form.START)


GET = ToolSchema(
    function={
        "name": "get",
        "description": "Der Wert zum Schlüssel",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    }
)
ADD = ToolSchema(
    function={
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    }
)
KEYS = ToolSchema(function={"name": "keys"})
STORE = (
    Message(role="system", content="You keep a store.", response_format={"type": "integer"}),
    Message(role="user", content="C plus K? \n"),
    Message(
        role="assistant",
        reasoning="Two keys.",
        content="Both first.",
        calls=(
            ToolCall(name="get", arguments={"key": "C"}, call_id="c"),
            ToolCall(name="get", arguments={"key": 'K\n"ü"'}, call_id="k"),
        ),
    ),
    Message(role="tool", content=" 25\n", call_id="k"),
    Message(role="tool", content="17", call_id="c"),
    Message(role="assistant", reasoning="17 + 25", content="42"),
    Message(role="user", content="And D?"),
    Message(
        role="assistant",
        reasoning="No key was given.",
        calls=(ToolCall(name="keys"), ToolCall(name="add", arguments={"a": -1.5, "b": {"é": [True, None, "x"]}})),
    ),
    Message(role="tool", content='["C", "D"]'),
)
"""Results out of order, one missing, reasoning before and behind the last question."""
