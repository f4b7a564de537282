"""Text to token ids and back: any Hugging Face tokenizer folder, and a character-level one for models trained from scratch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from samepath.model.json_file import read_json
from samepath.model.text.chat import (
    SPECIAL_TOKENS,
    TEMPLATE_FILE,
    ChatForm,
    ChatTemplate,
    chat_text,
    read_chat_template,
    token_text,
)
from samepath.model.text.control_tokens import NONCHARACTERS, ControlTokens, Mark, Placed, Spans
from samepath.model.text.conversation import Message

END = "<eos>"
START = "<bos>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"
MODEL_FILE = "config.json"


NOT_KEPT = ("tokenizer_class", "auto_map", "chat_template", "add_bos_token", "add_eos_token")
"""Keys of tokenizer_config.json that say how another program is to read the folder: that is said anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a tokenizer folder says beside the tokenizer, to be written into every folder that is saved."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Its tokenizer_config.json."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Its generation_config.json: sampling settings, ids; empty if there is none."""
    prefix_ids: tuple[int, ...] = ()
    """Ids that its post-processor puts before a text, where the config does not say so; empty: the start token if there is one."""


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
        published: Published | None = None,
    ) -> None:
        self.fast, self.chat = fast, chat
        self.published = published or Published()
        self.end_token, self.start_token = end_token, start_token
        self.end_id = self._id(end_token)
        self.end_ids = frozenset([self.end_id, *other_end_ids])
        self.start_id = self._id(start_token) if start_token else None
        self.prefix_ids = self.published.prefix_ids or (() if self.start_id is None else (self.start_id,))
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
        return ids if ids[: len(self.prefix_ids)] == self.prefix_ids else (*self.prefix_ids, *ids)

    def encode_continuation(self, text: str, written: Spans = ()) -> tuple[int, ...]:
        """Ids of text that follows other text, as in `encode`, without a start token. Raises ValueError if a character has no token."""
        return self._encode_marked(text, self._control.marks(text, written))

    def place(self, text: str, written: Spans, *, follows: bool) -> list[Placed]:
        """Ids of a text without a start token and the part of it that each stands for; control tokens in `written` parts only.

        `follows`: a control token stands before the text, which then does not begin there. Raises ValueError if a character has no token.
        """
        if not follows:
            return self._place(text, self._control.marks(text, written))
        head = len(self.end_token)
        spans = [(0, head), *((start + head, end + head) for start, end in written)]
        placed = self._place(self.end_token + text, self._control.marks(self.end_token + text, spans))
        return [(id_, (max(start - head, 0), end - head)) for id_, (start, end) in placed[1:]]

    def _encode_marked(self, text: str, marks: Sequence[Mark]) -> tuple[int, ...]:
        return tuple(id_ for id_, _ in self._place(text, marks))

    def _place(self, text: str, marks: Sequence[Mark]) -> list[Placed]:
        placed = self._control.encode(text, marks)
        ids = [id_ for id_, _ in placed]
        if self.fast.decode(ids, skip_special_tokens=False) != text and (unknown := self._unknown(text)):
            raise ValueError(f"every character must be in the tokenizer's alphabet; {unknown} of {text!r} are not")
        return placed

    def _unknown(self, text: str) -> list[str]:
        """Characters that the tokenizer would drop, or take for others."""
        if isinstance(self.fast.model, models.WordLevel):
            return sorted({character for character in text if self.fast.token_to_id(character) is None})
        # A BPE without byte fallback and without an unknown token says nothing; what a normaliser takes out is meant to go.
        if isinstance(self.fast.model, models.BPE) and not self.fast.model.unk_token and self.fast.normalizer is None:
            return sorted(
                one for one in set("".join(text.split())) if not self.fast.encode(one, add_special_tokens=False).ids
            )
        return []

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
        """Write the tokenizer folder so that transformers makes the same ids of a text, and all that the folder it came from said beside.

        These are `tokenizer.json`, `tokenizer_config.json`, the chat template if there is one, and `generation_config.json` if the model came
        with one or has several end ids.
        """
        folder.mkdir(parents=True, exist_ok=True)
        fast = self.fast
        if _added_around(fast) != (self.prefix_ids, ()):
            fast = FastTokenizer.from_str(fast.to_str())
            names = [fast.id_to_token(id_) for id_ in self.prefix_ids]
            template = " ".join([*(f"{name}:0" for name in names), "$A:0"])
            fast.post_processor = processors.TemplateProcessing(
                single=template, pair=f"{template} $B:1", special_tokens=list(zip(names, self.prefix_ids, strict=True))
            )
        fast.save(str(folder / TOKENIZER_FILE))
        if self.chat is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat.source, encoding="utf-8")
        (folder / CONFIG_FILE).write_text(json.dumps(self._config(), indent=2) + "\n")
        if generation := self._generation():
            (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n")

    def _config(self) -> dict[str, object]:
        """Contents of tokenizer_config.json."""
        # Another class would build the tokenizer anew instead of reading its file.
        kept = {key: value for key, value in self.published.config.items() if key not in NOT_KEPT}
        special = dict(self.chat.special_tokens) if self.chat is not None else {}
        special |= {name: token_text(kept[name]) for name in SPECIAL_TOKENS if kept.get(name)}
        config: dict[str, object] = {
            **kept,
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end_token,
        }
        if self.start_token:
            config["bos_token"] = self.start_token
        # Where it is given, transformers puts the start token alone, or nothing, before a text; else the tokenizer's file says what.
        if len(self.prefix_ids) <= 1:
            config["add_bos_token"] = bool(self.prefix_ids)
        return config

    def _generation(self) -> dict[str, object]:
        """Contents of generation_config.json: as they were, with every end id."""
        kept = dict(self.published.generation)
        ids = [self.end_id, *sorted(self.end_ids - {self.end_id})]
        said = kept.get("eos_token_id")
        if len(ids) > 1 and (not isinstance(said, list) or set(said) != self.end_ids):
            kept["eos_token_id"] = ids
        return kept


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
    prefix_ids = () if "add_bos_token" in config else _added_around(fast)[0]
    if not config.get("add_bos_token", prefix_ids[:1] == (fast.token_to_id(start),)):
        start = ""
    generation = read_json(folder / GENERATION_FILE) if (folder / GENERATION_FILE).is_file() else {}
    return Tokenizer(
        fast,
        end,
        start,
        chat=read_chat_template(folder, config, fast.get_vocab(with_added_tokens=True)),
        other_end_ids=end_ids,
        published=Published(config=config, generation=generation, prefix_ids=prefix_ids),
    )


def _added_around(fast: FastTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the tokenizer file's post-processor puts before and after a text."""
    encoded = fast.encode("a", add_special_tokens=True)
    kinds = "".join(map(str, encoded.special_tokens_mask))
    before, after = len(kinds) - len(kinds.lstrip("1")), len(kinds.rstrip("1"))
    return tuple(encoded.ids[:before]), tuple(encoded.ids[max(before, after) :])


def _end_ids(folder: Path) -> list[int]:
    """End ids of the model that the tokenizer came with, those of the generation config first."""
    found: list[int] = []
    for name in (GENERATION_FILE, MODEL_FILE):
        if (folder / name).is_file():
            ids = read_json(folder / name).get("eos_token_id")
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys(found))
