"""Text to token ids and back: any Hugging Face tokenizer folder, and a character-level one for models trained from scratch."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from samepath.model.json_file import read_json
from samepath.model.text.chat import (
    TEMPLATE_FILE,
    ChatForm,
    ChatTemplate,
    Message,
    chat_text,
    read_chat_template,
    token_text,
)
from samepath.model.text.control_tokens import NONCHARACTERS, ControlTokens, Mark, Spans

END = "<eos>"
START = "<bos>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"
MODEL_FILE = "config.json"


class Tokenizer:
    """A `tokenizers` tokenizer with its end-of-sequence ids; tokens in, tokens out, never re-encoded."""

    def __init__(
        self,
        fast: FastTokenizer,
        end_token: str,
        start_token: str,
        *,
        chat: ChatTemplate | None = None,
        other_end_ids: Iterable[int] = (),
    ) -> None:
        self.fast, self.chat = fast, chat
        self.end_token, self.start_token = end_token, start_token
        self.end_id = self._id(end_token)
        self.end_ids = frozenset([self.end_id, *other_end_ids])
        self.start_id = self._id(start_token) if start_token else None
        self._control = ControlTokens(fast)

    def _id(self, token: str) -> int:
        token_id = self.fast.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer must know its special token {token!r}; it does not. Check {CONFIG_FILE}.")
        return int(token_id)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.fast.get_vocab_size(with_added_tokens=True))

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of control tokens: all that the tokenizer file adds to its vocabulary, but for blanks."""
        return self._control.ids

    def encode(self, text: str, written: Spans = ()) -> tuple[int, ...]:
        """Ids of a prompt, the start token first if there is one. Raises ValueError if a character has no token.

        The name of a control token is text like any other, unless it stands in a part of the text that the recipe's author has `written`.
        """
        ids = self.encode_continuation(text, written)
        # Nothing but a template can have written a start token.
        return ids if self.start_id is None or ids[:1] == (self.start_id,) else (self.start_id, *ids)

    def encode_continuation(self, text: str, written: Spans = ()) -> tuple[int, ...]:
        """Ids of text that follows other text, as in `encode`, without a start token. Raises ValueError if a character has no token."""
        return self._encode_marked(text, self._control.marks(text, written))

    def _encode_marked(self, text: str, marks: Sequence[Mark]) -> tuple[int, ...]:
        ids = self._control.encode(text, marks)
        if self.fast.decode(ids, skip_special_tokens=False) != text and isinstance(self.fast.model, models.WordLevel):
            unknown = sorted({character for character in text if self.fast.token_to_id(character) is None})
            raise ValueError(f"every character must be in the tokenizer's alphabet; {unknown} of {text!r} are not")
        return tuple(ids)

    def encode_chat(
        self, question: str, form: ChatForm, *, earlier: Sequence[Message] = (), written: Spans = ()
    ) -> tuple[int, ...]:
        """Ids of a conversation up to where the answer begins, in the checkpoint's own chat form.

        `earlier` messages come before the question, of which `written` parts are the recipe author's. The names of control tokens in all else
        that the messages say are text; the checkpoint's template alone, and `written` parts, can write these tokens. Raises ValueError if the
        checkpoint has no template, if the template refuses, or if it looks into a message for such names.
        """
        if self.chat is None:
            raise ValueError(
                f"a chat prompt needs the checkpoint's template ({TEMPLATE_FILE}, or chat_template in {CONFIG_FILE}); it has none. "
                "Switch task.chat.enabled off, or take a checkpoint tuned for chat."
            )
        messages = [*earlier, Message(role="user", content=question)]
        if form.system:
            messages.insert(0, Message(role="system", content=form.system))
        text = chat_text(self.chat, form, messages)
        breaker = next((mark for mark in NONCHARACTERS if mark not in text), "")
        if not breaker:
            raise ValueError(f"a conversation must leave out one of Unicode's noncharacters; got all in {text!r:.300}")
        broken = [
            replace(message, content=self._control.broken(message.content, spans, breaker))
            for message, spans in zip(messages, [()] * (len(messages) - 1) + [written], strict=True)
        ]
        shown = text if broken == messages else chat_text(self.chat, form, broken)
        if shown.replace(breaker, "") != text:
            raise ValueError(
                f"the checkpoint's chat template looks for control tokens inside a message, where they are text only; take them out of {messages!r:.300}"
            )
        # The template writes the start token itself where there is one.
        return self._encode_marked(text, _unbroken(self._control.marks(shown, [(0, len(shown))]), shown, breaker))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response: all of it, special tokens by name, but for an end token at its end."""
        return self.text(ids[:-1] if len(ids) and ids[-1] in self.end_ids else ids)

    def text(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens by name."""
        return str(self.fast.decode(list(ids), skip_special_tokens=False))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Each id's own text, for people (special tokens by name)."""
        return [self.text([token_id]) for token_id in ids]

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, a chat template and, for several end ids, `generation_config.json`, as transformers reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.fast.save(str(folder / TOKENIZER_FILE))
        config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.end_token}
        if self.start_token:
            config |= {"bos_token": self.start_token, "add_bos_token": True}
        if self.chat is not None:
            # The template may name a start token that plain prompts do not begin with.
            config = {**self.chat.special_tokens, **config, "add_bos_token": bool(self.start_token)}
            (folder / TEMPLATE_FILE).write_text(self.chat.source, encoding="utf-8")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        if len(self.end_ids) > 1:
            ids = [self.end_id, *sorted(self.end_ids - {self.end_id})]
            (folder / GENERATION_FILE).write_text(json.dumps({"eos_token_id": ids}, indent=2) + "\n")


def _unbroken(marks: Sequence[Mark], text: str, breaker: str) -> list[Mark]:
    """The marks where the text has no breakers."""
    shifts = [text.count(breaker, 0, mark.start) for mark in marks]
    return [
        replace(mark, start=mark.start - shift, end=mark.end - shift) for mark, shift in zip(marks, shifts, strict=True)
    ]


def character_tokenizer(alphabet: str) -> Tokenizer:
    """One token a character, after the start and end tokens. Raises ValueError on an empty or repeating alphabet."""
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise ValueError(f"the alphabet must hold each character once and at least one; got {alphabet!r}")
    vocab = {token: index for index, token in enumerate([START, END, *alphabet])}
    fast = FastTokenizer(models.WordLevel(vocab, unk_token=END))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens([START, END])
    return Tokenizer(fast, END, START)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer folder of this package or of a published model.

    A response may end with the end token of the tokenizer and with any end id that the generation or model config names. Prompts begin
    with the start token where `add_bos_token` or the tokenizer's own post-processor says so. Raises FileNotFoundError or ValueError.
    """
    for name in (TOKENIZER_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"a tokenizer needs {name}; none in {folder}")
    config = read_json(folder / CONFIG_FILE)
    # The tokenizers library raises a bare Exception for a file that is no JSON.
    read_json(folder / TOKENIZER_FILE)
    fast = FastTokenizer.from_file(str(folder / TOKENIZER_FILE))
    end_ids = _end_ids(folder)
    end = token_text(config.get("eos_token"))
    if not end and end_ids:
        end = fast.id_to_token(end_ids[0]) or ""
    if not end:
        raise ValueError(
            f"{folder / CONFIG_FILE} must name an eos_token, or {GENERATION_FILE} an eos_token_id: without one no answer can end"
        )
    start = token_text(config.get("bos_token"))
    if start and not config.get("add_bos_token", _adds(fast, start)):
        start = ""
    chat = read_chat_template(folder, config, fast.get_vocab(with_added_tokens=True))
    return Tokenizer(fast, end, start, chat=chat, other_end_ids=end_ids)


def _adds(fast: FastTokenizer, start: str) -> bool:
    """True if the tokenizer's post-processor puts the start token before a text."""
    return fast.encode("", add_special_tokens=True).ids[:1] == [fast.token_to_id(start)]


def _end_ids(folder: Path) -> list[int]:
    """End ids of the model that the tokenizer came with, those of the generation config first."""
    found: list[int] = []
    for name in (GENERATION_FILE, MODEL_FILE):
        if (folder / name).is_file():
            ids = read_json(folder / name).get("eos_token_id")
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys(found))
